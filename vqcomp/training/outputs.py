"""The files that a training writes."""

from __future__ import annotations

from pathlib import Path

from ..data.outputs import require_writable
from ..runtime.errors import InputError


def check_outputs(out: Path, *, force: bool = False, resume: bool = False) -> None:
    """Raise InputError unless `out`, a .vqm, and the card, log and checkpoint beside it can be written.

    force: whether they may exist already. resume: whether all but `out` may.
    """
    if out.suffix in (".ckpt", ".csv", ".md"):
        raise InputError(f"{out}: expected the name of a .vqm, its card and log get names like this")
    require_writable(out, "a .vqm file", force=force)
    for suffix, what in ((".ckpt", "a training was begun; --resume goes on with it"), (".csv", ""), (".md", "")):
        if (beside := out.with_suffix(suffix)).exists() and not (force or resume):
            raise InputError(f"{beside}: {what or 'exists already'}; -f overwrites it")
