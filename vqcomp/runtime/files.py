"""What an archive restores besides arrays: files kept byte for byte, and raw files. FORMAT.md, section 3.

A raw file is segments one after another, without headers. Segments of it that are asked for by their own names are
restored as arrays.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import BinaryIO

import numpy as np

from .errors import ArchiveError, DamageError
from .layout import FILES
from .manifest import Kept, Raw
from .reader import Reader

Save = Callable[[str, Callable[[BinaryIO], object]], None]
PIECE = 1 << 20
MEMORY_LIMIT = 1 << 28
"""Bytes that decompressing may take: an archive's files need a tenth of it."""


def contents(archive: Reader, file: Kept) -> Iterator[bytes]:
    """A kept file in pieces. Raises DamageError, at the end at the latest."""
    try:
        handle, start, found = archive.open_stored(FILES)
    except OSError as error:
        raise DamageError(f"{FILES}: cannot be read: {error.strerror}") from error
    except ArchiveError as error:
        raise DamageError(str(error)) from error
    size = crc = 0
    with handle:
        if file.offset + file.stored > found:
            raise DamageError(f"{file.name}: {FILES} is cut short")
        handle.seek(start + file.offset)
        try:
            xz, left, data = lzma.LZMADecompressor(lzma.FORMAT_XZ, MEMORY_LIMIT), file.stored, b""
            while not xz.eof and size <= file.size:
                if xz.needs_input:
                    data = handle.read(min(left, PIECE))
                    left -= len(data)
                    if not data:
                        break
                piece = xz.decompress(data, PIECE)
                data = b""
                size, crc = size + len(piece), zlib.crc32(piece, crc)
                yield piece
        except lzma.LZMAError as error:
            raise DamageError(f"{file.name}: its compressed bytes are damaged: {error}") from error
    if (size, crc) != (file.size, file.crc32):
        raise DamageError(f"{file.name}: its checksum does not match")


class _IncompleteError(Exception):
    """Segments of a raw file are missing."""


def save_raw(raw: Raw, segments: Iterable[tuple[str, np.ndarray]], save: Save) -> None:
    """Write a raw file from its segments in order; where one is missing, nothing."""

    def write(handle: BinaryIO) -> None:
        if sum(1 for _, array in segments if handle.write(array.tobytes())) < len(raw.segments):
            raise _IncompleteError

    with suppress(_IncompleteError):
        save(raw.name, write)


def save_kept(archive: Reader, kept: Iterable[Kept], save: Save, lost: dict[str, str]) -> None:
    """Write kept files; those that are damaged go to `lost`."""
    for file in kept:
        try:
            save(file.name, partial(_copy, contents(archive, file)))
        except DamageError as error:
            lost[file.name] = str(error)


def _copy(pieces: Iterable[bytes], handle: BinaryIO) -> None:
    handle.writelines(pieces)


def report_parts(parts: dict[str, Raw], lost: dict[str, str]) -> None:
    """In `lost`, name raw files in place of their segments."""
    for name in [n for n in lost if n in parts]:
        reason, raw = lost.pop(name), parts[name].name
        lost[raw] = (
            lost.get(raw, "whole but for these parts, which can be restored by their names:") + f" {name}: {reason};"
        )
