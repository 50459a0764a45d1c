"""The range coder of streams: constriction's, or the one in Python where that is not here."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np

from . import rangecoder
from .errors import DamageError

CONSTRICTION = "0.5.0"
"""Its version: streams are what this one writes."""
PRECISION = 24
"""constriction's default: probabilities are multiples of 2^-24."""
BIT_PRECISION = 16
"""Of a bit's probability."""


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


class Encoder:
    """Range encoder of one stream."""

    def __init__(self) -> None:
        self._coder = _coders().RangeEncoder()

    def put(self, low: np.ndarray, high: np.ndarray) -> None:
        """Code symbols by their intervals [low, high), integers (n,), 1 <= low < high < 2^24."""
        # Three entries, what is left of the symbol, itself and what is right of it, give the bytes of the whole table.
        table = np.stack([low, high - low, (1 << PRECISION) - high], 1) - 1
        self._coder.encode(np.ones(len(low), np.int32), _models().Categorical(perfect=False), table.astype(np.float32))

    def put_bits(self, bits: np.ndarray, ones: np.ndarray) -> None:
        """Code bits (n,) by the probabilities of a 1, integers (n,) in 1..65535, in 2^-16."""
        self._coder.encode(
            np.ascontiguousarray(bits, np.int32), _models().Categorical(perfect=False), _bit_tables(ones)
        )

    def put_uniform(self, symbols: np.ndarray, size: int) -> None:
        """Code symbols (n,) in 0..size-1, all alike."""
        self._coder.encode(np.ascontiguousarray(symbols, np.int32), _models().Uniform(size))

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
        self._coder = _coders().RangeDecoder(words)

    def get(self, table: np.ndarray) -> np.ndarray:
        """Decode one symbol by each row of frequencies less one (n, size), which sum to 2^24 - size -> int64 (n,)."""
        return self._decode(_models().Categorical(perfect=False), table)

    def get_bits(self, ones: np.ndarray) -> np.ndarray:
        """Decode bits by the probabilities of a 1, as in `put_bits` -> int64 (n,)."""
        return self.get(_bit_tables(ones))

    def get_uniform(self, size: int, n: int) -> np.ndarray:
        """Decode n symbols in 0..size-1, all alike -> int64 (n,)."""
        return self._decode(_models().Uniform(size), n)

    def _decode(self, model: Any, table: np.ndarray | int) -> np.ndarray:
        try:
            symbols: np.ndarray = self._coder.decode(model, table)
        except (ValueError, AssertionError) as error:
            raise DamageError("a stream cannot be decoded: its words are damaged; fetch the archive again") from error
        return symbols.astype(np.int64, copy=False)


def _coders() -> Any:
    return constriction.queue if constriction else rangecoder


def _models() -> Any:
    return constriction.model if constriction else rangecoder


def _bit_tables(ones: np.ndarray) -> np.ndarray:
    """Probabilities of a 1 (n,) in 2^-16 -> frequencies less one of a 0 and a 1 (n, 2), which sum to 2^24 - 2."""
    tables = np.empty((len(ones), 2))
    np.multiply(ones, 1 << (PRECISION - BIT_PRECISION), out=tables[:, 1])
    np.subtract((1 << PRECISION) - 1, tables[:, 1], out=tables[:, 0])
    tables[:, 1] -= 1
    return tables
