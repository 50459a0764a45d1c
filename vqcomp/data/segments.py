"""Segments of ids: arrays in memory and .npy files, and what makes them fit to compress. Nothing is ever unpickled."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..runtime.errors import InputError, UnsafeNameError
from ..runtime.layout import TOKENS_LIMIT
from ..runtime.names import check_name
from ..runtime.spec import TokenSpec

COMMAVQ = TokenSpec(8, 16, (1024,))
VOCABULARY_LIMIT = 1 << 16
KNOWN_GRIDS = {128: (8, 16)}
"""Grids that are meant where an array has only their number of tokens per frame."""
_MAGIC = b"\x93NUMPY"
BLOCK = 1 << 20
"""Tokens read at a time where an array is only looked through."""

Grid = tuple[int, int]
Bad = Callable[["InputError"], None]
"""Called with what is wrong with one piece of the data: raises it, or notes it and lets the rest go on."""


@dataclass(frozen=True)
class Segment:
    """One array of ids, in a file or in memory; reading its shape does not read its values.

    shape is (T, H, W) or (T, H * W); `start` and `fortran` say where and how the values lie in the file.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    grid: Grid
    source: Path | np.ndarray
    start: int = 0
    fortran: bool = False
    spec: TokenSpec | None = None
    """What its data set says that its tokens are; None where nothing says it but the ids."""
    file: str | None = None
    """The raw file that it is a part of, in which segments follow one another; None for an array of its own."""

    @property
    def label(self) -> str:
        """What messages call it."""
        return repr(self.name) if isinstance(self.source, np.ndarray) else str(self.source)

    @property
    def frames(self) -> int:
        return self.shape[0]

    @property
    def tokens(self) -> int:
        return prod(self.shape)

    def array(self) -> np.ndarray:
        """The array just as it is. Raises InputError if it cannot be read any more."""
        if isinstance(self.source, np.ndarray):
            return self.source
        values, done = np.empty(self.tokens, self.dtype), 0
        for block in self._blocks():
            values[done : done + block.size] = block
            done += block.size
        return values.reshape(self.shape, order="F" if self.fortran else "C")

    def maximum(self) -> int:
        """The largest id, read in blocks. Raises InputError unless all are in the vocabulary, or in 0..65535."""
        low, high = 0, 0
        for block in self._blocks():
            low, high = min(low, int(block.min())), max(high, int(block.max()))
        self.check_range(low, high)
        return high

    def check_range(self, low: int, high: int) -> None:
        """Raise InputError unless the smallest and the largest id are in the vocabulary, or in 0..65535."""
        limit = self.spec.vocabulary if self.spec else VOCABULARY_LIMIT
        if low < 0 or high >= limit:
            found = low if low < 0 else high
            raise InputError(f"{self.label}: expected ids in 0..{limit - 1}, found {found}")

    def tokens_of(self, spec: TokenSpec) -> np.ndarray:
        """Its int32 factors (T, S, F). Raises InputError if an id is outside the vocabulary: the file has changed."""
        ids = self.array().astype(np.int64).reshape(self.frames, spec.positions)
        if ids.min() < 0 or ids.max() >= spec.vocabulary:
            raise InputError(
                f"{self.label}: expected ids in 0..{spec.vocabulary - 1}; the file changed while it was read"
            )
        return split_ids(ids, spec.factors).astype(np.int32)

    def _blocks(self) -> Iterable[np.ndarray]:
        """The values, flat, in blocks in the order in which they lie in the file."""
        if isinstance(self.source, np.ndarray):
            yield self.source
            return
        try:
            with open(self.source, "rb") as handle:
                handle.seek(self.start)
                left = self.tokens
                while left:
                    block = np.fromfile(handle, self.dtype, min(left, BLOCK))
                    if not block.size:
                        raise InputError(
                            f"{self.label}: expected {self.shape} values; the file got shorter while it was read"
                        )
                    left -= block.size
                    yield block
        except OSError as error:
            raise InputError(f"{self.label}: cannot be read: {error.strerror or error}") from error


def split_ids(ids: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """Ids (...) -> their factors (..., F), the first varying fastest."""
    split = []
    for size in factors:
        split.append(ids % size)
        ids = ids // size
    return np.stack(split, -1)


class Names:
    """Names of files to restore, checked one by one: each must be safe, and a file of its own on every system."""

    def __init__(self) -> None:
        self._files: dict[str, str] = {}
        self._folders: dict[str, str] = {}

    def add(self, name: str, label: str = "") -> None:
        """Take one more. Raises InputError, which starts with `label`, if it clashes with an earlier one."""
        label = label and f"{label}: "
        try:
            check_name(name)
        except UnsafeNameError as error:
            raise InputError(f"{label}{error}; rename it") from error
        key = unicodedata.normalize("NFC", name).casefold()
        above = [key[:i] for i, c in enumerate(key) if c == "/"]
        if key in self._files:
            raise InputError(
                f"{label}duplicate names: {self._files[key]!r} and {name!r} are one file where case does not count; "
                "rename one"
            )
        clash = next((folder for folder in above if folder in self._files), None)
        if clash or key in self._folders:
            file, inside = (self._files[clash], name) if clash else (name, self._folders[key])
            raise InputError(f"{label}duplicate names: {file!r} is a file and, in {inside!r}, a folder; rename one")
        self._files[key] = name
        self._folders.update(dict.fromkeys(above, name))


def find_specs(segments: Sequence[Segment], maxima: Sequence[int], known: Sequence[TokenSpec]) -> list[TokenSpec]:
    """The TokenSpec of each segment: its own, or the first of `known` that it fits, or that of its grid.

    The vocabulary of a grid is the largest id + 1 of all segments of that grid that fit nothing else.
    """
    specs: list[TokenSpec | None] = []
    largest: dict[Grid, int] = {}
    for segment, maximum in zip(segments, maxima):
        fitting = (k for k in known if (k.height, k.width) == segment.grid and maximum < k.vocabulary)
        specs.append(segment.spec or next(fitting, None))
        if specs[-1] is None:
            largest[segment.grid] = max(maximum, largest.get(segment.grid, 1))
    return [spec or TokenSpec(*s.grid, (largest[s.grid] + 1,)) for s, spec in zip(segments, specs)]


def walk(folder: Path) -> Iterable[tuple[Path, str]]:
    """(file, name) of all files at any depth, through links to folders too. Raises InputError at a loop of links."""
    stack: list[tuple[Path, str, frozenset[tuple[int, int]]]] = [(folder, "", frozenset())]
    while stack:
        here, prefix, above = stack.pop()
        try:
            status = here.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                raise InputError(f"{here}: this link leads back to a folder above it; remove the loop")
            entries = sorted(os.scandir(here), key=lambda e: e.name)
        except OSError as error:
            raise InputError(f"{here}: cannot be read: {error.strerror}") from error
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir():
                stack.append((Path(entry.path), name + "/", above | {identity}))
            else:
                yield Path(entry.path), name


def array_in_file(path: Path, name: str, grid: Grid | None) -> Segment | None:
    """The segment in a file, or None if it is not a .npy file by its name nor by its first bytes."""
    named = name.lower().endswith(".npy")
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            if named:
                raise InputError(f"{path}: expected a regular file")
            return None
        with open(path, "rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            if handle.read(len(_MAGIC)) != _MAGIC:
                if named:
                    found = "an empty file" if not size else "other data"
                    raise InputError(f"{path}: expected a .npy file (numpy.save), found {found}")
                return None
            handle.seek(0)
            shape, fortran, dtype = read_header(str(path), handle)
            start = handle.tell()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    grid = check_array(str(path), dtype, shape, grid)
    expected = start + dtype.itemsize * prod(shape)
    if size < expected:
        raise InputError(f"{path}: expected {expected} bytes for {shape} {dtype}, found {size}; the file is truncated")
    if size > expected:
        raise InputError(
            f"{path}: expected {expected} bytes for {shape} {dtype}, found {size}; remove what follows the array"
        )
    return Segment(name, dtype, shape, grid, path, start, fortran)


def read_header(label: str, handle: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, whether in Fortran order, dtype) of an open .npy file, up to its values. Raises InputError."""
    try:
        version = np.lib.format.read_magic(handle)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(handle)
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(handle)
    except Exception as error:  # numpy raises many kinds, even SyntaxError, for a header that cannot be parsed
        raise InputError(
            f"{label}: the .npy header cannot be read, the file is truncated or damaged: {error}"
        ) from error
    raise InputError(
        f"{label}: expected a .npy header of version 1.0 or 2.0, found {version}; arrays of ids have no other"
    )


def array_in_memory(name: str, array: np.ndarray, grid: Grid | None) -> Segment:
    """The segment that an array is. Raises InputError."""
    array = np.asarray(array)
    return Segment(name, array.dtype, array.shape, check_array(repr(name), array.dtype, array.shape, grid), array)


def check_array(label: str, dtype: np.dtype[Any], shape: tuple[int, ...], grid: Grid | None) -> Grid:
    """The grid of an array. Raises InputError unless it can hold a segment."""
    if dtype.kind not in "iu":
        kind = "objects, which are never unpickled" if dtype.hasobject else str(dtype)
        raise InputError(f"{label}: expected an array of integers, found {kind}")
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
