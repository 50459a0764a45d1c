"""Reading an unpacked archive: its manifest, and segments from its streams. FORMAT.md describes the layout."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

import numpy as np

from .errors import ArchiveError, DamageError, FormatError, InputError, UnsafeNameError
from .spec import TokenSpec

FORMAT = 1
BOOTSTRAP, ROOT = "decompress.py", "vqcomp/"
RUNTIME, MODEL, STREAMS, FILES, MANIFEST = (
    ROOT + n for n in ("runtime.tar.bz2", "model.vqm", "streams.bin", "files.bin", "manifest.json")
)
CODECS = ("adaptive", "gpt", "mixed")
CHECK = ',"check":"{}"}}'
"""How a manifest ends: the sha256 of everything before."""
MANIFEST_LIMIT, TOKENS_LIMIT = 1 << 28, 1 << 31
"""Bytes of a manifest, and tokens of a segment: beyond them a file is taken for a bomb."""
ReaderType = TypeVar("ReaderType", bound="Reader")
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Segment:
    """One array of the data set; `group` is the index of the stream that it is coded in."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    crc32: int
    group: int

    @property
    def tokens(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Group:
    """Consecutive segments that share a stream: `size` bytes at `offset` of streams.bin."""

    spec: int
    segments: range
    offset: int
    size: int
    crc32: int


@dataclass(frozen=True)
class Manifest:
    """What an archive holds. `codecs` runs beside `specs`; `model` is (bytes, sha256) of model.vqm.

    extras: files.Extras, or None if all that it restores are arrays.
    """

    version: str
    specs: tuple[TokenSpec, ...]
    codecs: tuple[str, ...]
    segments: tuple[Segment, ...]
    groups: tuple[Group, ...]
    sha256: str
    model: tuple[int, str] | None
    extras: Any = None


def check_name(name: str) -> None:
    """Raise UnsafeNameError unless `name` is a relative path that stays in the output folder on every system."""
    parts = name.split("/")
    problem = ""
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        problem = "holds control characters or is not Unicode"
    elif "\\" in name or name.startswith("/") or re.match("[A-Za-z]:", name):
        problem = "is an absolute path, or one of Windows"
    elif any(part in ("", ".", "..") for part in parts):
        problem = "is empty or has a part that is empty, '.' or '..'"
    elif parts[0].casefold() in (BOOTSTRAP, ROOT[:-1]):
        problem = f"clashes with the archive's own {BOOTSTRAP} and {ROOT}"
    elif os.name == "nt" and any(set(p) & set('<>:"|?*') or p[-1] in ". " or _DEVICES.fullmatch(p) for p in parts):
        problem = "cannot be the name of a file on Windows"
    if problem:
        raise UnsafeNameError(f"the name {name!r} {problem}; expected a plain relative path such as 'a/b.npy'")


def token_bytes(tokens: np.ndarray) -> bytes:
    """What checksums cover: factors (T, S, F) as little-endian int32."""
    return np.ascontiguousarray(tokens, "<i4").tobytes()


def parse_manifest(data: bytes) -> Manifest:
    """Parse and validate. Raises FormatError, DamageError (its own checksum) or UnsafeNameError."""
    try:
        table = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{MANIFEST} is damaged: expected JSON, found {error}") from error
    found = table.get("format") if isinstance(table, dict) else None
    if found != FORMAT or isinstance(found, bool):
        raise FormatError(f"{MANIFEST}: expected format {FORMAT}, found {found!r}; a newer vqcomp may read it: upgrade")
    body = data[: -len(CHECK.format("0" * 64))]
    if data != body + CHECK.format(hashlib.sha256(body).hexdigest()).encode():
        raise DamageError(f"{MANIFEST} is damaged: its checksum does not match")
    try:
        return _manifest(table)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise FormatError(f"{MANIFEST}: a field is missing or wrong: {error!r}") from error


def _manifest(table: dict[str, Any]) -> Manifest:
    specs = [TokenSpec(as_int(s["height"], 1), as_int(s["width"], 1), tuple(s["factors"])) for s in table["specs"]]
    codecs = [s["codec"] for s in table["specs"]]
    for spec, codec in zip(specs, codecs):
        if codec not in CODECS:
            raise FormatError(f"{MANIFEST}: expected a codec among {CODECS}, found {codec!r}; upgrade vqcomp")
        if not spec.factors or not all(2 <= as_int(f) <= 1 << 16 for f in spec.factors):
            raise ValueError(f"factors {spec.factors}")
    rows, runs = table["segments"], table["groups"]
    names, n, m = rows["name"], len(rows["name"]), as_int(runs["count"], 1)
    if not isinstance(names, list):
        raise ValueError("names are a list")
    extras = None
    if "files" in table or "raw" in table:
        from .files import parse

        extras = parse(table, n)
    everything = names + (extras.names if extras else [])
    for name in everything:
        check_name(name)
    folded = {name.casefold() for name in everything}
    if len(folded) < len(everything) or folded & {
        str(folder) for name in folded for folder in PurePosixPath(name).parents
    }:
        raise FormatError(f"{MANIFEST}: duplicate names, or a name that is a folder in another")
    if m > n:
        raise ValueError("more groups than segments")
    groups: list[Group] = []
    first = offset = 0
    columns = (as_column(runs[key], m) for key in ("spec", "segments", "bytes", "crc32"))
    for index, count, size, crc in zip(*columns):
        specs[as_int(index)]
        groups.append(Group(index, range(first, first + as_int(count, 1)), offset, as_int(size), as_int(crc)))
        first, offset = first + count, offset + size
    if first != n:
        raise ValueError(f"groups of {first} segments, but {n} segments")
    segments: list[Segment] = []
    kinds, shapes, crcs = (as_column(rows[key], n) for key in ("dtype", "shape", "crc32"))
    for g, group in enumerate(groups):
        spec = specs[group.spec]
        if codecs[group.spec] == "gpt" and len(group.segments) > 1:
            raise ValueError("a group of the codec 'gpt' has one segment")
        for i in group.segments:
            shape = tuple(as_int(v, 1) for v in shapes[i])
            if shape[1:] not in ((spec.height, spec.width), (spec.positions,)) or prod(shape) > TOKENS_LIMIT:
                raise ValueError(f"shape {shape} of {names[i]!r}")
            if not re.fullmatch(r"[<>|][iu][1248]", kinds[i]):
                raise ValueError(f"dtype {kinds[i]!r} of {names[i]!r}")
            segments.append(Segment(names[i], np.dtype(kinds[i]), shape, as_int(crcs[i]), g))
    model = table["model"]
    if (model is not None) != any(codec != "adaptive" for codec in codecs):
        raise ValueError("a model goes with the codecs 'gpt' and 'mixed', and only with them")
    return Manifest(
        str(table["vqcomp"]),
        tuple(specs),
        tuple(codecs),
        tuple(segments),
        tuple(groups),
        str(table["sha256"]),
        None if model is None else (as_int(model["bytes"], 1), str(model["sha256"])),
        extras,
    )


def as_int(value: Any, least: int = 0) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"expected an integer of at least {least}, found {value!r}")
    return value


def as_column(column: Any, count: int) -> Sequence[Any]:
    """A column of a table: the list of its values, or {"all": value} where every row has the same."""
    if isinstance(column, dict):
        return [column["all"]] * count
    if not isinstance(column, list) or len(column) != count:
        raise ValueError(f"expected a column of {count} values")
    return column


class Reader:
    """An archive that was unpacked into a folder, opened for decoding. Use it in a `with`.

    Opening reads the manifest and runs no model. Raises FormatError, DamageError or UnsafeNameError, and InputError
    for a file that cannot be read.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, device: str = "auto", threads: int | None = None, jobs: int = 1
    ) -> None:
        """device, threads: see `exact.make_ops`; jobs: processes that decode groups side by side (see workers.py)."""
        self.path = Path(path)
        self._device, self._threads, self._jobs = device, threads, jobs
        self._codecs: dict[int, Any] = {}
        try:
            self.manifest = parse_manifest(self.read(MANIFEST, MANIFEST_LIMIT))
            self._streams, self._start, found = self.open_stored(STREAMS)
            expected = sum(g.size for g in self.manifest.groups)
            if found != expected:
                self._streams.close()
                raise FormatError(
                    f"{STREAMS}: expected {expected} bytes, found {found}; the archive is cut short or damaged"
                )
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
        except ArchiveError as error:
            raise type(error)(f"{path}: {error}") from error
        self._segments = {s.name: s for s in self.manifest.segments}

    def __enter__(self: ReaderType) -> ReaderType:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._streams.close()
        for codec in self._codecs.values():
            codec.close()

    def read(self, entry: str, limit: int) -> bytes:
        """The bytes of an entry. Raises FormatError where it is missing or exceeds `limit`, DamageError if damaged."""
        try:
            with open(self.path / entry, "rb") as handle:
                data = handle.read(limit + 1)
        except FileNotFoundError as error:
            raise FormatError(f"no {entry} inside; expected an archive written by vqcomp") from error
        if len(data) > limit:
            raise FormatError(f"{entry}: expected at most {limit} bytes")
        return data

    def outputs(self, names: Collection[str] | None = None) -> list[str]:
        """The files that restoring everything, or these names, writes."""
        parts: dict[str, Any] = {}
        kept: list[Any] = []
        wanted = None if names is None else set(names)
        if self.manifest.extras:
            from .files import chosen_files

            wanted, parts, kept = chosen_files(self, wanted)
        segments = (s.name for s in self.manifest.segments if wanted is None or s.name in wanted)
        return list(dict.fromkeys([parts[n].name if n in parts else n for n in segments] + [f.name for f in kept]))

    def open_stored(self, entry: str) -> tuple[BinaryIO, int, int]:
        """(open file, where an entry that is stored starts in it, its size). Raises FormatError if missing."""
        try:
            handle = open(self.path / entry, "rb")
        except FileNotFoundError as error:
            raise FormatError(f"no {entry} inside; expected an archive written by vqcomp") from error
        return handle, 0, os.fstat(handle.fileno()).st_size

    def _stream(self, group: Group) -> bytes:
        self._streams.seek(self._start + group.offset)
        data = self._streams.read(group.size)
        if len(data) != group.size or zlib.crc32(data) != group.crc32:
            raise DamageError("its stream's checksum does not match")
        return data

    def _codec(self, spec: int) -> Any:
        if spec not in self._codecs:
            from .codec import make_codec

            model, codec = None, self.manifest.codecs[spec]
            if codec != "adaptive":
                assert self.manifest.model
                size, sha256 = self.manifest.model
                try:
                    model = self.read(MODEL, size)
                except FormatError as error:
                    raise DamageError(str(error)) from error
                if len(model) != size or hashlib.sha256(model).hexdigest() != sha256:
                    raise DamageError(f"{MODEL} is damaged: its checksum does not match")
            self._codecs[spec] = make_codec(
                self.manifest.specs[spec], model, adapt=codec == "mixed", device=self._device, threads=self._threads,
                jobs=min(self._jobs, sum(g.spec == spec for g in self.manifest.groups)),
            )  # fmt: skip
        return self._codecs[spec]

    def decode(
        self,
        names: Iterable[str] | None = None,
        *,
        batch_size: int = 16,
        damaged: dict[str, str] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, array) in the archive's order, of the named segments or of all.

        About `batch_size` segments, or a group for each job, are computed together and in memory at a time. Every array
        has passed its CRC.
        Damaged segments are left out and named in `damaged`, name -> reason; without it they raise DamageError.
        After all segments, the hash of the whole is checked too. `progress` gets the number of tokens done since its
        last call, those of other segments in the same streams included. Raises InputError on an unknown name.
        """
        wanted = set(self._segments) if names is None else set(names)
        for name in sorted(wanted - set(self._segments)):
            raise InputError(f"{self.path}: no segment {name!r} inside; `vqcomp list` shows the names")
        lost: dict[str, str] = {}
        whole = hashlib.sha256()
        for batch in self._batches(wanted, batch_size):
            for group, streams in self._decode_groups(batch, lost, progress):
                for i, tokens in zip(group.segments, streams):
                    segment = self.manifest.segments[i]
                    data = token_bytes(tokens)
                    if zlib.crc32(data) != segment.crc32:
                        lost[segment.name] = "the tokens' checksum does not match"
                    elif segment.name in wanted:
                        whole.update(data)
                        ids = self.manifest.specs[group.spec].join(tokens)
                        yield segment.name, ids.astype(segment.dtype).reshape(segment.shape)
            found = {name: reason for name, reason in lost.items() if name in wanted}
            if damaged is not None:
                damaged.update(found)
            elif found:
                reasons = "; ".join(f"segment {name!r}: {reason}" for name, reason in found.items())
                raise DamageError(f"{self.path}: {reasons}")
        if len(wanted) == len(self._segments) and not lost and whole.hexdigest() != self.manifest.sha256:
            raise DamageError(
                f"{self.path}: the hash of all tokens does not match, though each segment's checksum does"
            )

    def _batches(self, wanted: set[str], batch_size: int) -> Iterator[list[Group]]:
        """Groups that hold wanted segments, in lists of one spec and about `batch_size` segments."""
        batch_size = max(batch_size, self._jobs * max(len(g.segments) for g in self.manifest.groups))
        batch: list[Group] = []
        for group in self.manifest.groups:
            if not any(self.manifest.segments[i].name in wanted for i in group.segments):
                continue
            count = sum(len(g.segments) for g in batch) + len(group.segments)
            if batch and (count > batch_size or batch[0].spec != group.spec):
                yield batch
                batch = []
            batch.append(group)
        if batch:
            yield batch

    def _decode_groups(
        self, groups: list[Group], lost: dict[str, str], progress: Callable[[int], None] | None
    ) -> Iterator[tuple[Group, list[np.ndarray]]]:
        """Yield (group, its segments (T, S, F)); segments of groups that cannot be decoded go to `lost`."""
        healthy: list[Group] = []
        streams: list[bytes] = []
        for group in groups:
            try:
                streams.append(self._stream(group))
                healthy.append(group)
            except DamageError as error:
                self._lose(group, error, lost)
        factors = len(self.manifest.specs[groups[0].spec].factors)
        # Codecs count every factor of a token.
        tell = progress and (lambda n: progress(n // factors))
        frames = [[self.manifest.segments[i].shape[0] for i in g.segments] for g in healthy]
        try:
            decoded = self._codec(healthy[0].spec).decode(streams, frames, tell) if healthy else []
        except DamageError as error:
            if len(healthy) == 1:
                self._lose(healthy[0], error, lost)
            else:
                for group in healthy:
                    yield from self._decode_groups([group], lost, progress)
            return
        yield from zip(healthy, decoded)

    def _lose(self, group: Group, reason: Exception, lost: dict[str, str]) -> None:
        lost.update({self.manifest.segments[i].name: str(reason) for i in group.segments})
