"""Where tokens come from: arrays, files of them, shards, 1X's folders, the hub; one or several, at any depth."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..runtime.errors import InputError
from . import hub
from .onex import SEGMENT_IDS, VIDEO, find_clips
from .segments import Grid, Names, Segment, array_in_file, array_in_memory, walk
from .shards import find_packed, is_shard

Place = str | os.PathLike[str]
Data = Place | Sequence[Place] | Mapping[str, np.ndarray]


@dataclass(frozen=True)
class File:
    """A file that is kept byte for byte, since it belongs to `beside`, a raw file that segments make up."""

    name: str
    path: Path
    beside: str


@dataclass
class Found:
    """What is there to compress.

    segments come sorted by the name of their file or shard, and in its order: that is the order to read them in.
    left_out names files that are no tokens. skipped says what was bad and why; it is empty unless `skip_bad`.
    """

    skip_bad: bool = False
    segments: list[Segment] = field(default_factory=list)
    files: list[File] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def bad(self, error: InputError) -> None:
        """Raise what is wrong with a piece of the data or, to skip the piece, note it."""
        if not self.skip_bad:
            raise error
        self.skipped.append(str(error))

    def drop(self, segments: Sequence[Segment]) -> None:
        """Leave out segments, and whole raw files where one of their segments is among them."""
        names, files = {s.name for s in segments}, {s.file for s in segments if s.file}
        self.segments = [s for s in self.segments if s.name not in names and s.file not in files]
        self.files = [f for f in self.files if f.beside not in files]

    def maxima(self, tell: Callable[[Segment], None]) -> list[int]:
        """Look through all values, telling of each segment that is done: the largest id of each that is not bad."""
        maxima: dict[str, int] = {}
        bad = []
        for segment in self.segments:
            try:
                maxima[segment.name] = segment.maximum()
            except InputError as error:
                self.bad(error)
                bad.append(segment)
            tell(segment)
        self.drop(bad)
        self.require_some()
        return [maxima[s.name] for s in self.segments]

    def require_some(self) -> None:
        """Raise InputError if everything has been skipped."""
        if not self.segments:
            raise InputError(f"all segments were skipped as bad; the first: {self.skipped[0]}")


def find_segments(data: Data, grid: Grid | None = None, *, skip_bad: bool = False) -> Found:
    """Every segment of `data`, found without looking through the values where headers say where they are.

    data: a .npy file; a shard (.tar, .tar.gz, .tgz, .zip; see shards.py); a folder of 1X's (see onex.py); a
    folder of all these at any depth; an address on the hub (hf://datasets/OWNER/NAME[@REVISION]/FILE); a list of these;
    or a mapping from names to arrays. A .npy file without the suffix is known by its first bytes. Names of files are
    their paths inside the folder. `grid` is (H, W) of arrays (T, H * W); for 128 tokens it is known to be (8, 16).
    With skip_bad, what cannot be used is left out and said in `skipped`.
    Raises InputError, naming the file, for whatever is not an array of ids, and for names that cannot be restored.
    """
    found = Found(skip_bad)
    parts: list[tuple[str, list[Segment]]] = []

    def add(name: str, get: Callable[[], list[Segment]]) -> None:
        try:
            parts.append((name, get()))
        except InputError as error:
            found.bad(error)

    if isinstance(data, Mapping):
        for name, array in data.items():
            add(name, lambda n=name, a=array: [array_in_memory(n, a, grid)])  # type: ignore[misc]
    else:
        for path in places(data):
            if path.is_dir():
                _add_folder(path, grid, found, add)
            else:
                add(path.name, lambda p=path: _read(p, p.name, grid, found))  # type: ignore[misc]
    found.segments = [s for _, segments in sorted(parts, key=lambda part: part[0]) for s in segments]
    _drop_clashes(found)
    if found.skipped:
        found.require_some()
    elif not found.segments:
        inside = "expected arrays of tokens inside, found none" if found.left_out else "found no segments, it is empty"
        raise InputError(f"{label(data)}: {inside}")
    return found


def label(data: Data) -> str:
    """What messages call it."""
    if isinstance(data, Mapping):
        return f"a mapping of {len(data)} arrays"
    return str(data) if isinstance(data, str | os.PathLike) else ", ".join(str(place) for place in data) or "no data"


def places(data: Place | Sequence[Place]) -> list[Path]:
    """The paths that data are to be read from; what is on the hub is fetched. Raises InputError, DependencyError."""
    return [hub.local(place, "dataset") for place in ([data] if isinstance(data, str | os.PathLike) else data)]


def _read(path: Path, name: str, grid: Grid | None, found: Found) -> list[Segment]:
    """The segments of a file by itself."""
    before = len(found.skipped)
    segments = _in_file(path, name, grid, found)
    if not segments and len(found.skipped) == before:
        raise InputError(
            f"{path}: expected a .npy file (numpy.save), a shard of tokens (.tar.gz, .tar, .zip) or a folder of them, "
            "found neither"
        )
    return segments


def _in_file(path: Path, name: str, grid: Grid | None, found: Found) -> list[Segment]:
    if is_shard(path):
        return find_packed(path, grid, found.bad)
    segment = array_in_file(path, name, grid)
    return [segment] if segment else []


def _add_folder(
    folder: Path, grid: Grid | None, found: Found, add: Callable[[str, Callable[[], list[Segment]]], None]
) -> None:
    entries = sorted(walk(folder), key=lambda entry: entry[1])
    # "" is the folder itself.
    prefixes = {name.removesuffix(n) for _, name in entries for n in (VIDEO, SEGMENT_IDS) if Path(name).name == n}
    clips: set[str] = set()

    def add_clips(prefix: str) -> list[Segment]:
        segments = find_clips(folder / prefix, prefix)
        clips.add(prefix)
        return segments

    for prefix in sorted(prefixes):
        add(prefix + VIDEO, lambda p=prefix: add_clips(p))  # type: ignore[misc]
    for file, name in entries:
        inside = next((p for p in sorted(prefixes) if name.startswith(p)), None)
        if inside is not None:
            if inside in clips and name != inside + VIDEO:
                found.files.append(File(name, file, inside + VIDEO))
            continue

        def read(file: Path = file, name: str = name) -> list[Segment]:
            segments = _in_file(file, name, grid, found)
            if not segments:
                found.left_out.append(name)
            return segments

        add(name, read)


def _drop_clashes(found: Found) -> None:
    """Check that all names can be restored beside one another."""
    names = Names()
    bad: list[Segment] = []
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
    # By identity: a bad segment may have the name of a good one.
    spoilt, spoilt_ids = {s.file for s in bad if s.file}, {id(s) for s in bad}
    found.segments = [s for s in found.segments if id(s) not in spoilt_ids and s.file not in spoilt]
    files = []
    for file in found.files:
        try:
            if file.beside not in spoilt:
                names.add(file.name, str(file.path))
                files.append(file)
        except InputError as error:
            found.bad(error)
    found.files = files
