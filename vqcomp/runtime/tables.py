"""Integer logits -> integer frequencies -> intervals of the range coder, and back.

A symbol is coded in two steps, its group of 32 neighbouring ids and then its place in the group, so that the tables
that integers must be divided for have 32 entries and not the whole vocabulary. A table is a set of intervals that
partition [0, 2^24); no float decides where they lie.
"""

from __future__ import annotations

import numpy as np

from .coder import PRECISION, Decoder, Encoder
from .errors import DamageError
from .exact import Array, NumpyOps, TorchOps

GROUP = 32
LOGIT_BITS = 6
"""Logits are in 1/64 bit."""
WEIGHT_BITS = 18
"""The largest weight is 2^18, so the sum of a group stays below 2^24."""
CACHED = 1 << 18
"""Numbers that a CPU does one thing after another to: as many as its cache holds."""


def weights(logits: Array, ops: NumpyOps | TorchOps) -> Array:
    """Integer logits (rows, V) in 1/64 bit -> integer weights (rows, V), 1..2^18. Works in place.

    2^x by linear interpolation between powers of two: the integer 64 x, shifted into place, is the bit pattern of a
    float32. Costs 0.0002 bits/token against the true power (Schraudolph, Neural Computation 11, 1999).
    """
    rows = max(1, CACHED // logits.shape[1]) if ops.on_host else len(logits)
    for start in range(0, len(logits), rows):
        x = logits[start : start + rows]
        x -= ops.row_max(x) - ((WEIGHT_BITS + 127) << LOGIT_BITS)
        ops.at_least_(x, 127 << LOGIT_BITS)
        x *= 1 << (23 - LOGIT_BITS)
        ops.floor_(ops.bits_to_float(x), x)
    return logits


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


def put_symbols(encoder: Encoder, symbols: np.ndarray, bounds: np.ndarray) -> None:
    """Code symbols (n,) by a table each, bounds (n, size + 1)."""
    rows = np.arange(len(symbols))
    encoder.put(bounds[rows, symbols], bounds[rows, symbols + 1])


def get_symbols(decoders: list[Decoder], bounds: np.ndarray) -> np.ndarray:
    """Decode one symbol by each table, bounds (n, size + 1) -> int64 (n,) in 0..size-1. Raises DamageError.

    The tables are shared out evenly among the decoders.
    """
    rows, width = bounds.shape
    table = np.zeros((rows, width + 1), np.float32)  # a guard, the symbols, a guard
    np.subtract(bounds[:, 1:], bounds[:, :-1], out=table[:, 1:-1], casting="same_kind")
    table[:, 1:-1] -= 1
    shares = table.reshape(len(decoders), -1, width + 1)
    symbols = np.concatenate([decoder.get(share) for decoder, share in zip(decoders, shares)])
    symbols -= 1
    if ((symbols < 0) | (symbols > width - 2)).any():
        raise DamageError("a stream decodes to a symbol that is never coded; fetch the archive again")
    return symbols


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
        groups = np.zeros(len(self.w) // self.groups, np.int64) if coarse is None else get_symbols(decoders, coarse)
        symbols = groups * GROUP + get_symbols(decoders, self.fine(groups))
        if symbols.max() >= self.size:
            raise DamageError("a stream decodes to an id outside the vocabulary")
        return symbols
