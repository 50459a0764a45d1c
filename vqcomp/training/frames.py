"""Tokens read from their files as they are needed: training draws windows of data of any size, never holding all."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..data.segments import SegmentSource
from ..runtime.errors import InputError
from ..runtime.spec import TokenSpec


class Frames(Protocol):
    """T frames whose slices are integers (frames, S, F): an array (T, S, F), or tokens on disk."""

    def __len__(self) -> int: ...
    def __getitem__(self, frames: slice, /) -> np.ndarray: ...


@dataclass(frozen=True)
class StoredFrames:
    """The frames of ids (T, S) of `dtype` at byte `start` of a file, or in an array."""

    source: Path | np.ndarray
    dtype: np.dtype[Any]
    start: int
    shape: tuple[int, ...]
    """(T, H, W) or (T, H * W)"""
    fortran: bool
    spec: TokenSpec
    label: str

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, frames: slice, /) -> np.ndarray:
        """int64 (frames, S, F). Raises InputError if the file is not what it was any more."""
        if isinstance(self.source, np.ndarray):
            ids = self.source[frames]
        else:
            # Mapped anew each time, which takes 60 us: a process may not keep thousands of files open.
            order: Any = "F" if self.fortran else "C"
            try:
                ids = np.memmap(self.source, self.dtype, "r", self.start, self.shape, order)[frames]
            except (OSError, ValueError) as error:
                raise InputError(f"{self.label}: cannot be read any more: {error}") from error
        ids = ids.reshape(-1, self.spec.positions).astype(np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.spec.vocabulary:
            raise InputError(
                f"{self.label}: expected ids in 0..{self.spec.vocabulary - 1}, found {ids.min()} to {ids.max()}"
            )
        return self.spec.split(ids)


@dataclass(frozen=True)
class Subset:
    """Every so many frames of others, from `first` on."""

    frames: Frames
    first: int
    every: int

    def __len__(self) -> int:
        return len(range(self.first, len(self.frames), self.every))

    def __getitem__(self, frames: slice, /) -> np.ndarray:
        chosen = range(self.first, len(self.frames), self.every)[frames]
        return self.frames[chosen.start : chosen.stop : chosen.step]


@contextmanager
def stored(segments: Sequence[SegmentSource], spec: TokenSpec, folder: Path) -> Iterator[list[Frames]]:
    """The frames of segments, read from their files; those in shards and archives go to a temporary file in `folder`.

    That file takes 2 bytes a token, 4 for more than 65,536 ids, and is removed at the end. Raises InputError.
    """
    packed = [s for s in segments if not s.in_place]
    with ExitStack() as stack:
        dtype, starts, path = np.dtype("<u2" if spec.vocabulary <= 1 << 16 else "<u4"), {}, folder
        if packed:
            place = tempfile.TemporaryDirectory(prefix=".vqcomp-", dir=folder, ignore_cleanup_errors=True)
            path = Path(stack.enter_context(place)) / "tokens.bin"
            starts = _unpack(packed, path, dtype)
        yield [
            StoredFrames(path, dtype, starts[s.name], s.shape, False, spec, s.label)
            if s.name in starts
            else StoredFrames(s.source, s.dtype, s.start, s.shape, s.fortran, spec, s.label)
            for s in segments
        ]


def _unpack(segments: Sequence[SegmentSource], path: Path, dtype: np.dtype[Any]) -> dict[str, int]:
    """Write the ids of segments one after another; name -> offset in bytes."""
    need, free = sum(s.tokens for s in segments) * dtype.itemsize, shutil.disk_usage(path.parent).free
    if need > free:
        raise InputError(f"{path.parent.parent}: too little disk: {need:,} bytes are needed, {free:,} are free")
    starts = {}
    try:
        with open(path, "wb") as handle:
            for segment in segments:
                starts[segment.name] = handle.tell()
                handle.write(np.ascontiguousarray(segment.array(), dtype).tobytes())
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise InputError(f"{path.parent.parent}: cannot be written: {reason}") from error
    return starts
