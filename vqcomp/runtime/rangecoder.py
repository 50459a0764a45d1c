"""A range coder in Python: stands in for constriction where that cannot be had, with the same bytes.

It has what `coder.py` uses of constriction 0.5.0, by the same names: a coder of 32-bit words with a state of 64 bits,
and two models of symbols, with probabilities in 2^-24. The method is G. N. N. Martin's ("Range encoding", 1979);
FORMAT.md, section 4, describes the stream.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import numpy as np

ALL = 1 << 24
WORD = 1 << 32


class RangeEncoder:
    """Writes symbols by their intervals."""

    def __init__(self) -> None:
        # The interval is [low, low + range). Words may be up to 2^33: what is above 32 bits is a carry into the word
        # before, and waits until the end.
        self._low, self._range, self._words = 0, (1 << 64) - 1, list[int]()

    def encode(self, symbols: np.ndarray, model: Categorical | Uniform, table: Any = None) -> None:
        """Code integers (n,) by the model; a Categorical takes its tables (n, size), one a symbol."""
        starts, widths = model.intervals(np.asarray(symbols, np.int64), table)
        low, range_, words = self._low, self._range, self._words
        for start, width in zip(starts.tolist(), widths.tolist()):
            scale = range_ >> 24
            low += scale * start
            range_ = scale * width
            if range_ < WORD:
                words.append(low >> 32)
                low = (low & 0xFFFFFFFF) << 32
                range_ <<= 32
        self._low, self._range = low, range_

    def get_compressed(self) -> np.ndarray:
        """The stream so far: uint32 words, as few as name a point in the interval, whatever words follow."""
        words = list(self._words)
        if self._range < (1 << 64) - 1:  # nothing coded is no word
            point = (self._low + WORD - 1) >> 32
            words.append(point)
            if (self._low + self._range) >> 32 == point:
                words.append(0)
        carry = 0
        for i in reversed(range(len(words))):
            carry, words[i] = divmod(words[i] + carry, WORD)
        return np.array(words, np.uint32)


class RangeDecoder:
    """Reads symbols from uint32 words. Raises ValueError for what no encoder writes."""

    def __init__(self, words: np.ndarray) -> None:
        self._words = iter(words.tolist())
        self._range = (1 << 64) - 1
        self._offset = next(self._words, 0) << 32 | next(self._words, 0)
        """Where in the interval the stream's point lies: below _range, unless the stream is damaged."""

    def decode(self, model: Categorical | Uniform, table: Any) -> np.ndarray:
        """One symbol by each of a Categorical's tables (n, size), or n symbols by a Uniform -> int64 (n,)."""
        if isinstance(model, Uniform):
            bounds = [i * model.width for i in range(model.size)]
            symbols = self._find([*bounds, ALL], repeat(0, table), model.size)
        elif table.shape[1] == 2:
            symbols = self._split((table[:, 0].astype(np.int64) + 1).tolist())
        else:
            n, size = table.shape
            symbols = self._find(table_bounds(table).ravel().data, range(0, n * (size + 1), size + 1), size)
        self._require_inside(self._offset, self._range)
        return np.array(symbols, np.int64)

    def _split(self, zeros: list[int]) -> list[int]:
        """A bit for each frequency of a 0."""
        offset, range_, words, bits = self._offset, self._range, self._words, []
        for zero in zeros:
            scale = range_ >> 24
            split = scale * zero
            if offset < split:
                range_ = split
                bits.append(0)
            else:
                offset -= split
                range_ = (scale << 24) - split
                bits.append(1)
            if range_ < WORD:
                self._require_inside(offset, range_)
                offset, range_ = offset << 32 | next(words, 0), range_ << 32
        self._offset, self._range = offset, range_
        return bits

    def _find(self, bounds: Sequence[int] | memoryview, firsts: Iterable[int], size: int) -> list[int]:
        """A symbol for each of firsts, where in bounds the bounds of its intervals begin."""
        offset, range_, words, symbols = self._offset, self._range, self._words, []
        for first in firsts:
            scale = range_ >> 24
            i = bisect_right(bounds, offset // scale, first, first + size) - 1
            start = bounds[i]
            offset -= scale * start
            range_ = scale * (bounds[i + 1] - start)
            symbols.append(i - first)
            if range_ < WORD:
                self._require_inside(offset, range_)
                offset, range_ = offset << 32 | next(words, 0), range_ << 32
        self._offset, self._range = offset, range_
        return symbols

    def _require_inside(self, offset: int, range_: int) -> None:
        # What lies beyond all intervals was taken for the last one's, and stays beyond.
        if offset >= range_:
            raise ValueError("words that no encoder writes")


class Categorical:
    """Symbols by tables (n, size), each of frequencies less one, integers >= 0 that sum to 2^24 - size.

    Such tables are taken as they are, as constriction's Categorical(perfect=False) takes them.
    """

    def __init__(self, perfect: bool) -> None:
        pass

    def intervals(self, symbols: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each symbol's interval starts, and its width, in 2^-24."""
        bounds, rows = table_bounds(table), np.arange(len(symbols))
        low = bounds[rows, symbols]
        return low, bounds[rows, symbols + 1] - low


class Uniform:
    """Symbols 0..size - 1, all alike; what a division leaves over goes to the last one."""

    def __init__(self, size: int) -> None:
        self.size, self.width = size, ALL // size

    def intervals(self, symbols: np.ndarray, _: None) -> tuple[np.ndarray, np.ndarray]:
        """As of a Categorical."""
        low = symbols * self.width
        return low, np.where(symbols == self.size - 1, ALL - low, self.width)


def table_bounds(table: np.ndarray) -> np.ndarray:
    """A Categorical's tables (n, size) -> the bounds of its intervals, int64 (n, size + 1)."""
    bounds = np.zeros((len(table), table.shape[1] + 1), np.int64)
    np.cumsum(table.astype(np.int64) + 1, 1, out=bounds[:, 1:])
    return bounds
