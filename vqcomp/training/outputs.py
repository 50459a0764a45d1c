"""The files that a training writes: found to be writable before the work, not after."""

from __future__ import annotations

import os
from pathlib import Path

from ..runtime.errors import InputError


def check_outputs(out: Path, *, force: bool = False, resume: bool = False) -> None:
    """Raise InputError unless `out`, a .vqm, and the card, log and checkpoint beside it can be written.

    force: whether they may exist already. resume: whether all but `out` may.
    """
    try:
        if out.is_dir():
            raise InputError(
                f"{out}: expected the name of a .vqm file to write, found a folder: try {out / 'model.vqm'}"
            )
        if out.suffix in (".ckpt", ".csv", ".md"):
            raise InputError(f"{out}: expected the name of a .vqm, its card and log get names like this")
        if out.exists() and not force:
            raise InputError(f"{out}: exists already; -f overwrites it")
        if not out.parent.is_dir():
            raise InputError(f"{out.parent}: no such folder; make it first")
        for suffix, what in ((".ckpt", "a training was begun; --resume goes on with it"), (".csv", ""), (".md", "")):
            if (beside := out.with_suffix(suffix)).exists() and not (force or resume):
                raise InputError(f"{beside}: {what or 'exists already'}; -f overwrites it")
        # Permissions do not tell all, such as of a disk that is mounted to be read alone.
        trial = out.with_name(f".{os.urandom(6).hex()}.tmp")
        with open(trial, "xb"):
            pass
        trial.unlink()
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror or error}; choose another place") from error
