"""Restoring an archive into a folder: what decompress.py runs, and `vqcomp decompress` too."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .disk import make_folder, replacing
from .errors import InputError, UnsafeNameError
from .progress import Progress
from .reader import Reader

_NAME_ERRORS = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
"""What systems answer to a name that they cannot have."""


def restore(
    archive: Reader,
    folder: Path,
    names: Collection[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Write segments as .npy files under `folder`, and the archive's other files, each one whole or not at all.

    Files that exist are replaced. Returns what was lost, name -> reason: to damage, or since the system cannot have a
    file of this name; everything else is written all the same, and an older file of a lost name is set aside. On any
    other error, and on an interrupt, what this call created is removed again. Raises InputError on an unknown name or
    where the system refuses to write, UnsafeNameError where a name or a link leads out of `folder`.
    """
    chosen = archive.manifest.select(names)
    progress = progress or Progress()
    lost: dict[str, str] = {}
    created: list[Path] = []

    def save(name: str, write: Callable[[BinaryIO], object]) -> None:
        path = folder / name
        try:
            if root not in (path.parent.resolve() / "x").parents:
                raise UnsafeNameError(f"{path}: this name or a link leads out of {folder}; expected a place inside")
            make_folder(path.parent, created)
            is_new = not path.exists()
            with replacing(path) as temporary, open(temporary, "xb") as handle:
                write(handle)
        except (OSError, InputError) as error:
            cause: Any = error.__cause__ or error
            if getattr(cause, "errno", None) not in _NAME_ERRORS:
                raise
            lost[name] = f"this system cannot have a file of this name: {cause.strerror}"
            return
        if is_new:
            created.append(path)

    try:
        make_folder(folder, created)
        groups = {s.group for s in chosen.segments}  # decoded as a whole
        tokens = sum(s.tokens for s in archive.manifest.segments if s.group in groups)
        progress.begin("decoding", len(chosen.segments), tokens)
        root = folder.resolve()
        wanted = [s.name for s in chosen.segments]
        decoded = archive.decode_segments(wanted, lost, lambda count: progress.advance(0, count))
        for raw, items in groupby(decoded, lambda item: chosen.raw.get(item[0])):
            if raw:
                from .files import save_raw

                save_raw(raw, items, save)
                continue
            for name, array in items:
                # np.save would append .npy to a path; to a handle it writes under the very name.
                save(name, lambda handle, array=array: np.save(handle, array))  # type: ignore[misc]
                progress.advance(1, 0)
        if chosen.kept or chosen.raw:
            from .files import report_parts, save_kept

            save_kept(archive, chosen.kept, save, lost)
            report_parts(chosen.raw, lost)
        for name in lost:
            with suppress(OSError):
                if os.path.lexists(folder / name):
                    lost[name] += f"; the older file of this name is now {_set_aside(folder / name)}"
    except BaseException:
        for path in reversed(created):
            with suppress(OSError):  # such as a folder that has got other files since
                (path.rmdir if path.is_dir() else path.unlink)()
        raise
    finally:
        progress.end()
    return lost


def _set_aside(path: Path) -> Path:
    """Rename a file to the first of NAME.old, NAME.old2, ... that is free."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.old{number if number > 1 else ''}")):
        number += 1
    return path.rename(aside)


def report_loss(lost: dict[str, str], total: int) -> str:
    """What to print about files that were lost."""
    lines = [f"  {name}: {reason}" for name, reason in sorted(lost.items())]
    return "\n".join([f"{len(lost)} of {total} files are lost:", *lines])
