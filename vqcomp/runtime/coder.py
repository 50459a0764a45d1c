"""Integer logits -> integer frequencies -> range coder.

A symbol is coded in two steps, its group of 32 neighbouring ids and then its place in the group, so that the tables
that integers must be divided for have 32 entries and not the whole vocabulary. A table is a set of intervals that
partition [0, 2^24); no float decides where they lie.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np

from .errors import DamageError
from .exact import Array, NumpyOps, TorchOps
from .rangecoder import Categorical, RangeDecoder, RangeEncoder, Uniform

CONSTRICTION = "0.5.0"
"""Its version: streams are what this one writes."""
PRECISION = 24
"""constriction's default: probabilities are multiples of 2^-24."""
BIT_PRECISION = 16
"""Of a bit's probability."""
GROUP = 32
LOGIT_BITS = 6
"""Logits are in 1/64 bit."""
WEIGHT_BITS = 18
"""The largest weight is 2^18, so the sum of a group stays below 2^24."""


def find_constriction() -> Any:
    """constriction's module `stream`; None where the version that the format relies on is not here."""
    try:
        if version("constriction") == CONSTRICTION:
            from constriction import stream

            return stream
    except ImportError:  # of its metadata, too
        pass
    return None


constriction = find_constriction()
"""If None, rangecoder.py codes: the same bytes, slower."""


def weights(logits: Array, ops: NumpyOps | TorchOps) -> Array:
    """Integer logits (rows, V) in 1/64 bit -> integer weights (rows, V), 1..2^18. Works in place.

    2^x by linear interpolation between powers of two: the integer 64 x, shifted into place, is the bit pattern of a
    float32. Costs 0.0002 bits/token against the true power (Schraudolph, Neural Computation 11, 1999).
    """
    logits -= ops.row_max(logits) - (WEIGHT_BITS << LOGIT_BITS)
    ops.at_least_(logits, 0)
    logits += 127 << LOGIT_BITS
    logits *= 1 << (23 - LOGIT_BITS)
    return ops.floor_(ops.bits_to_float(logits))


def partition(w: np.ndarray) -> np.ndarray:
    """Weights (rows, n), integers >= 0 with a positive sum -> interval bounds, integers in float64 (rows, n + 1).

    Every interval has at least 1; the first starts at 1 and the last ends at 2^24 - 1, which leaves a guard of 1 at
    each end, so that what lies left and right of a symbol is never empty. Sums are exact up to 2^53.
    """
    rows, n = w.shape
    free = (1 << PRECISION) - n - 2
    bounds = np.zeros((rows, n + 1))
    np.cumsum(w, axis=1, dtype=np.float64, out=bounds[:, 1:])
    bounds *= free / bounds[:, -1:]
    np.floor(bounds, out=bounds)
    bounds[:, -1] = free  # the product may have come out just below
    bounds += np.arange(1, n + 2)
    return bounds


class Encoder:
    """Range encoder of one stream."""

    def __init__(self) -> None:
        self._coder = constriction.queue.RangeEncoder() if constriction else RangeEncoder()

    def put(self, low: np.ndarray, high: np.ndarray) -> None:
        """Code symbols by their intervals [low, high), integers (n,), 1 <= low < high < 2^24."""
        # Three entries, what is left of the symbol, itself and what is right of it, give the bytes of the whole table.
        table = np.stack([low, high - low, (1 << PRECISION) - high], 1) - 1
        self._coder.encode(np.ones(len(low), np.int32), _categorical(), table.astype(np.float32))

    def put_symbols(self, symbols: np.ndarray, bounds: np.ndarray) -> None:
        """Code symbols (n,) by a table each, bounds (n, size + 1)."""
        rows = np.arange(len(symbols))
        self.put(bounds[rows, symbols], bounds[rows, symbols + 1])

    def put_bits(self, bits: np.ndarray, ones: np.ndarray) -> None:
        """Code bits (n,) by the probabilities of a 1, integers (n,) in 1..65535, in 2^-16."""
        self._coder.encode(np.ascontiguousarray(bits, np.int32), _categorical(), _bit_tables(ones))

    def put_uniform(self, symbols: np.ndarray, size: int) -> None:
        """Code symbols (n,) in 0..size-1, all alike."""
        self._coder.encode(np.ascontiguousarray(symbols, np.int32), _uniform(size))

    def finish(self) -> bytes:
        """The stream: little-endian 32-bit words."""
        words: np.ndarray = self._coder.get_compressed()
        return words.astype("<u4").tobytes()


class Decoder:
    """Range decoder of one stream. Raises DamageError where the bytes cannot be a stream."""

    def __init__(self, data: bytes) -> None:
        if len(data) % 4:
            raise DamageError(f"expected a stream of 32-bit words, found {len(data)} bytes; fetch the archive again")
        words = np.frombuffer(data, "<u4").astype(np.uint32)
        self._coder = constriction.queue.RangeDecoder(words) if constriction else RangeDecoder(words)

    def get_symbols(self, bounds: np.ndarray) -> np.ndarray:
        """Decode one symbol by each table, bounds (n, size + 1) -> int64 (n,) in 0..size-1."""
        rows, width = bounds.shape
        table = np.zeros((rows, width + 1), np.float32)  # a guard, the symbols, a guard
        table[:, 1:-1] = bounds[:, 1:] - bounds[:, :-1] - 1
        symbols = self._decode(_categorical(), table) - 1
        if ((symbols < 0) | (symbols > width - 2)).any():
            raise DamageError("a stream decodes to a symbol that is never coded; fetch the archive again")
        return symbols

    def get_bits(self, ones: np.ndarray) -> np.ndarray:
        """Decode bits by the probabilities of a 1, as in `put_bits` -> int64 (n,)."""
        return self._decode(_categorical(), _bit_tables(ones))

    def get_uniform(self, size: int, n: int) -> np.ndarray:
        """Decode n symbols in 0..size-1, all alike -> int64 (n,)."""
        return self._decode(_uniform(size), n)

    def _decode(self, model: Any, table: np.ndarray | int) -> np.ndarray:
        try:
            symbols: np.ndarray = self._coder.decode(model, table)
        except (ValueError, AssertionError) as error:
            raise DamageError("a stream cannot be decoded: its words are damaged; fetch the archive again") from error
        return symbols.astype(np.int64, copy=False)


def _categorical() -> Any:
    return constriction.model.Categorical(perfect=False) if constriction else Categorical()


def _uniform(size: int) -> Any:
    return constriction.model.Uniform(size) if constriction else Uniform(size)


def _bit_tables(ones: np.ndarray) -> np.ndarray:
    """Probabilities of a 1 (n,) in 2^-16 -> frequencies less one of a 0 and a 1 (n, 2), which sum to 2^24 - 2."""
    tables = np.empty((len(ones), 2))
    np.multiply(ones, 1 << (PRECISION - BIT_PRECISION), out=tables[:, 1])
    np.subtract((1 << PRECISION) - 1, tables[:, 1], out=tables[:, 0])
    tables[:, 1] -= 1
    return tables


class Tables:
    """The two levels of frequency tables of `rows` tokens, made from their logits (which are overwritten)."""

    def __init__(self, logits: Array, ops: NumpyOps | TorchOps) -> None:
        self.ops, self.size = ops, logits.shape[1]
        w = weights(logits, ops)
        if self.size % GROUP:
            w = ops.concat([w, ops.load(np.zeros((len(w), -self.size % GROUP), np.float32))], 1)
        self.groups = w.shape[1] // GROUP
        self.w = w.reshape(len(logits) * self.groups, GROUP)  # (rows * groups, GROUP)

    def coarse(self) -> np.ndarray | None:
        """Bounds of the groups (rows, groups + 1); None if there is but one."""
        if self.groups == 1:
            return None
        return partition(self.ops.host(self.ops.row_sum(self.w)).reshape(-1, self.groups))

    def fine(self, groups: np.ndarray) -> np.ndarray:
        """Bounds within each row's group, groups (rows,) -> (rows, GROUP + 1)."""
        index = np.arange(len(groups)) * self.groups + groups
        return partition(self.ops.host(self.ops.take(self.w, self.ops.load(index))))

    def intervals(self, symbols: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Symbols (rows,) -> the (low, high) of each level."""
        rows = np.arange(len(symbols))
        groups, members = np.divmod(symbols.astype(np.int64), GROUP)
        levels = [(self.coarse(), groups), (self.fine(groups), members)]
        return [(b[rows, s], b[rows, s + 1]) for b, s in levels if b is not None]

    def read(self, decoders: list[Decoder]) -> np.ndarray:
        """Decode one symbol a row, the rows shared out evenly among the streams -> int64 (rows,)."""
        coarse = self.coarse()
        groups = np.zeros(len(self.w) // self.groups, np.int64) if coarse is None else _read(decoders, coarse)
        symbols = groups * GROUP + _read(decoders, self.fine(groups))
        if symbols.max() >= self.size:
            raise DamageError("a stream decodes to an id outside the vocabulary")
        return symbols


def _read(decoders: list[Decoder], bounds: np.ndarray) -> np.ndarray:
    shares = np.split(bounds, len(decoders))
    return np.concatenate([decoder.get_symbols(share) for decoder, share in zip(decoders, shares)])
