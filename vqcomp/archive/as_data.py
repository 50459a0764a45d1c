"""An archive as data: its segments and files are read from the zip, group by group, and never written to disk."""

from __future__ import annotations

import os
import weakref
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..data import sources
from ..data.cache import Cache
from ..data.files import File
from ..data.segments import Grid, SegmentSource
from ..data.sources import Data, Found
from ..runtime import layout
from ..runtime.compute import Compute
from ..runtime.errors import ArchiveError, DamageError, InputError, VqcompError
from ..runtime.manifest import Kept, Manifest
from .reader import Archive

_ZIP = b"PK\3\4"
AT_HAND = 1 << 26
"""Bytes of decoded groups that are kept unless the caller says otherwise; the group in use is kept in any case."""


def find_segments(
    data: Data, grid: Grid | None = None, *, compute: Compute | None = None, cache: Cache | None = None, **options: Any
) -> Found:
    """As `sources.find_segments`, whose options it takes, but `data` may be, or hold, archives of vqcomp's.

    Names, dtypes, shapes, raw files and files that are kept come out as they went into the archive; `grid` is not for
    them. compute: how to decode. cache: where decoded groups are kept; by default AT_HAND bytes for all archives.
    """
    opener = partial(open_as_data, compute=compute or Compute(), cache=cache or Cache(AT_HAND))
    return sources.find_segments(data, grid, open_archive=opener, **options)


def open_as_data(path: Path, compute: Compute, cache: Cache) -> tuple[list[SegmentSource], list[File]] | None:
    """An archive's segments, in its order, and its kept files; None for any other file. Raises InputError."""
    if not is_archive(path):
        return None
    stored = Stored(path, compute, cache)
    manifest = stored.manifest
    raw = {manifest.segments[i].name: file.name for file in manifest.raw for i in file.segments}
    segments: list[SegmentSource] = []
    for segment in manifest.segments:
        spec, part_of = manifest.coding_of(segment).spec, raw.get(segment.name)
        # An array's ids speak for themselves; those of a raw file are of the vocabulary that its data set names.
        known = spec if part_of or len(spec.factors) > 1 else None
        segments.append(
            ArchivedSource(
                segment.name, segment.dtype, segment.shape, (spec.height, spec.width), path, 0, False, known, part_of,
                stored, segment.group, spec.vocabulary - 1, segment.crc32,
            )
        )  # fmt: skip
    beside = tuple(file.name for file in manifest.raw)
    return segments, [ArchivedFile(file.name, path, beside, file) for file in manifest.kept]


def is_archive(path: Path) -> bool:
    """Whether a file is a zip that holds a manifest of vqcomp's. Opens regular files only."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as handle:
            if handle.read(len(_ZIP)) != _ZIP:
                return False
        with zipfile.ZipFile(path) as archive:
            return layout.MANIFEST in archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False  # whoever reads it as something else says what is wrong


class Stored:
    """An archive from which segments are read in any order, best one after another. It survives pickling and forks.

    It is opened where it is first needed, in every process by itself, and closed when nothing refers to it any more.
    """

    def __init__(self, path: Path, compute: Compute, cache: Cache) -> None:
        self.path, self.compute, self.cache = path, compute, cache
        self._archive: Archive | None = None
        self._process = 0
        self._next = 0
        """The group that comes after those decoded last."""

    @property
    def manifest(self) -> Manifest:
        return self._open().manifest

    def array(self, name: str, group: int) -> np.ndarray:
        """A segment, which must not be written to; its group is decoded unless it is at hand. Raises InputError."""
        arrays = self.cache.get((self.path, group))
        if arrays is None:
            self.cache.add(decoded := self._decode(group))
            arrays = decoded[self.path, group]
        manifest = self.manifest
        names = [manifest.segments[i].name for i in manifest.groups[group].segments]
        array = arrays[names.index(name)]
        if not array.size:
            raise InputError(f"{self.path}: segment {name} is damaged")
        return array

    def check(self, group: int) -> None:
        """Raise InputError if a group's stream is damaged, without decoding it."""
        try:
            self._open().check_stream(group)
        except DamageError as error:
            names = ", ".join(self.manifest.segments[i].name for i in self.manifest.groups[group].segments)
            raise InputError(f"{self.path}: {names}: {error}") from error

    def _decode(self, group: int) -> dict[tuple[Path, int], list[np.ndarray]]:
        """A group's segments, and, where groups are read in their order, those of the next that fit in a batch.

        An empty array stands for a segment that is damaged.
        """
        archive, manifest = self._open(), self.manifest
        count = 1
        if group == self._next:
            count = max(archive.compute.processes, self.compute.batch_size // len(manifest.groups[group].segments))
        groups = range(group, min(group + count, len(manifest.groups)))
        names = [manifest.segments[i].name for g in groups for i in manifest.groups[g].segments]
        try:
            found = dict(archive.decode(names, damaged={}))
        except VqcompError as error:
            raise InputError(f"{error}" if str(self.path) in str(error) else f"{self.path}: {error}") from error
        self._next = groups.stop
        return {
            (self.path, g): [
                found.get(manifest.segments[i].name, np.empty(0, np.int8)) for i in manifest.groups[g].segments
            ]
            for g in groups
        }

    def _open(self) -> Archive:
        # A forked process must not share its parent's place in the file, nor its processes.
        if self._archive is None or self._process != os.getpid():
            try:
                self._archive = archive = Archive(self.path, self.compute)
            except ArchiveError as error:
                raise InputError(str(error)) from error
            self._process = os.getpid()
            weakref.finalize(self, _close, archive, self._process)
        return self._archive

    def __getstate__(self) -> tuple[Path, Compute, Cache]:
        return self.path, self.compute, self.cache

    def __setstate__(self, state: tuple[Path, Compute, Cache]) -> None:
        self.__init__(*state)  # type: ignore[misc]


def _close(archive: Archive, process: int) -> None:
    if process == os.getpid():
        archive.close()


@dataclass(frozen=True)
class ArchivedSource(SegmentSource):
    """A segment of an archive. `largest` is the last id of its vocabulary: no id is larger, and it costs nothing."""

    stored: Stored | None = None
    group: int = 0
    largest: int = 0
    crc32: int = 0

    @property
    def label(self) -> str:
        return f"{self.source}: {self.name}"

    @property
    def in_place(self) -> bool:
        return False

    def array(self) -> np.ndarray:
        assert self.stored
        return self.stored.array(self.name, self.group)

    def scan(self) -> tuple[int, int]:
        """(no smaller than the largest id, the manifest's checksum). Raises InputError if the stream is damaged."""
        assert self.stored
        self.stored.check(self.group)
        return self.largest, self.crc32


@dataclass(frozen=True)
class ArchivedFile(File):
    """A file that an archive keeps."""

    kept: Kept | None = None

    @property
    def label(self) -> str:
        return f"{self.path}: {self.name}"

    @property
    def size(self) -> int:
        assert self.kept
        return self.kept.size

    def pieces(self) -> Iterator[bytes]:
        assert self.kept
        try:
            with Archive(self.path) as archive:
                yield from archive.contents(self.kept)
        except ArchiveError as error:
            raise InputError(f"{self.label}: {error}") from error
