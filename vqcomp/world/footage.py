"""The frames that 1X's metric reads: those of one of their folders, or of an archive of one, which is not unpacked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..archive.as_data import find_segments, is_archive
from ..data.onex import METADATA, SEGMENT_IDS, VIDEO, open_video, read_metadata, runs
from ..data.segments import SegmentSource
from ..runtime.compute import Compute
from ..runtime.errors import InputError
from ..runtime.spec import TokenSpec


class Footage(Protocol):
    """A video's frames, and to which clips they belong: onex.Video, or an ArchivedVideo."""

    @property
    def path(self) -> Path:
        """What messages call it."""
        ...

    @property
    def spec(self) -> TokenSpec: ...

    @property
    def segment_ids(self) -> np.ndarray:
        """int32 (frames,)"""
        ...

    @property
    def clips(self) -> list[range]:
        """The runs of one segment id."""
        ...

    def take(self, frames: range) -> np.ndarray:
        """The ids of these frames, (len(frames), side, side); the range rises, and ends before the video does."""
        ...


@dataclass(frozen=True)
class ArchivedVideo:
    """The video of an archive; its clips are decoded when frames of theirs are asked for."""

    path: Path
    segments: list[SegmentSource]
    """Of each clip."""
    segment_ids: np.ndarray

    @property
    def spec(self) -> TokenSpec:
        assert self.segments[0].spec  # parts of raw files have one
        return self.segments[0].spec

    @property
    def clips(self) -> list[range]:
        return runs(self.segment_ids)

    def take(self, frames: range) -> np.ndarray:
        wanted, first, parts = np.asarray(frames), 0, []
        for segment in self.segments:
            inside = wanted[(wanted >= first) & (wanted < first + segment.frames)] - first
            first += segment.frames
            if len(inside):
                parts.append(segment.array()[inside])
        return np.concatenate(parts)


def open_footage(place: Path, compute: Compute) -> Footage:
    """One of 1X's folders, or an archive of one. Raises InputError; of data of v2.0, for which there is no metric."""
    if not is_archive(place):
        if (place / METADATA).is_file() and "num_shards" in read_metadata(place / METADATA):
            raise _of_v2(place)
        return open_video(place)
    found = find_segments(place, compute=compute)
    files = {file.name: file for file in found.files}
    videos = {segment.file or "" for segment in found.segments}
    if any(re.search(r"(^|/)video_\d+\.bin$", name) for name in videos):
        raise _of_v2(place)
    video = videos.pop()
    ids = files.get(video.removesuffix(VIDEO) + SEGMENT_IDS)
    if videos or not video or ids is None:
        raise InputError(
            f"{place}: expected an archive of one of 1X's folders, with one {VIDEO} and its {SEGMENT_IDS}; found other "
            "data: evaluate what it was made of"
        )
    frames = sum(segment.frames for segment in found.segments)
    if ids.size != 4 * frames:
        raise InputError(
            f"{place}: expected {ids.name} to have {4 * frames} bytes, an int32 for each of {frames} frames, "
            f"found {ids.size}"
        )
    return ArchivedVideo(place, found.segments, np.frombuffer(b"".join(ids.pieces()), "<i4"))


def _of_v2(place: Path) -> InputError:
    return InputError(
        f'{place}: this is data of v2.0, whose challenge is scored by a "Top-500 cross-entropy" of which no formula '
        "was published; `vqcomp compress` measures bits/token on it, this metric is for v1.1 and before"
    )
