"""Whether an archive decodes to its data: token by token, and other files byte by byte."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod

import numpy as np

from ..data.files import File
from ..data.segments import SegmentSource
from ..runtime.manifest import Segment
from ..runtime.progress import Progress
from .reader import Archive


def differences(
    archive: Archive,
    segments: Mapping[str, SegmentSource],
    files: Mapping[str, File],
    stage: str,
    progress: Progress,
    lost: dict[str, str] | None = None,
    first: int = 0,
    same: Callable[[], None] = lambda: None,
) -> Iterator[tuple[str, str]]:
    """Yield (what is compared with, how the archive's content differs), for each segment and file that does.

    segments and files: by the names that the archive has. Damaged segments go to `lost`; without it they raise
    DamageError. first: leave out the segments of so many groups. `same` is called after each other
    group that is what it should be.
    """
    for kept in archive.kept:
        if not _same(archive.contents(kept), files[kept.name].pieces()):
            yield files[kept.name].label, "other bytes"
    left = [s for s in archive.segments if s.group >= first]
    ends = {archive.segments[group.segments[-1]].name for group in archive.manifest.groups}
    for name, array in decoded(archive, stage, progress, lost, left):
        if difference := _difference(array, segments[name].array()):
            yield segments[name].label, difference
        if name in ends:
            same()


def decoded(
    archive: Archive,
    stage: str,
    progress: Progress,
    lost: dict[str, str] | None = None,
    segments: Sequence[Segment] | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """What `archive` decodes to, all or these segments, (name, array), with progress; `lost` as in `differences`."""
    segments = archive.segments if segments is None else segments
    progress.begin(stage, len(segments), sum(s.tokens for s in segments))
    try:
        names = (s.name for s in segments)
        for item in archive.decode(names, damaged=lost, advance=lambda n: progress.advance(0, n)):
            yield item
            progress.advance(1, 0)
    finally:
        progress.end()


def _same(found: Iterable[bytes], expected: Iterable[bytes]) -> bool:
    """Whether two files, each in pieces of any size, are equal."""
    digests = []
    for pieces in (found, expected):
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        digests.append(digest.digest())
    return digests[0] == digests[1]


def _difference(found: np.ndarray, expected: np.ndarray) -> str:
    """What differs between two arrays, or nothing."""
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return f"expected {expected.dtype} {expected.shape}, found {found.dtype} {found.shape}"
    wrong = np.argwhere(found != expected)
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        return (
            f"{len(wrong)} of {prod(found.shape)} tokens, the first at {at}: expected {expected[at]}, found {found[at]}"
        )
    return ""
