"""Arrays in .npy files. Nothing is ever unpickled."""

from __future__ import annotations

import os
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..runtime.errors import InputError
from .files import open_file
from .messages import unreadable
from .segments import Grid, SegmentSource, find_grid

_MAGIC = b"\x93NUMPY"


def array_in_file(path: Path, name: str, grid: Grid | None) -> SegmentSource | None:
    """The segment in a file, or None if it is not a .npy file by its name nor by its first bytes. Raises InputError."""
    named = name.lower().endswith(".npy")
    if not named and not os.path.isfile(path) and os.path.exists(path):
        return None  # such as a named pipe, which must not be opened
    try:
        with open_file(path) as handle:
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
        raise unreadable(path, error) from error
    grid = find_grid(str(path), dtype, shape, grid)
    expected = start + dtype.itemsize * prod(shape)
    if size < expected:
        raise InputError(f"{path}: expected {expected} bytes for {shape} {dtype}, found {size}; the file is truncated")
    if size > expected:
        raise InputError(
            f"{path}: expected {expected} bytes for {shape} {dtype}, found {size}; remove what follows the array"
        )
    return SegmentSource(name, dtype, shape, grid, path, start, fortran)


def read_header(label: str, handle: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read an open .npy file up to its values: (shape, whether in Fortran order, dtype). Raises InputError."""
    try:
        version = np.lib.format.read_magic(handle)
        if version not in ((1, 0), (2, 0)):
            raise InputError(
                f"{label}: expected a .npy header of version 1.0 or 2.0, found {version[0]}.{version[1]}; "
                "arrays of ids have no other"
            )
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(handle)
    except InputError:
        raise
    except Exception as error:  # numpy raises many kinds, even SyntaxError, for a header that cannot be parsed
        raise InputError(f"{label}: the .npy header cannot be read; the file is truncated or damaged") from error
    if not all(type(n) is int for n in shape):  # numpy takes True for a number
        raise InputError(f"{label}: the .npy header's shape is not of integers; the file is damaged")
    return shape, fortran, dtype
