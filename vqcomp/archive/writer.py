"""Writing an archive: one zip that holds the streams and all that it takes to decode them. FORMAT.md describes it.

Equal input gives equal bytes: timestamps, attributes and order are fixed.
"""

from __future__ import annotations

import bz2
import hashlib
import io
import json
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from ..data.files import File
from ..runtime import archive
from ..runtime.spec import TokenSpec

RUNTIME_FOLDER = Path(archive.__file__).parent
LATE_MODULES = {
    "adaptive": {"adapt"},
    "gpt": {"exact", "gpt", "weights"},
    "mixed": {"adapt", "exact", "gpt", "weights"},
    "files": {"files"},
    "workers": {"workers"},
}
"""What is imported late: for each codec, for files that are no arrays, for groups coded side by side."""
_ZIP64_FROM = 1 << 31
_XZ_DICTIONARY = 1 << 23
"""Bytes: what xz takes by default."""


class CodedSpec(NamedTuple):
    """Tokens of one shape, and the name of the codec that codes them."""

    spec: TokenSpec
    codec: str


def runtime_modules(needs: Iterable[str]) -> list[str]:
    """File names of the modules that decoding takes: entry points, LATE_MODULES[need] for each need, and imports."""
    found, wanted = set(), {"__init__", "main", "codec"}.union(*(LATE_MODULES[n] for n in needs))
    while wanted:
        name = wanted.pop()
        found.add(name)
        source = (RUNTIME_FOLDER / f"{name}.py").read_text("utf-8")
        # Imports at the top of a module; those inside functions are for some codecs only.
        wanted |= set(re.findall(r"^from \.(\w+) import", source, re.MULTILINE)) - found
    return [f"{name}.py" for name in sorted(found)]


@lru_cache
def runtime_archive(needs: frozenset[str]) -> bytes:
    """runtime.tar.bz2: those modules, verbatim."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in runtime_modules(needs):
            # Universal newlines: a checkout on Windows gives the same bytes as one on Linux.
            source = (RUNTIME_FOLDER / name).read_text("utf-8").encode()
            info = tarfile.TarInfo(name)
            info.size = len(source)
            tar.addfile(info, io.BytesIO(source))
    return bz2.compress(buffer.getvalue())


def bootstrap() -> bytes:
    """decompress.py, verbatim."""
    return (RUNTIME_FOLDER / archive.BOOTSTRAP).read_text("utf-8").encode()


def column(values: Sequence[Any]) -> Any:
    """A column of the manifest; equal values are stored once."""
    return {"all": values[0]} if values and all(v == values[0] for v in values) else list(values)


class Writer:
    """Writes a zip, stream by stream; memory does not grow with the payload, but for the manifest's columns.

    Use as a context manager; leaving it without an error completes the file. Streams must come ordered by spec.
    max_tokens bounds the tokens (times factors) that will come, and decides whether the zip needs 64-bit sizes.
    workers: whether a codec that learns will have several groups, which can be decoded side by side.
    raw files are (name, first segment, number of segments), in the order of the segments; files are those to keep
    byte for byte.
    """

    def __init__(
        self, path: Path, specs: Sequence[CodedSpec], model: bytes | None, max_tokens: int, version: str,
        raw: Sequence[tuple[str, int, int]] = (), files: Sequence[File] = (), workers: bool = False,
    ) -> None:  # fmt: skip
        self.specs, self.model, self.version = specs, model, version
        self.raw, self.files = raw, files
        self.kept: list[tuple[str, int, int, int]] = []
        self.segments: dict[str, list[Any]] = {"name": [], "dtype": [], "shape": [], "crc32": []}
        self.groups: dict[str, list[int]] = {"spec": [], "segments": [], "bytes": [], "crc32": []}
        self.whole = hashlib.sha256()
        self.zip = zipfile.ZipFile(path, "x")
        try:
            self._put(archive.BOOTSTRAP, bootstrap(), zipfile.ZIP_DEFLATED)
            needs = {s.codec for s in specs}
            needs |= {need for need, wanted in (("files", raw or files), ("workers", workers)) if wanted}
            self._put(archive.RUNTIME, runtime_archive(frozenset(needs)))
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
        large = sum(file.size for file in self.files) > _ZIP64_FROM // 2
        with self.zip.open(_entry(archive.FILES), "w", force_zip64=large) as entry:
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
                self.kept.append((file.name, size, crc, stored))

    def _put(self, name: str, data: bytes, method: int = zipfile.ZIP_STORED) -> None:
        self.zip.writestr(_entry(name), data, method, 9)


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.create_system, entry.external_attr = 3, 0o100644 << 16
    return entry
