"""Segments in shards: webdataset tars as commaVQ is published, and its older zips.

A sample is `<key>.token.npy`, an array of ids, and `<key>.json`, whose `file_name` is the segment's name; it may have
more members, such as `<key>.pose.npy`. Members may come in any order. A zip holds plain `<name>.npy` files, which keep
their names.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ..runtime.errors import InputError
from .containers import ERRORS, Member, MemberFile, Tar, Zip
from .files import open_file
from .messages import json_value, reason
from .npy import read_header
from .segments import READ_TOKENS, Grid, SegmentSource, find_grid

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
TOKENS, NAMES, PLAIN = "token.npy", "json", "npy"
"""What follows a member's key."""
_JSON_LIMIT = 1 << 20

Bad = Callable[[InputError], None]
"""Called with what is wrong with one piece of the data: raises it, or notes it and lets the rest go on."""


@dataclass(frozen=True)
class MemberSource(SegmentSource):
    """A segment in a container. Its values are known in sum since the container was looked through."""

    pack: Tar | Zip | None = None
    member: str = ""
    at: Any = None
    scanned: tuple[int, int] = (0, 0)
    """What `scan` returns."""

    @property
    def label(self) -> str:
        return f"{self.source}: {self.member}"

    @property
    def in_place(self) -> bool:
        return False

    def scan(self) -> tuple[int, int]:
        return self.scanned

    def _parts(self) -> Iterator[np.ndarray]:
        assert self.pack
        size = self.tokens * self.dtype.itemsize
        try:
            data = self.pack.read(self.at, self.start, size)
        except ERRORS as error:
            raise InputError(f"{self.label}: cannot be read: {reason(error)}") from error
        if len(data) != size:
            raise InputError(f"{self.label}: expected {size} bytes, found {len(data)}; the file changed meanwhile")
        yield np.frombuffer(data, self.dtype)


class Shard(NamedTuple):
    """What is in a shard: segments in the order in which they lie there, and everything else, in that order too.

    others: members that are no arrays of ids, and can be kept as files. unreadable: what cannot, such as
    "link.txt (a symbolic link)".
    """

    segments: list[SegmentSource]
    others: list[MemberFile]
    unreadable: list[str]


def is_shard(path: Path) -> bool:
    """Whether a file's name is that of a shard of tokens; those of poses alone are not."""
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith("pose")


def kind_of(member: str) -> str:
    """What kind of members a member is one of, as a pattern of names: "*.pose.npy". Without a dot, its own name."""
    kind = _split(member)[1]
    return f"*.{kind}" if kind else member


def read_shard(path: Path, grid: Grid | None, bad: Bad) -> Shard:
    """Look through a shard. It has no segments if it holds no tokens at all.

    `bad` is called with an InputError for each member, or rest of the shard, that cannot be used. Raises InputError
    for a path that is no file.
    """
    open_file(path).close()
    pack = Zip(path) if path.name.lower().endswith(".zip") else Tar(path)
    found: dict[str, MemberSource] = {}
    names: dict[str, str | InputError] = {}
    others: list[MemberFile] = []
    unreadable: list[str] = []
    seen: set[str] = set()
    failed: set[str] = set()
    member = None
    try:
        for member in pack.members():
            key, kind = _split(member.name)
            label = f"{path}: {member.name}"
            is_sample = kind in (TOKENS, NAMES, PLAIN)
            if not is_sample and member.problem:
                unreadable.append(f"{member.name} ({member.problem})")
            if kind not in (TOKENS, PLAIN) and not member.problem:
                others.append(MemberFile(member.name, path, (), pack, member.at, member.size))
            if not is_sample:
                continue
            try:
                if member.problem:
                    raise InputError(f"{label}: expected a regular file, found {member.problem}")
                if member.name in seen:
                    raise InputError(f"{label}: two members have this name; expected one")
                seen.add(member.name)
                if kind != NAMES and member.link in found:
                    found[member.name] = replace(found[member.link], name=member.name, member=member.name)
                    continue
                with member.open() as handle:
                    if kind == NAMES:
                        names[key] = _file_name(label, handle)
                    else:
                        found[member.name] = _scan(pack, member, label, handle, grid)
            except InputError as error:
                failed.add(key)
                bad(error)
            except ERRORS as error:
                if isinstance(pack, Tar):
                    raise
                failed.add(key)
                bad(InputError(f"{label}: the member is damaged: {reason(error)}"))
    except ERRORS as error:
        after = f" after the member {member.name}" if member else ""
        bad(InputError(f"{path}: the file is truncated or damaged{after}: {reason(error)}; fetch it again"))
    segments = list(_named(path, found, names, failed, bad))
    if isinstance(pack, Tar):
        segments.sort(key=lambda s: s.at)  # hard links lie where they lead to
        others.sort(key=lambda f: f.at)
    return Shard([*segments], others, unreadable)


def _split(name: str) -> tuple[str, str]:
    """A webdataset member -> its key, folder included, and what follows the first dot of its base name."""
    folder, slash, base = name.rpartition("/")
    key, _, kind = base.partition(".")
    return folder + slash + key, kind if key else ""


def _file_name(label: str, handle: IO[bytes]) -> str | InputError:
    """The name that a sample's JSON gives, or what is wrong with it: that matters only where there are tokens."""
    data = handle.read(_JSON_LIMIT)
    try:
        name = json.loads(data)["file_name"]
    except (ValueError, RecursionError) as error:
        return InputError(f"{label}: expected JSON, found other data: {reason(error)}")
    except (KeyError, TypeError):
        return InputError(f"{label}: expected an object with a file_name, found none")
    return (
        name
        if isinstance(name, str)
        else InputError(f"{label}: expected a string as file_name, found {json_value(name)}")
    )


def _scan(pack: Tar | Zip, member: Member, label: str, handle: IO[bytes], grid: Grid | None) -> MemberSource:
    """Read an array's header and look through its values."""
    shape, fortran, dtype = read_header(label, handle)
    grid = find_grid(label, dtype, shape, grid)
    start, left = handle.tell(), prod(shape)
    low, high, checksum = 0, 0, 0
    while left:
        data = handle.read(min(left, READ_TOKENS) * dtype.itemsize)
        values = np.frombuffer(data[: len(data) - len(data) % dtype.itemsize], dtype)
        if not values.size:
            raise InputError(f"{label}: the array is truncated: {left} of {prod(shape)} values are missing")
        low, high, left = min(low, int(values.min())), max(high, int(values.max())), left - values.size
        checksum = zlib.crc32(values.data, checksum)
    if handle.read(1):
        raise InputError(f"{label}: expected nothing after the array of {shape} {dtype}")
    scanned = high, checksum
    segment = MemberSource(
        member.name, dtype, shape, grid, pack.path, start, fortran, None, None, pack, member.name, member.at, scanned
    )
    segment.check_range(low, high)
    return segment


def _named(
    path: Path, found: dict[str, MemberSource], names: dict[str, str | InputError], failed: set[str], bad: Bad
) -> Iterator[MemberSource]:
    """Give segments their samples' names. Members without a partner are bad, unless the partner was already."""
    is_webdataset = any(_split(member)[1] == TOKENS for member in found)
    used: dict[str, str] = {}
    for member, segment in found.items():
        key, kind = _split(member)
        name = names.pop(key, None) if kind == TOKENS else member
        if key in failed:
            continue
        if name is None:
            bad(InputError(f"{path}: {member}: expected a {key}.{NAMES} with its file_name, found none"))
        elif isinstance(name, InputError):
            bad(name)
        elif name in used:
            bad(InputError(f"{path}: {member} and {used[name]} have the same name {name!r}; expected two"))
        else:
            used[name] = member
            yield replace(segment, name=name)
    for key in sorted(names.keys() - failed) if is_webdataset else ():
        bad(InputError(f"{path}: {key}.{NAMES}: expected a {key}.{TOKENS} beside it, found none"))
