"""Archives as users open them: still zipped or not, a mapping from names to arrays."""

from __future__ import annotations

import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..data.files import open_file
from ..data.messages import reason
from ..runtime import layout
from ..runtime.codec import Advance
from ..runtime.compute import Compute
from ..runtime.errors import ArchiveError, DamageError, FormatError, InputError
from ..runtime.files import contents
from ..runtime.manifest import Kept, Manifest, Segment
from ..runtime.reader import Reader
from .packing import is_whole
from .validation import parse_untrusted

_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, NotImplementedError, RuntimeError,
    ValueError, OverflowError,
)  # fmt: skip
"""What zipfile raises for zips that are damaged, cut short, encrypted or of an unknown method."""


@contextmanager
def _damage(what: str) -> Iterator[None]:
    """Turn all that zipfile can raise into DamageError."""
    try:
        yield
    except ArchiveError:
        raise
    except _ERRORS as error:
        raise DamageError(f"{what} is damaged: {reason(error)}") from error


class Archive(Reader, Mapping[str, np.ndarray]):
    """An open archive, a zip or the folder it was unpacked into: a mapping from segment names to arrays.

    Arrays are decoded when they are asked for; `decode` is the way to read many, since it computes them in batches.
    Opening runs no model. Raises FormatError, DamageError or UnsafeNameError, and InputError where nothing can be read.
    """

    def __init__(self, path: str | os.PathLike[str], compute: Compute | None = None) -> None:
        self._zip: zipfile.ZipFile | None = None
        if not os.path.isdir(path):
            open_file(Path(path)).close()
            try:
                self._zip = zipfile.ZipFile(path)
            except _ERRORS as error:
                raise FormatError(
                    f"{path}: expected a zip written by vqcomp, found another file or half of one: {reason(error)}"
                ) from error
        self._recent: tuple[int, dict[str, np.ndarray], dict[str, str]] = (-1, {}, {})
        try:
            super().__init__(path, (compute or Compute()).checked())
        except BaseException:
            if self._zip:
                self._zip.close()
            raise
        self._segments = {s.name: s for s in self.manifest.segments}

    def close(self) -> None:
        super().close()
        if self._zip:
            self._zip.close()

    def __len__(self) -> int:
        return len(self._segments)

    def __iter__(self) -> Iterator[str]:
        return iter(self._segments)

    def __contains__(self, name: object) -> bool:
        return name in self._segments

    def __getitem__(self, name: str) -> np.ndarray:
        """The array of one segment. Raises KeyError, or DamageError. Segments of the same stream are kept at hand."""
        group = self._segments[name].group
        if self._recent[0] != group:
            members = [self.segments[i].name for i in self.manifest.groups[group].segments]
            lost: dict[str, str] = {}
            self._recent = (group, dict(self.decode(members, damaged=lost)), lost)
        _, arrays, lost = self._recent
        if name in lost:
            raise DamageError(f"{self.path}: segment {name}: {lost[name]}")
        return arrays[name].copy()

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self.manifest.segments

    @property
    def kept(self) -> tuple[Kept, ...]:
        """Files that are kept byte for byte."""
        return self.manifest.kept

    @property
    def tokens(self) -> int:
        """Number of tokens in the archive."""
        return sum(s.tokens for s in self.segments)

    @property
    def raw_bytes(self) -> int:
        """Size of all tokens at ceil(log2 vocabulary) bits each, 10 for commaVQ, and of the files kept as they are."""
        bits = sum(s.tokens * self.manifest.coding_of(s).spec.bits for s in self.segments)
        return -(-bits // 8) + sum(f.size for f in self.kept)

    def contents(self, file: Kept) -> Iterator[bytes]:
        """The bytes of a kept file in pieces. Raises DamageError, at the end at the latest."""
        return contents(self, file)

    def sizes(self) -> dict[str, int]:
        """Bytes of each entry, compressed, and "total": of the whole zip, or of the folder's entries."""
        if self._zip:
            entries = {info.filename: info.compress_size for info in self._zip.infolist()}
            return {**entries, "total": self.path.stat().st_size}
        entries = {name: (self.path / name).stat().st_size for name in layout.ENTRIES if (self.path / name).exists()}
        return {**entries, "total": sum(entries.values())}

    def decode(
        self,
        names: Iterable[str] | None = None,
        *,
        damaged: dict[str, str] | None = None,
        advance: Advance | None = None,
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, array) in the archive's order, of the named segments or of all: see `decode_segments`.

        Without `damaged`, a damaged segment raises DamageError. Raises InputError on an unknown name, FormatError for
        ids that do not fit their dtype.
        """
        wanted = self._segments.keys() if names is None else set(names)
        for name in sorted(wanted - self._segments.keys()):
            raise InputError(f"{self.path}: no segment {name} inside; `vqcomp list` shows the names")
        lost: dict[str, str] = {} if damaged is None else damaged
        for item in self.decode_segments(wanted, lost, advance):
            if damaged is None:
                self._require_whole(lost)
            yield item
        if damaged is None:
            self._require_whole(lost)

    def _require_whole(self, lost: dict[str, str]) -> None:
        if lost:
            reasons = "; ".join(f"segment {name!r}: {reason}" for name, reason in lost.items())
            raise DamageError(f"{self.path}: {reasons}")

    def check_entries(self) -> None:
        """Check every entry, the decoder too, against the zip's own CRC, or bzip2's in a folder. Raises DamageError."""
        if not self._zip:
            path = self.path / layout.RUNTIME
            carried = (self.path / layout.BOOTSTRAP).exists() or path.exists()
            if carried and not (path.is_file() and is_whole(path.read_bytes())):
                raise DamageError(f"{self.path}: {layout.RUNTIME} is damaged or missing")
        for info in self._zip.infolist() if self._zip else ():
            with _damage(f"{self.path}: {info.filename}"):
                with self._open(info) as handle:
                    while handle.read(1 << 20):
                        pass
                if info.compress_type == zipfile.ZIP_DEFLATED:
                    # zipfile stops at the last byte; other programs also want to see the end of the deflated data.
                    inflate, left = zlib.decompressobj(-zlib.MAX_WBITS), info.compress_size
                    self._streams.seek(self._data_start(info))
                    while left and not inflate.eof and (data := self._streams.read(min(left, 1 << 16))):
                        left -= len(data)
                        while data and not inflate.eof:
                            inflate.decompress(data, 1 << 20)
                            data = inflate.unconsumed_tail
                    if not inflate.eof or inflate.unused_data or left:
                        raise zipfile.BadZipFile("the deflated data do not end where they should")

    def check_stream(self, group: int) -> None:
        """Raise DamageError if the bytes of a group's stream are not those that were written."""
        self._stream(self.manifest.groups[group])

    def _array(self, segment: Segment, ids: np.ndarray) -> np.ndarray:
        if ids.max() > np.iinfo(segment.dtype).max:
            raise FormatError(f"{self.path}: {segment.name}: its dtype {segment.dtype} is too small for its ids")
        return super()._array(segment, ids)

    def _read_at(self, start: int, size: int) -> bytes:
        # Forked processes share the place in an open file: they must not seek.
        if hasattr(os, "pread"):
            return os.pread(self._streams.fileno(), size, start)
        return super()._read_at(start, size)

    def read_manifest(self) -> Manifest:
        data = self.read(layout.MANIFEST, layout.MANIFEST_LIMIT + 1)
        if len(data) > layout.MANIFEST_LIMIT:
            raise FormatError(f"{layout.MANIFEST}: expected at most {layout.MANIFEST_LIMIT} bytes")
        return parse_untrusted(data)

    def read(self, entry: str, limit: int = -1) -> bytes:
        if not self._zip:
            self._require_regular(entry)
            return super().read(entry, limit)
        with _damage(entry), self._open(self._info(entry)) as handle:
            return handle.read(limit)

    def open_stored(self, entry: str) -> tuple[BinaryIO, int, int]:
        # Read at its place in the file: zipfile checks one CRC over all streams, so that one flipped bit would take the
        # healthy ones along.
        if not self._zip:
            self._require_regular(entry)
            return super().open_stored(entry)
        info = self._info(entry)
        if info.compress_type != zipfile.ZIP_STORED:
            raise FormatError(f"{info.filename}: expected to be stored, found compressed; unzip it and open the folder")
        with _damage(entry):
            start = self._data_start(info)
            if start + info.file_size > os.path.getsize(self.path):
                raise zipfile.BadZipFile(f"the zip ends before its {info.file_size:,} bytes do")
        return open(self.path, "rb"), start, info.file_size

    def _require_regular(self, entry: str) -> None:
        """Reading a named pipe or a device may never come to an end."""
        path = self.path / entry
        if os.path.lexists(path) and not path.is_file():
            raise FormatError(f"{entry}: expected a regular file, found something else")

    def _data_start(self, info: zipfile.ZipInfo) -> int:
        """Where an entry's bytes begin in the zip."""
        with open(self.path, "rb") as handle:
            handle.seek(info.header_offset)
            header = handle.read(30)
        if header[:4] != b"PK\3\4" or len(header) < 30:
            raise zipfile.BadZipFile("its header in the zip")
        return info.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))

    def _info(self, entry: str) -> zipfile.ZipInfo:
        assert self._zip
        try:
            return self._zip.getinfo(entry)
        except KeyError as error:
            raise FormatError(f"no {entry} inside; expected an archive written by vqcomp") from error

    def _open(self, info: zipfile.ZipInfo) -> zipfile.ZipExtFile:
        assert self._zip
        handle = self._zip.open(info)
        assert isinstance(handle, zipfile.ZipExtFile)
        return handle
