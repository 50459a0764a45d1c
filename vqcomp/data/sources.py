"""Where tokens come from: arrays, files of them, shards, 1X's folders, the hub; one or several, at any depth."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..runtime.errors import InputError
from . import hub
from .files import File, open_file, walk
from .names import Names
from .npy import array_in_file
from .onex import find_clips, video_folders
from .onex_sharded import find_shards, sharded_folders
from .segments import Grid, SegmentSource, array_in_memory, check_grid
from .shards import is_shard, kind_of, read_shard

Place = str | os.PathLike[str]
Data = Place | Sequence[Place] | Mapping[str, np.ndarray] | Mapping[str, SegmentSource]
OpenArchive = Callable[[Path], tuple[list[SegmentSource], list[File]] | None]
"""Gives the segments and kept files of a file that is an archive, else None. Raises InputError."""


@dataclass
class Found:
    """What is there to compress, and what is not compressed though it is there.

    segments come sorted by the name of their file or shard, and in its order: that is the order to read them in.
    files are kept byte for byte. left_out says how many of what are no tokens: a file counts by its name, a shard's
    members by their kind, as "data-0000.tar.gz: *.pose.npy". skipped says of each piece that is bad what is wrong with
    it; it is empty unless `skip_bad`. Otherwise the first bad piece is an error, which ends with `hint`. checksums are
    the CRC-32 of each segment's values, once `maxima` has looked through them.
    """

    skip_bad: bool = False
    keep_all: bool = False
    hint: str = ""
    open_archive: OpenArchive | None = None
    segments: list[SegmentSource] = field(default_factory=list)
    files: list[File] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    checksums: dict[str, int] = field(default_factory=dict)

    @property
    def left_out_count(self) -> int:
        """How many files and members are left out, since they are no tokens."""
        return sum(self.left_out.values())

    def omissions(self) -> Iterator[str]:
        """A line for each thing that is not compressed: what was bad, then what is no tokens."""
        for problem in self.skipped:
            yield f"skipped: {problem}"
        for name, count in self.left_out.items():
            yield f"left out, no tokens: {name}" + (f" ({count:,} members)" if count > 1 else "")

    def bad(self, error: InputError) -> None:
        """Raise what is wrong with a piece of the data or, to skip the piece, note it."""
        if not self.skip_bad:
            # A bad member of a shard comes through here twice.
            raise InputError(f"{error}; {self.hint}") if self.hint and not str(error).endswith(self.hint) else error
        self.skipped.append(str(error))

    def drop(self, segments: Sequence[SegmentSource]) -> None:
        """Leave out segments, whole raw files where one of their segments is among them, and what lies beside those."""
        # By identity: a bad segment may have the name of a good one.
        bad, raw = {id(s) for s in segments}, {s.file for s in segments if s.file}
        self.segments = [s for s in self.segments if id(s) not in bad and s.file not in raw]
        left = {s.file for s in self.segments}
        self.files = [f for f in self.files if not f.beside or not left.isdisjoint(f.beside)]

    def maxima(self, tell: Callable[[SegmentSource], None]) -> list[int]:
        """Look through all values; `tell` is called with each segment that is done.

        Returns the largest id of each segment that is not bad. Raises InputError, unless `skip_bad`, for the first one
        that is; and where nothing is left.
        """
        maxima: dict[int, int] = {}
        bad = []
        for segment in self.segments:
            try:
                maxima[id(segment)], self.checksums[segment.name] = segment.scan()
            except InputError as error:
                self.bad(_of_whole(segment, error))
                bad.append(segment)
            tell(segment)
        self.drop(bad)
        self.require_some()
        return [maxima[id(s)] for s in self.segments]

    def require_some(self) -> None:
        """Raise InputError if everything has been skipped."""
        if not self.segments:
            raise InputError(f"everything was skipped as bad; the first: {self.skipped[0]}")


def find_segments(
    data: Data,
    grid: Grid | None = None,
    *,
    skip_bad: bool = False,
    keep_all: bool = False,
    hint: str = "",
    open_archive: OpenArchive | None = None,
) -> Found:
    """Every segment of `data`, found without looking through the values where headers say where they are.

    data: a .npy file; a shard (.tar, .tar.gz, .tgz, .zip; see shards.py); a folder of 1X's (see onex.py); a
    folder of all these at any depth; an address on the hub (hf://datasets/OWNER/NAME[@REVISION]/FILE); a list of these;
    or a mapping from names to arrays, or to segments that were found before, which keep their own names and come in the
    order of the mapping's. A .npy file without the suffix is known by its first bytes. Names of files are
    their paths inside the folder. `grid` is (H, W) of arrays (T, H * W); for 128 tokens it is known to be (8, 16).
    With skip_bad, what cannot be used is left out and said in `skipped`; `hint` may tell the user of it. With keep_all,
    a folder's files and a shard's members that are no tokens are kept byte for byte: members under their own names.
    open_archive recognises archives (archive/as_data.py), which are data where they are named by themselves, with the
    files that they keep; inside a folder they are files without tokens, since they may hold what lies beside them.
    Raises InputError, naming the file, for whatever is not an array of ids, and for names that cannot be restored.
    """
    found, grid = Found(skip_bad, keep_all, hint, open_archive), check_grid(grid)
    parts: list[tuple[str, list[SegmentSource]]] = []

    def add(name: str, get: Callable[[], list[SegmentSource]]) -> None:
        try:
            parts.append((name, get()))
        except InputError as error:
            found.bad(error)

    if isinstance(data, Mapping):
        for name, array in data.items():
            if isinstance(array, SegmentSource):
                parts.append((name, [array]))
            else:
                add(str(name), lambda n=name, a=array: [array_in_memory(n, a, grid)])  # type: ignore[misc]
    else:
        paths = places(data)
        if len(paths) == 1 and not (os.path.isdir(paths[0]) or (is_shard(paths[0]) and paths[0].is_file())):
            found.hint = ""  # nothing would be left
        for path in paths:
            if os.path.isdir(path):
                _add_folder(path, grid, found, add)
            else:
                add(path.name, lambda p=path: _in_named_file(p, grid, found))  # type: ignore[misc]
    found.segments = [s for _, segments in sorted(parts, key=lambda part: part[0]) for s in segments]
    _drop_clashes(found)
    if found.skipped:
        found.require_some()
    elif not found.segments:
        empty = not found.left_out and not found.files
        inside = "found no segments, it is empty" if empty else "expected arrays of tokens inside, found none"
        raise InputError(f"{label(data)}: {inside}")
    return found


def label(data: Data) -> str:
    """What messages call it."""
    if isinstance(data, Mapping):
        return f"a mapping of {len(data)} arrays"
    return str(data) if isinstance(data, str | os.PathLike) else ", ".join(str(place) for place in data) or "no data"


def places(data: Place | Sequence[Place]) -> list[Path]:
    """The paths that data are to be read from; what is on the hub is fetched. Raises InputError, DependencyError."""
    several = [data] if isinstance(data, str | os.PathLike) else data
    if not isinstance(several, Sequence) or not all(isinstance(p, str | os.PathLike) for p in several):
        raise InputError(
            "data: expected a path, a list of paths, or a mapping from names to arrays, found something else; an "
            "array needs a name: {'name.npy': array}"
        )
    return [hub.local(place, "dataset") for place in several]


def _in_named_file(path: Path, grid: Grid | None, found: Found) -> list[SegmentSource]:
    """The segments of a file that was named by itself. Raises InputError if it holds none."""
    before = len(found.skipped)
    open_file(path).close()
    archived = found.open_archive(path) if found.open_archive else None
    if archived:
        found.files += archived[1]
        return archived[0]
    segments = _in_file(path, path.name, grid, found)
    if not segments and len(found.skipped) == before:
        raise InputError(
            f"{path}: expected a .npy file (numpy.save), a shard of tokens (.tar.gz, .tar, .zip), an archive of "
            "vqcomp's or a folder of them, found none of these"
        )
    return segments


def _in_file(path: Path, name: str, grid: Grid | None, found: Found) -> list[SegmentSource]:
    """The segments of a file; none if it holds no tokens. Whatever else is in a shard with tokens is dealt with."""
    if not is_shard(path):
        segment = array_in_file(path, name, grid)
        return [segment] if segment else []
    shard = read_shard(path, grid, found.bad)
    if shard.segments:
        for member in shard.unreadable:
            found.left_out[f"{name}: {member}"] = 1
        if found.keep_all:
            found.files += shard.others
        else:
            for file in shard.others:
                kind = f"{name}: {kind_of(file.name)}"
                found.left_out[kind] = found.left_out.get(kind, 0) + 1
    return shard.segments


def _add_folder(
    folder: Path, grid: Grid | None, found: Found, add: Callable[[str, Callable[[], list[SegmentSource]]], None]
) -> None:
    entries = sorted(walk(folder), key=lambda entry: entry[1])
    names = [name for _, name in entries]
    single, sharded = video_folders(names), sharded_folders(names)
    folders: dict[str, list[str]] = {prefix: [] for prefix in sorted(single | sharded)}
    for path, name in entries:
        inside = max((p for p in folders if name.startswith(p)), key=len, default=None)
        if inside is not None:
            folders[inside].append(name)
            continue

        def read(path: Path = path, name: str = name) -> list[SegmentSource]:
            before = len(found.skipped)
            segments = _in_file(path, name, grid, found)
            if not segments and len(found.skipped) == before:
                _keep_or_leave_out(path, name, found)
            return segments

        add(name, read)
    for prefix, inside_names in folders.items():

        def read_folder(prefix: str = prefix, names: list[str] = inside_names) -> list[SegmentSource]:
            for name in names:
                open_file(folder / name).close()
            if prefix in single:
                segments, files = find_clips(folder, prefix, names)
            else:
                clips, files = find_shards(folder, prefix, names, found.bad)
                segments = [s for part in clips.values() for s in part]
            found.files += files
            return segments

        add(prefix, read_folder)


def _keep_or_leave_out(path: Path, name: str, found: Found) -> None:
    """What to do with a folder's file that holds no tokens. Raises InputError if it shall be kept, and cannot."""
    if found.keep_all:
        open_file(path).close()
        found.files.append(File(name, path))
    else:
        found.left_out[name] = 1


def _of_whole(segment: SegmentSource, error: InputError) -> InputError:
    """The error for a bad segment, which says what else goes with it."""
    return InputError(f"{error} (so all of {segment.file} is bad)") if segment.file else error


def _drop_clashes(found: Found) -> None:
    """Check that all names can be restored beside one another."""
    names = Names()
    bad: list[SegmentSource] = []
    raw: set[str] = set()
    for segment in found.segments:
        try:
            if segment.file and segment.file not in raw:
                names.add(segment.file)
                raw.add(segment.file)
            names.add(segment.name, "" if isinstance(segment.source, np.ndarray) else segment.label)
        except InputError as error:
            found.bad(error)
            bad.append(segment)
    found.drop(bad)
    files = []
    for file in found.files:
        try:
            names.add(file.name, file.label)
            files.append(file)
        except InputError as error:
            found.bad(error)
    found.files = files
