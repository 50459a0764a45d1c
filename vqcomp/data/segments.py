"""Segments: arrays of ids to compress, wherever they lie."""

from __future__ import annotations

import operator
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.errors import InputError
from ..runtime.layout import TOKENS_LIMIT
from ..runtime.spec import TokenSpec
from .messages import reason, unreadable

VOCABULARY_LIMIT = 1 << 16
KNOWN_GRIDS = {128: (8, 16)}
"""Grids that are meant where an array has only their number of tokens per frame."""
READ_TOKENS = 1 << 20
"""Tokens in memory at a time where an array is only looked through."""

Grid = tuple[int, int]
"""(H, W) of a frame."""


@dataclass(frozen=True)
class SegmentSource:
    """One array of ids, in a file or in memory. Its shape is known; its values are read when they are asked for.

    shape is (T, H, W) or (T, H * W). In a file the values begin at byte `start`, in Fortran order if `fortran`.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    grid: Grid
    source: Path | np.ndarray
    start: int = 0
    fortran: bool = False
    spec: TokenSpec | None = None
    """What its data set says of its tokens; None where only the ids tell."""
    file: str | None = None
    """The raw file that it is a part of, in which segments follow one another; None for an array of its own."""

    @property
    def label(self) -> str:
        """What messages call it."""
        return repr(self.name) if isinstance(self.source, np.ndarray) else str(self.source)

    @property
    def in_place(self) -> bool:
        """Whether its values lie as they are at `start` of `source`, and can be mapped."""
        return True

    @property
    def frames(self) -> int:
        """T."""
        return self.shape[0]

    @property
    def tokens(self) -> int:
        """T * H * W."""
        return prod(self.shape)

    def array(self) -> np.ndarray:
        """The array just as it is, in its dtype and shape. Raises InputError if it can no longer be read."""
        if isinstance(self.source, np.ndarray):
            return self.source
        values, done = np.empty(self.tokens, self.dtype), 0
        for part in self._parts():
            values[done : done + part.size] = part
            done += part.size
        return values.reshape(self.shape, order="F" if self.fortran else "C")

    def read_frames(self, frames: slice) -> np.ndarray:
        """Frames one after another of an array in C order that is `in_place` in a file, (frames, H, W) or (frames,
        H * W), and nothing else of it. Raises InputError."""
        first, last, _ = frames.indices(self.frames)
        per_frame = self.tokens // self.frames
        count = (last - first) * per_frame
        assert isinstance(self.source, Path)
        try:
            offset = self.start + first * per_frame * self.dtype.itemsize
            values = np.fromfile(self.source, self.dtype, count, offset=offset)
        except OSError as error:
            raise unreadable(self.label, error) from error
        if values.size != count:
            raise InputError(f"{self.label}: expected {self.shape} values; the file got shorter while it was read")
        return values.reshape(last - first, *self.shape[1:])

    def maximum(self) -> int:
        """The largest id. Raises InputError unless all are in the vocabulary, or in 0..65535."""
        return self.scan()[0]

    def scan(self) -> tuple[int, int]:
        """(the largest id, the CRC-32 of all values as they lie in the file). Raises as `maximum`."""
        low, high, checksum = 0, 0, 0
        for part in self._parts():
            low, high = min(low, int(part.min())), max(high, int(part.max()))
            checksum = zlib.crc32(np.ascontiguousarray(part).data, checksum)
        self.check_range(low, high)
        return high, checksum

    def check_range(self, low: int, high: int) -> None:
        """Raise InputError unless the smallest and the largest id are in the vocabulary, or in 0..65535."""
        limit = self.spec.vocabulary if self.spec else VOCABULARY_LIMIT
        if low < 0 or high >= limit:
            found = low if low < 0 else high
            raise InputError(f"{self.label}: expected ids in 0..{limit - 1}, found {found}")

    def tokens_of(self, spec: TokenSpec) -> np.ndarray:
        """Its int32 factors (T, S, F). Raises InputError if an id is outside the vocabulary: the file has changed."""
        ids = self.array().astype(np.int64).reshape(self.frames, spec.positions)  # (T, S)
        if ids.min() < 0 or ids.max() >= spec.vocabulary:
            raise InputError(
                f"{self.label}: expected ids in 0..{spec.vocabulary - 1}; the file changed while it was read"
            )
        return spec.split(ids).astype(np.int32)

    def _parts(self) -> Iterator[np.ndarray]:
        """The values, flat, in the order in which they lie in the file, at most READ_TOKENS at a time."""
        if isinstance(self.source, np.ndarray):
            yield self.source
            return
        try:
            with open(self.source, "rb") as handle:  # a regular file: that was seen when it was found
                handle.seek(self.start)
                left = self.tokens
                while left:
                    part = np.fromfile(handle, self.dtype, min(left, READ_TOKENS))
                    if not part.size:
                        raise InputError(
                            f"{self.label}: expected {self.shape} values; the file got shorter while it was read"
                        )
                    left -= part.size
                    yield part
        except OSError as error:
            raise unreadable(self.source, error) from error


def array_in_memory(name: str, array: np.ndarray, grid: Grid | None) -> SegmentSource:
    """The segment that an array, or what NumPy makes one of, is. Raises InputError."""
    if not isinstance(name, str):
        raise InputError(f"expected names of type str, found one of type {type(name).__name__}")
    try:
        array = np.asarray(array)
    except (ValueError, TypeError) as error:
        raise InputError(f"{name!r}: expected an array of integers: {reason(error)}") from error
    return SegmentSource(name, array.dtype, array.shape, find_grid(repr(name), array.dtype, array.shape, grid), array)


def find_grid(label: str, dtype: np.dtype[Any], shape: tuple[int, ...], grid: Grid | None) -> Grid:
    """The grid of an array's frames; `grid` is what the user says. Raises InputError unless it can hold a segment."""
    if dtype.kind not in "iu":
        kinds = {"O": "objects, which are never unpickled", "V": "records"}
        raise InputError(f"{label}: expected an array of integers, found {kinds.get(dtype.kind, str(dtype))}")
    if len(shape) not in (2, 3):
        raise InputError(f"{label}: expected a shape (T, H, W) or (T, H * W), found {shape}")
    if min(shape) < 1:
        raise InputError(f"{label}: expected at least one frame of at least one token, found the shape {shape}")
    if prod(shape) > TOKENS_LIMIT:
        raise InputError(f"{label}: expected at most {TOKENS_LIMIT} tokens, found {prod(shape)}; split it")
    if len(shape) == 3:
        return shape[1], shape[2]
    if grid and prod(grid) == shape[1]:
        return grid
    if shape[1] in KNOWN_GRIDS:
        return KNOWN_GRIDS[shape[1]]
    found = f"--grid is {grid[0]}x{grid[1]}" if grid else "no --grid HxW says how they lie"
    raise InputError(f"{label}: {shape[1]} tokens per frame, but {found}; give the grid of its frames")


def check_grid(grid: Any) -> Grid | None:
    """The grid that a caller gives, or None if none. Raises InputError unless it is two positive integers."""
    if grid is None:
        return None
    try:
        height, width = (operator.index(n) for n in grid)
        if min(height, width) > 0:
            return height, width
    except (TypeError, ValueError):
        pass
    raise InputError("grid: expected two positive integers (H, W) such as (8, 16), found something else")
