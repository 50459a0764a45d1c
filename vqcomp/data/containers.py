"""Members of tars and zips, read where they lie. Nothing is unpacked to disk.

A gzipped tar can only be read forward: to go back means to start over. So readers note where members lie, and ask for
them in that order.
"""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from ..runtime.errors import InputError
from .files import PIECE, File
from .messages import reason

ERRORS = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)
"""What the standard library raises for containers that are truncated, damaged, encrypted or something else."""
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


class Member(NamedTuple):
    """A member of a container, at offset `at` of a tar; in a zip, `at` is its ZipInfo. size: bytes.

    open reads it from its beginning, best while members are walked through. link: the earlier member that it is a hard
    link to, if any. problem: why it cannot be read, such as "a symbolic link"; empty if it can.
    """

    name: str
    at: Any
    size: int
    open: Callable[[], IO[bytes]]
    link: str = ""
    problem: str = ""


class Tar:
    """A tar, or several one after another, gzipped or not, read forward. Offsets are those of the tar within."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: IO[bytes] | None = None
        self._last: tuple[int, int, int, bytes] = (0, 0, 0, b"")

    def members(self) -> Iterator[Member]:
        """All members but folders. Raises one of ERRORS where the tar breaks off."""
        regular: dict[str, tuple[int, int]] = {}  # (offset, size): what hard links may lead to
        handle = self._open()
        while True:
            tar = tarfile.open(fileobj=handle, mode="r:")
            for info in tar:
                if info.isdir():
                    continue
                problem = "a sparse file" if info.issparse() else ""
                if info.isreg() and not problem:
                    regular[info.name] = info.offset_data, info.size
                    yield Member(info.name, info.offset_data, info.size, partial(_extract, tar, info))
                elif info.islnk() and info.linkname in regular:
                    at, size = regular[info.name] = regular[info.linkname]
                    yield Member(info.name, at, size, partial(self._reopen, at, size), info.linkname)
                else:
                    if info.islnk():
                        problem = "a hard link to what is not before it"
                    problem = problem or _KINDS.get(info.type, "of an unknown kind")
                    yield Member(info.name, info.offset_data, info.size, partial(_extract, tar, info), "", problem)
            # tarfile takes a damaged header, and an end without the closing zeros, for the end of the archive.
            handle.seek(tar.offset)
            if handle.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("a header is damaged, or the end is missing")
            after = _skip_zeros(handle, tar.offset)  # up to the end, where gzip checks its checksum
            if after is None:
                return
            handle.seek(after)

    def read(self, at: int, start: int, size: int) -> bytes:
        """`size` bytes at offset `start` of the member at `at`; fewer where the file ends."""
        if self._last[:3] != (at, start, size):  # a hard link asks for the same bytes again
            handle = self._open()
            handle.seek(at + start)
            self._last = (at, start, size, handle.read(size))
        return self._last[3]

    def pieces(self, at: int, size: int) -> Iterator[bytes]:
        """The `size` bytes of the member at `at`, a piece at a time; fewer where the file ends."""
        handle = self._open()
        for start in range(0, size, PIECE):
            handle.seek(at + start)
            yield handle.read(min(PIECE, size - start))

    def _open(self) -> IO[bytes]:
        if self._handle is None:
            with open(self.path, "rb") as handle:
                gzipped = handle.read(2) == b"\x1f\x8b"
            self._handle = cast("IO[bytes]", gzip.open(self.path, "rb")) if gzipped else open(self.path, "rb")
        return self._handle

    def _reopen(self, at: int, size: int) -> IO[bytes]:
        return io.BytesIO(self.read(at, 0, size))

    def __del__(self) -> None:
        if self._handle is not None:
            self._handle.close()


class Zip:
    """A zip; members are read in any order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip: zipfile.ZipFile | None = None

    def members(self) -> Iterator[Member]:
        """All members but folders. Raises zipfile.BadZipFile or OSError where the zip has no directory of them."""
        archive = self._open()
        for info in archive.infolist():
            if not info.filename.endswith("/"):  # is_dir() fails where the name is empty
                problem = "a symbolic link" if stat.S_ISLNK(info.external_attr >> 16) else ""
                yield Member(info.filename, info, info.file_size, partial(archive.open, info), "", problem)

    def read(self, at: zipfile.ZipInfo, start: int, size: int) -> bytes:
        """`size` bytes at offset `start` of the member `at`; fewer where it ends."""
        with self._open().open(at) as handle:
            handle.seek(start)
            return handle.read(size)

    def pieces(self, at: zipfile.ZipInfo, size: int) -> Iterator[bytes]:
        """The bytes of the member `at`, a piece at a time."""
        with self._open().open(at) as handle:
            while piece := handle.read(PIECE):
                yield piece

    def _open(self) -> zipfile.ZipFile:
        if self._zip is None:
            self._zip = zipfile.ZipFile(self.path)
        return self._zip

    def __del__(self) -> None:
        if self._zip is not None:
            self._zip.close()


@dataclass(frozen=True)
class MemberFile(File):
    """A member of the container at `path` that is kept byte for byte."""

    pack: Tar | Zip | None = None
    at: Any = None
    length: int = 0

    @property
    def label(self) -> str:
        return f"{self.path}: {self.name}"

    @property
    def size(self) -> int:
        return self.length

    def pieces(self) -> Iterator[bytes]:
        assert self.pack
        size = 0
        try:
            for piece in self.pack.pieces(self.at, self.length):
                size += len(piece)
                yield piece
        except ERRORS as error:
            raise InputError(f"{self.label}: cannot be read: {reason(error)}") from error
        if size != self.length:
            raise InputError(f"{self.label}: expected {self.length} bytes, found {size}; the file changed meanwhile")


def _extract(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    handle = tar.extractfile(info)
    assert handle  # as of every regular file
    return handle


def _skip_zeros(handle: IO[bytes], start: int) -> int | None:
    """The offset of the first block from `start` on that is not all zeros; None if there is none."""
    handle.seek(start)
    while piece := handle.read(PIECE):
        if rest := piece.lstrip(b"\0"):
            return (start + len(piece) - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        start += len(piece)
    return None
