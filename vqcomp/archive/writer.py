"""Writing an archive: one zip that holds the streams and all that it takes to decode them. FORMAT.md describes it.

Equal input gives equal bytes: timestamps, attributes and order are fixed.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from ..runtime import archive
from ..runtime.errors import InputError
from ..runtime.spec import TokenSpec
from .packing import bootstrap, roots_of, runtime_archive

_ZIP64_FROM = 1 << 31


class CodedSpec(NamedTuple):
    """Tokens of one shape, and the name of the codec that codes them."""

    spec: TokenSpec
    codec: str


def column(values: Sequence[Any]) -> Any:
    """A column of the manifest; equal values are stored once."""
    return {"all": values[0]} if values and all(v == values[0] for v in values) else list(values)


class Writer:
    """Writes a zip, stream by stream; memory does not grow with the payload, but for the manifest's columns.

    Use as a context manager; leaving it without an error completes the file. Streams must come ordered by spec.
    max_tokens bounds the tokens (times factors) that will come, and decides whether the zip needs 64-bit sizes.
    workers: whether a codec that learns will have several groups, which can be decoded side by side.
    raw files are (name, first segment, number of segments), in the order of the segments; files are (name, path) of
    those to keep byte for byte.
    """

    def __init__(
        self, path: Path, specs: Sequence[CodedSpec], model: bytes | None, max_tokens: int, version: str,
        raw: Sequence[tuple[str, int, int]] = (), files: Sequence[tuple[str, Path]] = (), workers: bool = False,
    ) -> None:  # fmt: skip
        self.specs, self.model, self.version = specs, model, version
        self.raw, self.files = raw, files
        self.kept: list[tuple[str, int, int, int]] = []
        self.segments: dict[str, list[Any]] = {"name": [], "dtype": [], "shape": [], "crc32": []}
        self.groups: dict[str, list[int]] = {"spec": [], "segments": [], "bytes": [], "crc32": []}
        self.whole = hashlib.sha256()
        self.zip = zipfile.ZipFile(path, "x")
        try:
            needs = {s.codec for s in specs}
            needs |= {need for need, wanted in (("files", raw or files), ("workers", workers)) if wanted}
            runtime = runtime_archive(roots_of(needs))
            self._put(archive.BOOTSTRAP, bootstrap(runtime), zipfile.ZIP_DEFLATED)
            self._put(archive.RUNTIME, runtime)
            if model is not None:
                self._put(archive.MODEL, model)
            # A token never takes more than a word of the range coder; a stream ends within two more.
            large = 4 * max_tokens + (1 << 20) > _ZIP64_FROM
            self.streams = self.zip.open(_entry(archive.STREAMS), "w", force_zip64=large)
        except BaseException:
            self.zip.close()
            raise

    def add(
        self, spec: int, names: Sequence[str], dtypes: Sequence[np.dtype[Any]], shapes: Sequence[tuple[int, ...]],
        tokens: Sequence[np.ndarray], stream: bytes,
    ) -> None:  # fmt: skip
        """Append a group: its segments' names, dtypes, shapes, factors (T, S, F), and the stream they became."""
        for array in tokens:
            data = archive.token_bytes(array)
            self.segments["crc32"].append(zlib.crc32(data))
            self.whole.update(data)
        self.segments["name"] += names
        self.segments["dtype"] += [d.str for d in dtypes]
        self.segments["shape"] += [list(s) for s in shapes]
        row = {"spec": spec, "segments": len(names), "bytes": len(stream), "crc32": zlib.crc32(stream)}
        for key, value in row.items():
            self.groups[key].append(value)
        self.streams.write(stream)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.streams.close()
                self._put_files()
                self._put(archive.MANIFEST, self.manifest(), zipfile.ZIP_DEFLATED)
                self.zip.close()
        finally:
            # Closing writes, and fails again where the disk is full: the first error is the one to tell.
            for handle in (self.streams, self.zip):
                with suppress(OSError, ValueError):
                    handle.close()

    def manifest(self) -> bytes:
        """manifest.json as bytes."""
        table = {
            "format": archive.FORMAT,
            "vqcomp": self.version,
            "specs": [
                {"height": s.height, "width": s.width, "factors": list(s.factors), "codec": codec}
                for s, codec in self.specs
            ],
            "segments": {"name": self.segments["name"]}
            | {key: column(self.segments[key]) for key in ("dtype", "shape", "crc32")},
            "groups": {"count": len(self.groups["spec"])} | {key: column(v) for key, v in self.groups.items()},
            "sha256": self.whole.hexdigest(),
            "model": None
            if self.model is None
            else {"bytes": len(self.model), "sha256": hashlib.sha256(self.model).hexdigest()},
        }
        # Only archives with such files have these members, and the module that reads them.
        for key, rows, keys in (
            ("files", self.kept, ("name", "bytes", "crc32", "stored")),
            ("raw", self.raw, ("name", "first", "segments")),
        ):
            if rows:
                table[key] = {"count": len(rows)} | {k: list(values) for k, values in zip(keys, zip(*rows))}
        body = json.dumps(table, separators=(",", ":")).encode()[:-1]
        return body + archive.CHECK.format(hashlib.sha256(body).hexdigest()).encode()

    def _put_files(self) -> None:
        """files.bin: each file as xz, since that is in Python's standard library wherever archives are unpacked."""
        if not self.files:
            return
        large = sum(path.stat().st_size for _, path in self.files) > _ZIP64_FROM // 2
        with self.zip.open(_entry(archive.FILES), "w", force_zip64=large) as entry:
            for name, path in self.files:
                xz = lzma.LZMACompressor(lzma.FORMAT_XZ, lzma.CHECK_NONE)
                size = crc = stored = 0
                for piece in read_pieces(path):
                    size, crc = size + len(piece), zlib.crc32(piece, crc)
                    stored += entry.write(xz.compress(piece))
                stored += entry.write(xz.flush())
                self.kept.append((name, size, crc, stored))

    def _put(self, name: str, data: bytes, method: int = zipfile.ZIP_STORED) -> None:
        self.zip.writestr(_entry(name), data, method, 9)


def read_pieces(path: Path) -> Iterator[bytes]:
    """A file in pieces. Raises InputError."""
    try:
        with open(path, "rb") as handle:
            while piece := handle.read(1 << 20):
                yield piece
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.create_system, entry.external_attr = 3, 0o100644 << 16
    return entry
