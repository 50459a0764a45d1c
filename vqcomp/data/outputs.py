"""Files to write: found to be writable before the work, not after."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..runtime.errors import InputError


def require_writable(path: Path, kind: str, *, force: bool = False) -> None:
    """Raise InputError unless a new file can be written at `path`; force: whether it may exist already.

    kind: what is to be written, such as "a zip".
    """
    try:
        if path.is_dir():
            raise InputError(f"{path}: expected the name of {kind} to write, found a folder")
        if path.exists() and not force:
            raise InputError(f"{path}: exists already; -f overwrites it")
        if not path.parent.is_dir():
            raise InputError(f"{path.parent}: no such folder; make it first")
        # Permissions do not tell all, such as of a disk that is mounted to be read alone.
        trial = path.with_name(f".{os.urandom(6).hex()}.tmp")
        with open(trial, "xb"):
            pass
        trial.unlink()
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}; choose another place") from error


def require_free(folder: Path, need: int) -> None:
    """Raise InputError where fewer than `need` bytes are free on the disk of a folder, which need not exist yet."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if need > free:
        raise InputError(f"{folder}: too little disk: {need:,} bytes are needed, {free:,} are free")
