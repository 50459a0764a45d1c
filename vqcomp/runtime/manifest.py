"""The manifest: what an archive holds, parsed and written. FORMAT.md, section 3.

A table is a set of columns; a column is the list of its values, or {"all": value} where every row has the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from .errors import DamageError, FormatError, InputError
from .kinds import KINDS, Kind
from .layout import FORMAT, MANIFEST, MODEL_LIMIT, TOKENS_LIMIT
from .names import check_name
from .spec import TokenSpec

STREAM_END, DECISIONS, SYMBOLS = 96, 16, 19
"""A stream of s bytes has 8 s + 96 bits at most; a bit, at most so many binary orders of decisions or symbols."""
KEPT_RATIO = 1 << 13
"""xz makes no more bytes than this out of one."""
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


@dataclass(frozen=True)
class Manifest:
    """What an archive holds. `sha256` is that of all tokens, `model` is (bytes, sha256) of model.vqm."""

    version: str
    codings: tuple[Coding, ...]
    segments: tuple[Segment, ...]
    groups: tuple[Group, ...]
    sha256: str
    model: tuple[int, str] | None
    kept: tuple[Kept, ...] = ()
    raw: tuple[Raw, ...] = ()

    def coding(self, segment: Segment) -> Coding:
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
    """Parse and validate. Raises FormatError, DamageError (its own checksum) or UnsafeNameError."""
    try:
        table = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{MANIFEST} is damaged: expected JSON, found {error}") from error
    found = table.get("format") if isinstance(table, dict) else None
    if found != FORMAT or isinstance(found, bool):
        shown = json.dumps(found)[:60]
        raise FormatError(f"{MANIFEST}: expected format {FORMAT}, found {shown}; the vqcomp that wrote it may read it")
    body = data[: -len(CHECK.format("0" * 64))]
    if data != body + CHECK.format(hashlib.sha256(body).hexdigest()).encode():
        raise DamageError(f"{MANIFEST} is damaged: its checksum does not match")
    try:
        return _parse(table)
    except KeyError as error:
        raise FormatError(f"{MANIFEST}: the field {error} is missing") from error
    except ValueError as error:
        raise FormatError(f"{MANIFEST}: {error}") from error
    except (TypeError, AttributeError, IndexError, OverflowError) as error:
        raise FormatError(f"{MANIFEST}: a field holds something of another kind than it should") from error


def _parse(table: dict[str, Any]) -> Manifest:
    codings = [
        Coding(TokenSpec(_integer(s["height"], 1), _integer(s["width"], 1), tuple(s["factors"])), _kind(s["codec"]))
        for s in table["specs"]
    ]
    for spec, _ in codings:
        if not 1 <= len(spec.factors) <= 64 or not all(2 <= _integer(f) <= 1 << 16 for f in spec.factors):
            raise ValueError(f"factors {spec.factors}")
    rows, runs = table["segments"], table["groups"]
    names, n, m = rows["name"], len(rows["name"]), _integer(runs["count"], 1)
    if not isinstance(names, list):
        raise ValueError("names are a list")
    kept, raw = _files(table, n)
    _check_names([*names, *(f.name for f in kept), *(f.name for f in raw)])
    if m > n:
        raise ValueError("more groups than segments")
    groups: list[Group] = []
    first = offset = 0
    for index, count, size, crc in zip(*(_values(runs[key], m) for key in ("spec", "segments", "bytes", "crc32"))):
        codings[_integer(index)]
        if _integer(count, 1) > n - first:
            raise ValueError(f"groups of more than {n} segments")
        groups.append(Group(index, range(first, first + count), offset, _integer(size), _integer(crc)))
        first, offset = first + count, offset + size
    if first != n:
        raise ValueError(f"groups of {first} segments, but {n} segments")
    segments: list[Segment] = []
    kinds, shapes, crcs = (_values(rows[key], n) for key in ("dtype", "shape", "crc32"))
    for g, group in enumerate(groups):
        spec, kind = codings[group.coding]
        if not kind.learns and len(group.segments) > 1:
            raise ValueError(f"a group of the codec {kind.name} has one segment")
        for i in group.segments:
            shape = tuple(_integer(v, 1) for v in shapes[i])
            if shape[1:] not in ((spec.height, spec.width), (spec.positions,)) or prod(shape) > TOKENS_LIMIT:
                raise ValueError(f"shape {shape} of {names[i]!r}")
            if not re.fullmatch(r"[<>|][iu][1248]", kinds[i]):
                raise ValueError(f"dtype {kinds[i]!r} of {names[i]!r}")
            segments.append(Segment(names[i], np.dtype(kinds[i]), shape, _integer(crcs[i]), g))
        tokens = sum(segments[i].tokens for i in group.segments)
        if tokens > (8 * group.size + STREAM_END) << (DECISIONS if kind.learns else SYMBOLS):
            raise ValueError(f"a stream of {group.size} bytes cannot hold {tokens} tokens")
    model = table["model"]
    if (model is not None) != any(kind.has_network for _, kind in codings):
        raise ValueError("a model goes with codecs that have a network, and only with them")
    return Manifest(
        str(table["vqcomp"]),
        tuple(codings),
        tuple(segments),
        tuple(groups),
        str(table["sha256"]),
        None if model is None else (_integer(model["bytes"], 1, MODEL_LIMIT), str(model["sha256"])),
        kept,
        raw,
    )


def _kind(name: Any) -> Kind:
    if name not in KINDS:
        raise FormatError(f"{MANIFEST}: expected a codec among {', '.join(KINDS)}, found {name!r}; upgrade vqcomp")
    return KINDS[name]


def _files(table: dict[str, Any], segments: int) -> tuple[tuple[Kept, ...], tuple[Raw, ...]]:
    kept: list[Kept] = []
    raw: list[Raw] = []
    offset = end = 0
    for name, size, crc, stored in _rows(table.get("files"), "name", "bytes", "crc32", "stored"):
        if _integer(size) > KEPT_RATIO * _integer(stored, 1):
            raise ValueError(f"{stored} bytes of xz cannot hold {size}")
        kept.append(Kept(name, size, _integer(crc), offset, stored))
        offset += stored
    for name, first, length in _rows(table.get("raw"), "name", "first", "segments"):
        if _integer(first, end) + _integer(length, 1) > segments:
            raise ValueError(f"raw files of more than {segments} segments")
        end = first + length
        raw.append(Raw(name, range(first, end)))
    return tuple(kept), tuple(raw)


def _check_names(names: list[Any]) -> None:
    for name in names:
        check_name(name)
    folded = {name.casefold() for name in names}
    if len(folded) < len(names) or folded & {str(folder) for name in folded for folder in PurePosixPath(name).parents}:
        raise FormatError(f"{MANIFEST}: duplicate names, or a name that is a folder in another")


def _rows(table: Any, *columns: str) -> Iterator[tuple[Any, ...]]:
    # The first column is a list: a table has no more rows than bytes.
    count = len(table[columns[0]]) if table else 0
    if table and (_integer(table["count"]) != count or not isinstance(table[columns[0]], list)):
        raise ValueError(f"expected a list of {table['count']} names")
    return zip(*(_values(table[key], count) for key in columns)) if count else iter(())


def _column(values: list[Any]) -> Any:
    """Equal values are stored once."""
    return {"all": values[0]} if values and all(v == values[0] for v in values) else values


def _values(column: Any, count: int) -> Sequence[Any]:
    """The inverse of `_column`."""
    if isinstance(column, dict):
        return [column["all"]] * count
    if not isinstance(column, list) or len(column) != count:
        raise ValueError(f"expected a column of {count} values")
    return column


def _integer(value: Any, least: int = 0, most: int = 1 << 63) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"expected an integer in {least}..{most}, found {json.dumps(value)[:60]}")
    return value
