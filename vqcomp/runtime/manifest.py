"""The manifest: what an archive holds, parsed and written. FORMAT.md, section 3.

A table is a set of columns; a column is the list of its values, or {"all": value} where every row has the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from itertools import islice, repeat
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .errors import DamageError, InputError
from .kinds import KINDS, Kind
from .layout import FORMAT, MANIFEST
from .spec import TokenSpec

CHECK = ',"check":"{}"}}'
"""How a manifest ends: the sha256 of everything before."""


class Coding(NamedTuple):
    """Tokens of one shape of frame, and what codes them."""

    spec: TokenSpec
    kind: Kind


class Segment(NamedTuple):
    """An array of the data set; `group` is the index of the stream that it is coded in, crc32 that of its tokens."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    crc32: int
    group: int

    @property
    def tokens(self) -> int:
        return prod(self.shape)


class Group(NamedTuple):
    """Consecutive segments that share a stream: `size` bytes at `offset` of streams.bin. `coding` is an index."""

    coding: int
    segments: range
    offset: int
    size: int
    crc32: int


class Kept(NamedTuple):
    """A file of `size` bytes, kept as it is: `stored` bytes of xz at `offset` of files.bin."""

    name: str
    size: int
    crc32: int
    offset: int
    stored: int


class Raw(NamedTuple):
    """A file that these segments make up, one after another, without headers."""

    name: str
    segments: range


class Selection(NamedTuple):
    """What restoring some files takes."""

    segments: list[Segment]
    raw: dict[str, Raw]
    """For the names of segments that are part of a raw file to be restored: that file."""
    kept: list[Kept]
    outputs: list[str]
    """Names of the files that are written."""


class Manifest(NamedTuple):
    """What an archive holds. `sha256` is that of all tokens, `model` is (bytes, sha256) of model.vqm."""

    version: str
    codings: tuple[Coding, ...]
    segments: tuple[Segment, ...]
    groups: tuple[Group, ...]
    sha256: str
    model: tuple[int, str] | None
    kept: tuple[Kept, ...] = ()
    raw: tuple[Raw, ...] = ()

    def coding_of(self, segment: Segment) -> Coding:
        """What codes a segment."""
        return self.codings[self.groups[segment.group].coding]

    def select(self, names: Collection[str] | None = None) -> Selection:
        """What restoring these files, or all, takes. Raises InputError on an unknown name.

        A segment of a raw file that is asked for by its own name is restored as an array.
        """
        kept = [f for f in self.kept if names is None or f.name in names]
        raw = {self.segments[i].name: f for f in self.raw if names is None or f.name in names for i in f.segments}
        segments = [s for s in self.segments if names is None or s.name in names or s.name in raw]
        outputs = [raw[s.name].name if s.name in raw else s.name for s in segments] + [f.name for f in kept]
        outputs = list(dict.fromkeys(outputs))
        for name in names or ():
            if name not in outputs:
                raise InputError(f"there is no {name} in the archive; `vqcomp list` shows the names")
        return Selection(segments, raw, kept, outputs)

    def to_bytes(self) -> bytes:
        """manifest.json. `parse` is the inverse."""
        segments, groups, kept, raw = self.segments, self.groups, self.kept, self.raw
        table: dict[str, Any] = {
            "format": FORMAT,
            "vqcomp": self.version,
            "specs": [
                {"height": s.height, "width": s.width, "factors": list(s.factors), "codec": kind.name}
                for s, kind in self.codings
            ],
            "segments": {
                "name": [s.name for s in segments],
                "dtype": _column([s.dtype.str for s in segments]),
                "shape": _column([list(s.shape) for s in segments]),
                "crc32": _column([s.crc32 for s in segments]),
            },
            "groups": {
                "count": len(groups),
                "spec": _column([g.coding for g in groups]),
                "segments": _column([len(g.segments) for g in groups]),
                "bytes": _column([g.size for g in groups]),
                "crc32": _column([g.crc32 for g in groups]),
            },
            "sha256": self.sha256,
            "model": self.model and {"bytes": self.model[0], "sha256": self.model[1]},
        }
        if kept:
            table["files"] = {
                "count": len(kept),
                "name": [f.name for f in kept],
                "bytes": [f.size for f in kept],
                "crc32": [f.crc32 for f in kept],
                "stored": [f.stored for f in kept],
            }
        if raw:
            table["raw"] = {
                "count": len(raw),
                "name": [f.name for f in raw],
                "first": [f.segments.start for f in raw],
                "segments": [len(f.segments) for f in raw],
            }
        body = json.dumps(table, separators=(",", ":")).encode()[:-1]
        return body + CHECK.format(hashlib.sha256(body).hexdigest()).encode()


def parse(data: bytes) -> Manifest:
    """The inverse of `Manifest.to_bytes`. Raises DamageError where the checksum does not match.

    What has the right checksum is trusted, as decompress.py does, which lies beside it in the same zip. vqcomp itself
    trusts nobody: see `archive/validation.py`.
    """
    check_whole(data)
    return from_table(json.loads(data))


def check_whole(data: bytes) -> None:
    """Raise DamageError where a manifest's own checksum does not match."""
    body = data[: -len(CHECK.format("0" * 64))]
    if data != body + CHECK.format(hashlib.sha256(body).hexdigest()).encode():
        raise DamageError(f"{MANIFEST} is damaged: its checksum does not match")


def from_table(table: dict[str, Any]) -> Manifest:
    """The manifest of a JSON object as FORMAT.md describes it."""
    segments: list[Segment] = []
    groups: list[Group] = []
    kept: list[Kept] = []
    rows = _rows(table["segments"], "name", "dtype", "shape", "crc32")
    offset = 0
    for coding, count, size, crc in _rows(table["groups"], "spec", "segments", "bytes", "crc32"):
        first = len(segments)
        for name, dtype, shape, crc32 in islice(rows, count):
            segments.append(Segment(name, np.dtype(dtype), tuple(shape), crc32, len(groups)))
        groups.append(Group(coding, range(first, len(segments)), offset, size, crc))
        offset += size
    offset = 0
    for name, size, crc, stored in _rows(table.get("files"), "name", "bytes", "crc32", "stored"):
        kept.append(Kept(name, size, crc, offset, stored))
        offset += stored
    return Manifest(
        table["vqcomp"],
        tuple(
            Coding(TokenSpec(s["height"], s["width"], tuple(s["factors"])), KINDS[s["codec"]]) for s in table["specs"]
        ),
        tuple(segments),
        tuple(groups),
        table["sha256"],
        table["model"] and (table["model"]["bytes"], table["model"]["sha256"]),
        tuple(kept),
        tuple(Raw(name, range(i, i + n)) for name, i, n in _rows(table.get("raw"), "name", "first", "segments")),
    )


def _rows(table: Any, *keys: str) -> Iterator[tuple[Any, ...]]:
    """The rows of a table's columns; none of a table that is left out."""
    if not table:
        return iter(())
    count = table.get("count") or len(table["name"])
    columns = (table[key] for key in keys)
    return zip(*(repeat(column["all"], count) if isinstance(column, dict) else column for column in columns))


def _column(values: list[Any]) -> Any:
    """Equal values are stored once."""
    return {"all": values[0]} if values and all(v == values[0] for v in values) else values
