"""Names of the files that an archive restores."""

from __future__ import annotations

import os
import re
import unicodedata

from .errors import UnsafeNameError
from .layout import BOOTSTRAP, ROOT

_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def check_name(name: str) -> None:
    """Raise UnsafeNameError unless `name` is a relative path that stays in the output folder on every system."""
    parts = name.split("/")
    problem = ""
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        problem = "holds control characters or is not Unicode"
    elif "\\" in name or name.startswith("/") or re.match("[A-Za-z]:", name):
        problem = "is an absolute path, or one of Windows"
    elif any(part in ("", ".", "..") for part in parts):
        problem = "is empty or has a part that is empty, '.' or '..'"
    elif parts[0].casefold() in (BOOTSTRAP, ROOT[:-1]):
        problem = f"clashes with the archive's own {BOOTSTRAP} and {ROOT}"
    elif os.name == "nt" and any(set(p) & set('<>:"|?*') or p[-1] in ". " or _DEVICES.fullmatch(p) for p in parts):
        problem = "cannot be the name of a file on Windows"
    if problem:
        raise UnsafeNameError(f"the name {name!r} {problem}; expected a plain relative path such as 'a/b.npy'")
