"""Archives as users open them: still zipped or not, a mapping from names to arrays."""

from __future__ import annotations

import bz2
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from ..runtime import archive
from ..runtime.archive import Reader, Segment
from ..runtime.errors import DamageError, FormatError, InputError
from ..runtime.files import Kept, Raw, contents

_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError)


class Archive(Reader, Mapping[str, np.ndarray]):
    """An open archive, a zip or the folder it was unpacked into: a mapping from segment names to arrays.

    Arrays are decoded when they are asked for; `decode` is the way to read many, since it computes them in batches.
    Opening runs no model. Raises FormatError, DamageError or UnsafeNameError, and InputError where nothing can be read.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, device: str = "auto", threads: int | None = None, jobs: int = 1
    ) -> None:
        self._zip: zipfile.ZipFile | None = None
        if not os.path.isdir(path):
            try:
                self._zip = zipfile.ZipFile(path)
            except OSError as error:
                raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
            except _ZIP_ERRORS as error:
                raise FormatError(
                    f"{path}: expected a zip written by vqcomp, found another file or half of one: {error}"
                ) from error
        self._kept: tuple[int, dict[str, np.ndarray]] = (-1, {})
        self._lost: dict[str, str] = {}
        try:
            super().__init__(path, device=device, threads=threads, jobs=jobs)
        except BaseException:
            if self._zip:
                self._zip.close()
            raise

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
        if self._kept[0] != group:
            members = [self.segments[i].name for i in self.manifest.groups[group].segments]
            self._lost = {}
            self._kept = (group, dict(self.decode(members, damaged=self._lost)))
        if name in self._lost:
            raise DamageError(f"{self.path}: segment {name!r}: {self._lost[name]}")
        return self._kept[1][name].copy()

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self.manifest.segments

    @property
    def tokens(self) -> int:
        """Number of tokens in the archive."""
        return sum(s.tokens for s in self.segments)

    @property
    def raw_bytes(self) -> int:
        """Size of all tokens at ceil(log2 vocabulary) bits each, 10 for commaVQ, and of the files kept as they are."""
        specs, groups = self.manifest.specs, self.manifest.groups
        bits = sum(s.tokens * (specs[groups[s.group].spec].vocabulary - 1).bit_length() for s in self.segments)
        return -(-bits // 8) + sum(f.size for f in self.kept)

    @property
    def kept(self) -> tuple[Kept, ...]:
        """Files that are kept byte for byte."""
        return self.manifest.extras.kept if self.manifest.extras else ()

    @property
    def raw(self) -> tuple[Raw, ...]:
        """Files that segments make up."""
        return self.manifest.extras.raw if self.manifest.extras else ()

    def contents(self, file: Kept) -> Iterator[bytes]:
        """The bytes of a kept file in pieces. Raises DamageError, at the end at the latest."""
        return contents(self, file)

    def sizes(self) -> dict[str, int]:
        """Bytes of each entry, compressed, and "total": of the whole zip, or of the folder's entries."""
        if self._zip:
            entries = {info.filename: info.compress_size for info in self._zip.infolist()}
            return {**entries, "total": self.path.stat().st_size}
        names = (archive.BOOTSTRAP, archive.RUNTIME, archive.MODEL, archive.STREAMS, archive.FILES, archive.MANIFEST)
        entries = {name: (self.path / name).stat().st_size for name in names if (self.path / name).exists()}
        return {**entries, "total": sum(entries.values())}

    def check_entries(self) -> None:
        """Check every entry, the runtime too, against the zip's own CRC, or bzip2's in a folder. Raises DamageError."""
        if not self._zip:
            try:
                bz2.decompress(self.read(archive.RUNTIME, archive.MANIFEST_LIMIT))
            except (OSError, ValueError, FormatError) as error:
                raise DamageError(f"{self.path}: {archive.RUNTIME} is damaged or missing: {error}") from error
        for info in self._zip.infolist() if self._zip else ():
            try:
                with self._open(info) as handle:
                    while handle.read(1 << 20):
                        pass
                if info.compress_type == zipfile.ZIP_DEFLATED:
                    # zipfile stops at the last byte; other programs also want to see the end of the deflated data.
                    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
                    self._streams.seek(self._data_start(info))
                    inflate.decompress(self._streams.read(info.compress_size))
                    if not inflate.eof or inflate.unused_data:
                        raise zipfile.BadZipFile("the deflated data do not end where they should")
            except _ZIP_ERRORS as error:
                raise DamageError(f"{self.path}: {info.filename} is damaged: {error}") from error

    def read(self, entry: str, limit: int) -> bytes:
        if not self._zip:
            return super().read(entry, limit)
        try:
            with self._open(self._info(entry)) as handle:
                data = handle.read(limit + 1)
        except _ZIP_ERRORS as error:
            raise DamageError(f"{entry} is damaged: {error}") from error
        if len(data) > limit:
            raise FormatError(f"{entry}: expected at most {limit} bytes")
        return data

    def open_stored(self, entry: str) -> tuple[BinaryIO, int, int]:
        # Read at its place in the file: zipfile checks one CRC over all streams, so that one flipped bit would take the
        # healthy ones along.
        if not self._zip:
            return super().open_stored(entry)
        info = self._info(entry)
        if info.compress_type != zipfile.ZIP_STORED:
            raise FormatError(f"{info.filename}: expected to be stored, found compressed; unzip it and open the folder")
        start = self._data_start(info)
        return open(self.path, "rb"), start, info.file_size

    def _data_start(self, info: zipfile.ZipInfo) -> int:
        """Where an entry's bytes begin in the zip."""
        with open(self.path, "rb") as handle:
            handle.seek(info.header_offset)
            header = handle.read(30)
        if header[:4] != b"PK\3\4" or len(header) < 30:
            raise DamageError(f"{info.filename}: its header in the zip is damaged")
        return info.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))

    def _info(self, entry: str) -> zipfile.ZipInfo:
        assert self._zip
        try:
            return self._zip.getinfo(entry)
        except KeyError as error:
            raise FormatError(f"no {entry} inside; expected an archive written by vqcomp") from error

    def _open(self, info: zipfile.ZipInfo) -> Any:
        assert self._zip
        return self._zip.open(info)
