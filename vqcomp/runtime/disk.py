"""Files that are written whole or not at all, and the folders they lie in."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what was written there takes the place of `path`, or nothing is left.

    Raises InputError where the system refuses, naming the file and what is free on the disk.
    """
    temporary = path.with_name(f".{os.urandom(6).hex()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno == errno.ENOSPC:
            reason += f" ({shutil.disk_usage(path.parent).free:,} bytes free)"
        raise InputError(f"{path}: cannot be written: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path, created: list[Path]) -> None:
    """mkdir -p that appends to `created` what it made. Raises InputError."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder, found a file")
    for path in reversed(missing):
        try:
            path.mkdir()
        except OSError as error:
            raise InputError(f"{path}: cannot be made: {error.strerror}") from error
        created.append(path)
