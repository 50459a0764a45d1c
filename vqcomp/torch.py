"""Tokens for those who train on them with torch: windows of frames, out of archives, folders or shards."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from .archive.as_data import ArchivedSource, find_segments
from .data.cache import Cache
from .data.segments import Grid, SegmentSource
from .data.sources import Data, label
from .runtime.compute import Compute
from .runtime.errors import DependencyError, InputError

try:
    import torch
    from torch.utils.data import Dataset
except ImportError as error:  # pragma: no cover
    raise DependencyError("vqcomp.torch needs torch: pip install torch") from error

CACHE_BYTES = 1 << 30


class Frames(Dataset[torch.Tensor]):
    """A map-style data set of windows: int64 tensors (frames, H, W) of ids, from segments of one grid.

    path: what `vqcomp.compress` takes: an archive of vqcomp's, a .npy file, a folder of them, a shard, several of
    these. A window lies within one segment; the windows of a segment begin every `stride` frames, by default one after
    another; what is left at its end, and a segment shorter than a window, are left out. `grid` is as for compress.

    In .npy files and 1X's folders a window is read where it lies. Archives are decoded a group of segments at a time,
    and shards read a segment at a time: these are kept, in their own dtype, within `cache_bytes` in each process that
    reads (the group last decoded is kept in any case), the least recently used going first. So a shuffled pass decodes
    a group once where all fit, and again and again where they do not: then let a batch come from neighbouring windows.

    Works in a DataLoader with workers, forked or spawned, and with a distributed sampler. `compute` says where archives
    are decoded: by default on the CPU, with one thread. Raises InputError.
    """

    def __init__(
        self,
        path: Data,
        frames: int = 16,
        *,
        stride: int | None = None,
        grid: Grid | None = None,
        cache_bytes: int = CACHE_BYTES,
        compute: Compute | None = None,
    ) -> None:
        stride = frames if stride is None else stride
        for name, value, least in (("frames", frames, 1), ("stride", stride, 1), ("cache_bytes", cache_bytes, 0)):
            if type(value) is not int or value < least:
                raise InputError(f"{name}: expected an integer of at least {least}, found {value}")
        self.frames, self.stride, self._cache = frames, stride, Cache(cache_bytes)
        compute = compute or Compute("cpu", threads=1, jobs=1, batch_size=1)
        self.segments: Sequence[SegmentSource] = find_segments(path, grid, compute=compute, cache=self._cache).segments
        grids = sorted({s.grid for s in self.segments})
        if len(grids) > 1:
            found = " and ".join(f"{h}x{w}" for h, w in grids[:2])
            raise InputError(f"{label(path)}: expected frames of one grid, found {found}; choose among them")
        self.grid = grids[0]
        windows = [max(0, (s.frames - frames) // stride + 1) for s in self.segments]
        self._ends = list(accumulate(windows))
        """For each segment, how many windows it and those before it have."""
        if not self._ends[-1]:
            longest = max(s.frames for s in self.segments)
            raise InputError(f"{label(path)}: no segment has a window of {frames} frames; the longest has {longest}")

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> torch.Tensor:
        """A window, int64 (frames, H, W). Raises IndexError, or InputError if its segment cannot be read."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        index = int(index) % len(self)
        which = bisect_right(self._ends, index)
        segment, before = self.segments[which], self._ends[which - 1] if which else 0
        first = (index - before) * self.stride
        ids = self._read(segment, which, slice(first, first + self.frames))
        return torch.from_numpy(ids.reshape(self.frames, *self.grid).astype(np.int64))

    def _read(self, segment: SegmentSource, which: int, frames: slice) -> np.ndarray:
        if isinstance(segment.source, np.ndarray) or isinstance(segment, ArchivedSource):
            return segment.array()[frames]  # an archive keeps what it has decoded in the cache
        if segment.in_place and not segment.fortran:
            return segment.read_frames(frames)
        if not (kept := self._cache.get(which)):
            self._cache.add({which: (kept := [segment.array()])})
        return kept[0][frames]
