"""Where segments come from: .npy files, folders of them, and arrays. Nothing is ever unpickled."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .runtime.archive import TOKENS_LIMIT, check_name
from .runtime.errors import InputError, UnsafeNameError
from .runtime.spec import TokenSpec

COMMAVQ = TokenSpec(8, 16, (1024,))
VOCABULARY_LIMIT = 1 << 16
KNOWN_GRIDS = {128: (8, 16)}
"""Grids that are meant where an array has only their number of tokens per frame."""
_MAGIC = b"\x93NUMPY"
_BLOCK = 1 << 20
"""Tokens read at a time where an array is only looked through."""

Grid = tuple[int, int]
Data = str | os.PathLike[str] | Mapping[str, np.ndarray]


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
        """The largest id, read in blocks. Raises InputError unless all are in 0..65535."""
        low, high = VOCABULARY_LIMIT, -1
        for block in self._blocks():
            low, high = min(low, int(block.min())), max(high, int(block.max()))
        if low < 0 or high >= VOCABULARY_LIMIT:
            found = low if low < 0 else high
            raise InputError(f"{self.label}: expected ids in 0..{VOCABULARY_LIMIT - 1}, found {found}")
        return high

    def tokens_of(self, spec: TokenSpec) -> np.ndarray:
        """Its int32 factors (T, S, F). Raises InputError if an id is outside the vocabulary: the file has changed."""
        ids = self.array().astype(np.int64).reshape(self.frames, spec.positions)
        if ids.min() < 0 or ids.max() >= spec.vocabulary:
            raise InputError(
                f"{self.label}: expected ids in 0..{spec.vocabulary - 1}; the file changed while it was read"
            )
        factors = []
        for size in spec.factors:
            factors.append(ids % size)
            ids = ids // size
        return np.stack(factors, -1).astype(np.int32)

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
                    block = np.fromfile(handle, self.dtype, min(left, _BLOCK))
                    if not block.size:
                        raise InputError(
                            f"{self.label}: expected {self.shape} values; the file got shorter while it was read"
                        )
                    left -= block.size
                    yield block
        except OSError as error:
            raise InputError(f"{self.label}: cannot be read: {error.strerror or error}") from error


def find_segments(data: Data, grid: Grid | None = None) -> tuple[list[Segment], list[str]]:
    """Every segment of `data`, sorted by name, and the names of other files in the folder, which were left out.

    data: a .npy file, a folder of them at any depth, or a mapping from names to arrays. Of files only headers are read;
    one without the suffix is known by its first bytes. A file's name is its path inside the folder. `grid` is (H, W) of
    arrays (T, H * W); for 128 tokens per frame it is known to be (8, 16).
    Raises InputError, naming the file, for whatever is not an array of ids; UnsafeNameError for names that cannot be
    restored everywhere.
    """
    skipped: list[str] = []
    if isinstance(data, Mapping):
        segments = [_in_memory(name, array, grid) for name, array in data.items()]
    else:
        path = Path(data)
        if path.is_dir():
            segments = []
            for file, name in _walk(path):
                found = _in_file(file, name, grid)
                segments.append(found) if found else skipped.append(name)
        else:
            found = _in_file(path, path.name, grid)
            if not found:
                raise InputError(f"{path}: expected a .npy file (numpy.save) or a folder of them, found neither")
            segments = [found]
    if not segments:
        raise InputError(
            f"{data}: expected .npy files inside, found none" if skipped else f"{data}: found no segments, it is empty"
        )
    segments.sort(key=lambda s: s.name)
    check_names([s.name for s in segments])
    return segments, skipped


def check_names(names: Iterable[str]) -> None:
    """Raise InputError unless all names are safe, and each can be a file beside the others on every system."""
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for name in names:
        try:
            check_name(name)
        except UnsafeNameError as error:
            raise InputError(f"{error}; rename it") from error
        key = unicodedata.normalize("NFC", name).casefold()
        if key in files:
            raise InputError(
                f"duplicate names: {files[key]!r} and {name!r} are one file where case does not count; rename one"
            )
        files[key] = name
        while "/" in key:
            key = key.rpartition("/")[0]
            folders[key] = name
    for key in files.keys() & folders.keys():
        raise InputError(f"duplicate names: {files[key]!r} is a file and, in {folders[key]!r}, a folder; rename one")


def find_specs(segments: Sequence[Segment], maxima: Sequence[int], known: Sequence[TokenSpec]) -> list[TokenSpec]:
    """The TokenSpec of each segment: the first of `known` that it fits, else that of all such segments of its grid.

    The latter's vocabulary is the largest id + 1.
    """
    specs: list[TokenSpec | None] = []
    largest: dict[Grid, int] = {}
    for segment, maximum in zip(segments, maxima):
        fitting = (k for k in known if (k.height, k.width) == segment.grid and maximum < k.vocabulary)
        specs.append(next(fitting, None))
        if specs[-1] is None:
            largest[segment.grid] = max(maximum, largest.get(segment.grid, 1))
    return [spec or TokenSpec(*s.grid, (largest[s.grid] + 1,)) for s, spec in zip(segments, specs)]


def _walk(folder: Path) -> Iterable[tuple[Path, str]]:
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


def _in_file(path: Path, name: str, grid: Grid | None) -> Segment | None:
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
            shape, fortran, dtype = _header(path, handle)
            start = handle.tell()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    grid = _check(str(path), dtype, shape, grid)
    expected = start + dtype.itemsize * prod(shape)
    if size < expected:
        raise InputError(f"{path}: expected {expected} bytes for {shape} {dtype}, found {size}; the file is truncated")
    if size > expected:
        raise InputError(
            f"{path}: expected {expected} bytes for {shape} {dtype}, found {size}; remove what follows the array"
        )
    return Segment(name, dtype, shape, grid, path, start, fortran)


def _header(path: Path, handle: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(handle)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(handle)
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(handle)
    except Exception as error:  # numpy raises many kinds, even SyntaxError, for a header that cannot be parsed
        raise InputError(
            f"{path}: the .npy header cannot be read, the file is truncated or damaged: {error}"
        ) from error
    raise InputError(
        f"{path}: expected a .npy header of version 1.0 or 2.0, found {version}; arrays of ids have no other"
    )


def _in_memory(name: str, array: np.ndarray, grid: Grid | None) -> Segment:
    array = np.asarray(array)
    return Segment(name, array.dtype, array.shape, _check(repr(name), array.dtype, array.shape, grid), array)


def _check(label: str, dtype: np.dtype[Any], shape: tuple[int, ...], grid: Grid | None) -> Grid:
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
