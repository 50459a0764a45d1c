"""Segments in shards: webdataset tars as commaVQ is published, and its older zips. Nothing is unpacked to disk.

A sample is `<key>.token.npy`, an array of ids, and `<key>.json`, whose `file_name` is the segment's name; poses and
other members are left out. Members may come in any order. A zip holds plain `<name>.npy` files, which keep their
names. A gzipped tar can only be read forward, so a first pass notes where arrays lie, and later ones should ask for
them in that order: going back means to start over.
"""

from __future__ import annotations

import gzip
import json
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np

from ..runtime.errors import InputError
from .segments import BLOCK, Bad, Grid, Segment, check_array, read_header

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
TOKENS, NAMES, PLAIN = "token.npy", "json", "npy"
"""What follows a member's key."""
_JSON_LIMIT = 1 << 20
_ERRORS = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)
"""What the standard library raises for containers that are truncated, damaged, encrypted or something else."""


class Member(NamedTuple):
    """A file in a container; `at` is how to find it again."""

    name: str
    at: Any
    open: Callable[[], IO[bytes]]


class Tar:
    """A tar, gzipped or not, read forward. Offsets are those of the tar within."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: IO[bytes] | None = None

    def members(self) -> Iterator[Member]:
        """All regular files. Raises tarfile.TarError, EOFError, zlib.error or OSError where the tar breaks off."""
        handle = self._open()
        tar = tarfile.open(fileobj=handle, mode="r:")
        for info in tar:
            if info.isfile() and not info.issparse():
                yield Member(info.name, info.offset_data, partial(_extract, tar, info))
        # tarfile takes a damaged header, and an end without the closing zeros, for the end of the archive.
        handle.seek(tar.offset)
        if handle.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("a header is damaged, or the end is missing")
        while handle.read(1 << 20):  # to the end, where gzip checks its checksum
            pass

    def read(self, at: int, start: int, size: int) -> bytes:
        """`size` bytes at offset `start` of the member at `at`."""
        handle = self._open()
        handle.seek(at + start)
        return handle.read(size)

    def _open(self) -> IO[bytes]:
        if self._handle is None:
            with open(self.path, "rb") as handle:
                gzipped = handle.read(2) == b"\x1f\x8b"
            self._handle = cast("IO[bytes]", gzip.open(self.path, "rb")) if gzipped else open(self.path, "rb")
        return self._handle

    def __del__(self) -> None:
        if self._handle is not None:
            self._handle.close()


class Zip:
    """A zip; members are read in any order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip: zipfile.ZipFile | None = None

    def members(self) -> Iterator[Member]:
        """All files. Raises zipfile.BadZipFile or OSError where the zip has no directory of its members."""
        archive = self._open()
        for info in archive.infolist():
            if not info.is_dir():
                yield Member(info.filename, info, partial(archive.open, info))

    def read(self, at: zipfile.ZipInfo, start: int, size: int) -> bytes:
        """`size` bytes at offset `start` of the member `at`."""
        with self._open().open(at) as handle:
            handle.seek(start)
            return handle.read(size)

    def _open(self) -> zipfile.ZipFile:
        if self._zip is None:
            self._zip = zipfile.ZipFile(self.path)
        return self._zip

    def __del__(self) -> None:
        if self._zip is not None:
            self._zip.close()


@dataclass(frozen=True)
class PackedSegment(Segment):
    """A segment in a container. Its largest id is known since the container was looked through."""

    pack: Tar | Zip | None = None
    member: str = ""
    at: Any = None
    largest: int = 0

    @property
    def label(self) -> str:
        return f"{self.source}: {self.member}"

    def maximum(self) -> int:
        return self.largest

    def _blocks(self) -> Iterable[np.ndarray]:
        assert self.pack
        size = self.tokens * self.dtype.itemsize
        try:
            data = self.pack.read(self.at, self.start, size)
        except _ERRORS as error:
            raise InputError(f"{self.label}: cannot be read: {error}") from error
        if len(data) != size:
            raise InputError(f"{self.label}: expected {size} bytes, found {len(data)}; the file changed meanwhile")
        yield np.frombuffer(data, self.dtype)


def _extract(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    handle = tar.extractfile(info)
    assert handle  # as of every regular file
    return handle


def is_shard(path: Path) -> bool:
    """Whether a file's name is that of a shard of tokens; those of poses alone are not."""
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith("pose")


def find_packed(path: Path, grid: Grid | None, bad: Bad) -> list[Segment]:
    """The segments of a shard in the order in which they lie there; none if it holds no tokens at all.

    `bad` is called with an InputError for each member, or rest of the shard, that cannot be used.
    """
    pack = Zip(path) if path.name.lower().endswith(".zip") else Tar(path)
    found: dict[str, PackedSegment] = {}
    names: dict[str, str | InputError] = {}
    seen: set[str] = set()
    failed: set[str] = set()
    member = None
    try:
        for member in pack.members():
            key, kind = _split(member.name)
            label = f"{path}: {member.name}"
            if kind not in (TOKENS, NAMES, PLAIN):
                continue
            try:
                if member.name in seen:
                    raise InputError(f"{label}: two members have this name; expected one")
                seen.add(member.name)
                with member.open() as handle:
                    if kind == NAMES:
                        names[key] = _file_name(label, handle)
                    else:
                        found[member.name] = _scan(pack, member, label, handle, grid)
            except InputError as error:
                failed.add(key)
                bad(error)
            except _ERRORS as error:
                if isinstance(pack, Tar):
                    raise
                failed.add(key)
                bad(InputError(f"{label}: the member is damaged: {error}"))
    except _ERRORS as error:
        after = f" after the member {member.name}" if member else ""
        bad(InputError(f"{path}: the file is truncated or damaged{after}: {error}; fetch it again"))
    return list(_named(path, found, names, failed, bad))


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
        return InputError(f"{label}: expected JSON, found {error}")
    except (KeyError, TypeError):
        return InputError(f"{label}: expected an object with a file_name, found none")
    return name if isinstance(name, str) else InputError(f"{label}: expected a string as file_name, found {name!r}")


def _scan(pack: Tar | Zip, member: Member, label: str, handle: IO[bytes], grid: Grid | None) -> PackedSegment:
    """Read an array's header and look through its values."""
    shape, fortran, dtype = read_header(label, handle)
    grid = check_array(label, dtype, shape, grid)
    start, left = handle.tell(), prod(shape)
    low, high = 0, 0
    while left:
        data = handle.read(min(left, BLOCK) * dtype.itemsize)
        values = np.frombuffer(data[: len(data) - len(data) % dtype.itemsize], dtype)
        if not values.size:
            raise InputError(f"{label}: the array is truncated: {left} of {prod(shape)} values are missing")
        low, high, left = min(low, int(values.min())), max(high, int(values.max())), left - values.size
    if handle.read(1):
        raise InputError(f"{label}: expected nothing after the array of {shape} {dtype}")
    segment = PackedSegment(
        member.name, dtype, shape, grid, pack.path, start, fortran, None, None, pack, member.name, member.at, high
    )
    segment.check_range(low, high)
    return segment


def _named(
    path: Path, found: dict[str, PackedSegment], names: dict[str, str | InputError], failed: set[str], bad: Bad
) -> Iterator[Segment]:
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
            yield PackedSegment(**{**vars(segment), "name": name})
    for key in sorted(names.keys() - failed) if is_webdataset else ():
        bad(InputError(f"{path}: {key}.{NAMES}: expected a {key}.{TOKENS} beside it, found none"))
