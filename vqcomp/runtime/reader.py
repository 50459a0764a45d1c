"""Reading an unpacked archive: segments from its streams. FORMAT.md describes the layout."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from .codec import Advance, Codec
from .compute import Compute
from .errors import ArchiveError, DamageError, FormatError, InputError
from .kinds import codec_of
from .layout import MANIFEST, MODEL, STREAMS
from .manifest import Group, Manifest, Segment, parse

ReaderType = TypeVar("ReaderType", bound="Reader")


def token_bytes(tokens: np.ndarray) -> bytes:
    """What checksums cover: factors (T, S, F) as little-endian int32."""
    return np.ascontiguousarray(tokens, "<i4").tobytes()


class Reader:
    """An archive that was unpacked into a folder, opened for decoding. Use it in a `with`.

    Opening reads the manifest and runs no model. The manifest is trusted: see `archive.reader.Archive` for one that is
    not. Raises FormatError or DamageError, and InputError for a file that cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], compute: Compute | None = None) -> None:
        self.path, self.compute = Path(path), compute or Compute()
        self._codecs: dict[int, Codec] = {}
        try:
            self.manifest = self.read_manifest()
            self.compute = self.compute.with_jobs(self.manifest.model is not None)
            self._streams, self._start, found = self.open_stored(STREAMS)
            expected = sum(g.size for g in self.manifest.groups)
            if found != expected:
                self._streams.close()
                raise FormatError(
                    f"{STREAMS}: expected {expected} bytes, found {found}; the archive is cut short or damaged"
                )
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
        except ArchiveError as error:
            raise type(error)(f"{path}: {error}") from error

    def __enter__(self: ReaderType) -> ReaderType:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._streams.close()
        for codec in self._codecs.values():
            codec.close()

    def read_manifest(self) -> Manifest:
        """As `manifest.parse`."""
        return parse(self.read(MANIFEST))

    def read(self, entry: str, limit: int = -1) -> bytes:
        """The bytes of an entry, at most `limit`. Raises FormatError if it is missing, DamageError if it is damaged."""
        handle, _, _ = self.open_stored(entry)
        with handle:
            return handle.read(limit)

    def open_stored(self, entry: str) -> tuple[BinaryIO, int, int]:
        """(open file, where an entry that is stored starts in it, its size). Raises FormatError if missing."""
        try:
            handle = open(self.path / entry, "rb")
        except FileNotFoundError as error:
            raise FormatError(f"no {entry} inside; expected an archive written by vqcomp") from error
        return handle, 0, os.fstat(handle.fileno()).st_size

    def _read_at(self, start: int, size: int) -> bytes:
        """Bytes of the file that holds the streams."""
        self._streams.seek(start)
        return self._streams.read(size)

    def _array(self, segment: Segment, ids: np.ndarray) -> np.ndarray:
        """A segment as it was, of its ids (T, S)."""
        return ids.astype(segment.dtype).reshape(segment.shape)

    def _stream(self, group: Group) -> bytes:
        data = self._read_at(self._start + group.offset, group.size)
        if len(data) != group.size or zlib.crc32(data) != group.crc32:
            raise DamageError("its stream's checksum does not match")
        return data

    def _codec(self, index: int) -> Codec:
        if index not in self._codecs:
            (spec, kind), model = self.manifest.codings[index], None
            if kind.has_network and self.manifest.model:
                size, sha256 = self.manifest.model
                model = self.read(MODEL, size + 1)
                if hashlib.sha256(model).hexdigest() != sha256:
                    raise DamageError(f"{MODEL} is damaged: its checksum does not match")
            # One group is no work for several processes, and a decoder may come without the module that starts them.
            several = sum(group.coding == index for group in self.manifest.groups) > 1
            compute = self.compute if several else self.compute._replace(jobs=1)
            self._codecs[index] = codec_of(kind, spec, model, compute)
        return self._codecs[index]

    def decode_segments(
        self, names: Collection[str], damaged: dict[str, str], advance: Advance | None = None
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, array) in the archive's order, of the segments of these names.

        About compute.batch_size segments, or a group for each process, are in memory at a time. Every array has passed
        its CRC. Damaged segments are left out and named in `damaged`, name -> reason. Where all segments are asked for
        and none is damaged, the hash of the whole is checked at the end: raises DamageError. `advance` is called with
        the number of newly decoded tokens, those of other segments in the same streams included.
        """
        wanted = set(names)
        lost: dict[str, str] = {}
        whole = hashlib.sha256()
        for batch in self._batches(wanted):
            for group, streams in self._decode_groups(batch, lost, advance):
                for i, tokens in zip(group.segments, streams):
                    segment = self.manifest.segments[i]
                    data = token_bytes(tokens)
                    if zlib.crc32(data) != segment.crc32:
                        lost[segment.name] = "the tokens' checksum does not match"
                    elif segment.name in wanted:
                        whole.update(data)
                        ids = self.manifest.codings[group.coding].spec.join(tokens)
                        yield segment.name, self._array(segment, ids)
            damaged.update({name: reason for name, reason in lost.items() if name in wanted})
        if len(wanted) == len(self.manifest.segments) and not lost and whole.hexdigest() != self.manifest.sha256:
            raise DamageError(f"{self.path}: the hash of all tokens does not match")

    def _batches(self, wanted: set[str]) -> Iterator[list[Group]]:
        """Groups that hold wanted segments, in lists of one coding and about compute.batch_size segments."""
        largest = max(len(g.segments) for g in self.manifest.groups)
        batch_size = max(self.compute.batch_size, self.compute.processes * largest)
        batch: list[Group] = []
        for group in self.manifest.groups:
            if not any(self.manifest.segments[i].name in wanted for i in group.segments):
                continue
            count = sum(len(g.segments) for g in batch) + len(group.segments)
            if batch and (count > batch_size or batch[0].coding != group.coding):
                yield batch
                batch = []
            batch.append(group)
        if batch:
            yield batch

    def _decode_groups(
        self, groups: list[Group], lost: dict[str, str], advance: Advance | None
    ) -> Iterator[tuple[Group, list[np.ndarray]]]:
        """Yield (group, its segments (T, S, F)); segments of groups that cannot be decoded go to `lost`."""
        healthy: list[Group] = []
        streams: list[bytes] = []
        for group in groups:
            try:
                streams.append(self._stream(group))
                healthy.append(group)
            except ArchiveError as error:
                self._lose(group, error, lost)
        frames = [[self.manifest.segments[i].shape[0] for i in g.segments] for g in healthy]
        try:
            decoded = self._codec(healthy[0].coding).decode(streams, frames, advance) if healthy else []
        except ArchiveError as error:
            if len(healthy) == 1:
                self._lose(healthy[0], error, lost)
            else:
                for group in healthy:
                    yield from self._decode_groups([group], lost, advance)
            return
        yield from zip(healthy, decoded)

    def _lose(self, group: Group, reason: Exception, lost: dict[str, str]) -> None:
        lost.update({self.manifest.segments[i].name: str(reason) for i in group.segments})
