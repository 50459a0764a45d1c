"""Names of files to restore: each must be safe, and a file of its own on every system."""

from __future__ import annotations

import os
import re
import unicodedata

from ..runtime.errors import InputError, UnsafeNameError
from ..runtime.layout import BOOTSTRAP, ROOT

PART_LIMIT, PATH_LIMIT = 255, 2048
"""Bytes in UTF-8 of a part of a name, and of a whole name: file systems take no more of the former; of the latter
Linux takes 4,095 with the output folder's."""
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


class Names:
    """A set of names, checked one by one as they are added."""

    def __init__(self) -> None:
        self._files: dict[str, str] = {}
        self._folders: dict[str, str] = {}

    def add(self, name: str, label: str = "") -> None:
        """Add a name. Raises InputError, which starts with `label`, if it is unsafe or clashes with an earlier one."""
        label = label and f"{label}: "
        try:
            check_name(name)
        except UnsafeNameError as error:
            raise InputError(f"{label}{error}; rename it") from error
        _check_length(name, label)
        key = name.casefold() if name.isascii() else unicodedata.normalize("NFC", name).casefold()
        above = [key[:i] for i, c in enumerate(key) if c == "/"]
        if key in self._files:
            raise InputError(
                f"{label}duplicate names: {self._files[key]!r} and {name!r} are one file where case does not count; "
                "rename one"
            )
        clash = next((folder for folder in above if folder in self._files), None)
        if clash or key in self._folders:
            file, inside = (self._files[clash], name) if clash else (name, self._folders[key])
            raise InputError(f"{label}duplicate names: {file!r} is a file and, in {inside!r}, a folder; rename one")
        self._files[key] = name
        self._folders.update(dict.fromkeys(above, name))


def _check_length(name: str, label: str) -> None:
    """Raise InputError for a name that no file system, or hardly any output folder, has room for."""
    longest, whole = max(len(part.encode()) for part in name.split("/")), len(name.encode())
    if longest > PART_LIMIT or whole > PATH_LIMIT:
        raise InputError(
            f"{label}the name {name[:40]!r}... is too long: expected at most {PART_LIMIT} bytes of UTF-8 between "
            f"slashes and {PATH_LIMIT} in all, found {longest} and {whole}; rename it"
        )
