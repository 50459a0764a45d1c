"""Files on disk: found at any depth, opened safely, and kept byte for byte."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..runtime.errors import InputError
from .messages import unreadable

PIECE = 1 << 20
"""Bytes of a file in memory at a time."""


@dataclass(frozen=True)
class File:
    """A file that is kept byte for byte, under `name`.

    beside: the raw files that it belongs to, such as a video's metadata to the video. It is left out if none of them
    is compressed; empty for a file that is kept for its own sake.
    """

    name: str
    path: Path
    beside: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What messages call it."""
        return str(self.path)

    @property
    def size(self) -> int:
        """Bytes. Raises InputError."""
        try:
            return self.path.stat().st_size
        except OSError as error:
            raise unreadable(self.path, error) from error

    def pieces(self) -> Iterator[bytes]:
        """All bytes, a piece at a time. Raises InputError."""
        try:
            with open_file(self.path) as handle:
                while piece := handle.read(PIECE):
                    yield piece
        except OSError as error:
            raise unreadable(self.path, error) from error


def open_file(path: Path) -> BinaryIO:
    """Open a regular file. Raises InputError for anything else: a named pipe or a device may never come to an end."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except OSError as error:
        raise unreadable(path, error) from error
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a named pipe", stat.S_ISSOCK: "a socket"}
    found = next((kind for test, kind in kinds.items() if test(mode)), "a device")
    raise InputError(f"{path}: expected a regular file, found {found}")


def walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """(path, name) of all files at any depth, through links to folders too. Raises InputError at a loop of links."""
    stack: list[tuple[Path, str, frozenset[tuple[int, int]]]] = [(folder, "", frozenset())]
    while stack:
        here, prefix, above = stack.pop()
        try:
            status = here.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                raise InputError(f"{here}: this link leads back to a folder above it; remove the loop")
            entries = sorted(os.scandir(here), key=lambda e: e.name)
        except OSError as error:
            raise unreadable(here, error) from error
        for entry in entries:
            name = prefix + entry.name
            if os.path.isdir(entry.path):  # entry.is_dir() raises an error for a link to itself
                stack.append((Path(entry.path), name + "/", above | {identity}))
            else:
                yield Path(entry.path), name
