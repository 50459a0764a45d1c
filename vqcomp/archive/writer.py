"""Writing an archive: one zip that holds the streams and all that it takes to decode them. FORMAT.md describes it.

Equal input gives equal bytes: timestamps, attributes and order are fixed.
"""

from __future__ import annotations

import hashlib
import lzma
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..data.files import File
from ..runtime import layout
from ..runtime.manifest import Coding, Group, Kept, Manifest, Raw, Segment
from ..runtime.reader import token_bytes
from ..version import __version__
from .packing import bootstrap, roots, runtime_archive

_ZIP64_FROM = 1 << 31
_XZ_DICTIONARY = 1 << 23
"""Bytes: what xz takes by default."""


class Writer:
    """Writes a zip, stream by stream; memory does not grow with the payload, but for the manifest.

    Use as a context manager; leaving it without an error completes the file. Groups must come ordered by coding.
    """

    def __init__(
        self,
        path: Path,
        codings: Sequence[Coding],
        model: bytes | None,
        *,
        max_tokens: int,
        raw: Sequence[Raw] = (),
        files: Sequence[File] = (),
        workers: bool = False,
        decoder: bool = True,
    ) -> None:
        """max_tokens bounds the tokens (times factors) that will come, and decides whether the zip needs 64-bit sizes.

        files are to be kept byte for byte. workers: whether a codec that learns will have several
        groups, which can be decoded side by side. decoder: whether the zip carries its own decoder.
        """
        self.codings, self.model, self.raw, self.files = codings, model, raw, files
        self.segments: list[Segment] = []
        self.groups: list[Group] = []
        self.size = 0
        self.whole = hashlib.sha256()
        self.zip = zipfile.ZipFile(path, "w")
        try:
            if decoder:
                chosen, weights = (kind for _, kind in codings), len(model or b"")
                modules = roots(chosen, files=bool(raw or files), workers=workers, model=weights)
                runtime = runtime_archive(modules)
                self._put(layout.BOOTSTRAP, bootstrap(runtime), zipfile.ZIP_DEFLATED)
                self._put(layout.RUNTIME, runtime)
            if model is not None:
                self._put(layout.MODEL, model)
            # A token never takes more than a word of the range coder; a stream ends within two more.
            large = 4 * max_tokens + (1 << 20) > _ZIP64_FROM
            self.streams = self.zip.open(_entry(layout.STREAMS), "w", force_zip64=large)
        except BaseException:
            self.zip.close()
            raise

    def add(
        self,
        coding: int,
        names: Sequence[str],
        dtypes: Sequence[np.dtype[Any]],
        shapes: Sequence[tuple[int, ...]],
        tokens: Sequence[np.ndarray],
        stream: bytes,
    ) -> None:
        """Append a group: its segments' names, dtypes, shapes, factors (T, S, F), and the stream they became."""
        first, group = len(self.segments), len(self.groups)
        for name, dtype, shape, array in zip(names, dtypes, shapes, tokens, strict=True):
            data = token_bytes(array)
            self.whole.update(data)
            self.segments.append(Segment(name, dtype, shape, zlib.crc32(data), group))
        self.groups.append(Group(coding, range(first, len(self.segments)), self.size, len(stream), zlib.crc32(stream)))
        self.size += self.streams.write(stream)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.streams.close()
                model = None if self.model is None else (len(self.model), hashlib.sha256(self.model).hexdigest())
                manifest = Manifest(
                    __version__, tuple(self.codings), tuple(self.segments), tuple(self.groups), self.whole.hexdigest(),
                    model, self._put_files(), tuple(self.raw),
                )  # fmt: skip
                self._put(layout.MANIFEST, manifest.to_bytes(), zipfile.ZIP_DEFLATED)
                self.zip.close()
        finally:
            # Closing writes, and fails again where the disk is full: the first error is the one to tell.
            for handle in (self.streams, self.zip):
                with suppress(OSError, ValueError):
                    handle.close()

    def _put_files(self) -> tuple[Kept, ...]:
        """files.bin: each file as xz, since that is in Python's standard library wherever archives are unpacked."""
        if not self.files:
            return ()
        kept, offset = [], 0
        large = sum(file.size for file in self.files) > _ZIP64_FROM // 2
        with self.zip.open(_entry(layout.FILES), "w", force_zip64=large) as entry:
            for file in self.files:
                # No more memory than the file needs: a small one takes a third of the time, and not a byte more.
                dictionary = min(max(file.size, 4096), _XZ_DICTIONARY)
                filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": dictionary}]
                xz = lzma.LZMACompressor(lzma.FORMAT_XZ, lzma.CHECK_NONE, filters=filters)
                size = crc = stored = 0
                for piece in file.pieces():
                    size, crc = size + len(piece), zlib.crc32(piece, crc)
                    stored += entry.write(xz.compress(piece))
                stored += entry.write(xz.flush())
                kept.append(Kept(file.name, size, crc, offset, stored))
                offset += stored
        return tuple(kept)

    def _put(self, name: str, data: bytes, method: int = zipfile.ZIP_STORED) -> None:
        self.zip.writestr(_entry(name), data, method, 9)


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.create_system, entry.external_attr = 3, 0o100644 << 16
    return entry
