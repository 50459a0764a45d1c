"""How errors speak of what was found: in words, never as Python shows it."""

from __future__ import annotations

import json
import os
from typing import Any

from ..runtime.errors import InputError


def unreadable(label: str | os.PathLike[str], error: BaseException) -> InputError:
    """The error for a file that the system does not let us read; one that is not there is called missing."""
    if isinstance(error, FileNotFoundError):
        if os.path.islink(label):
            return InputError(f"{label}: missing: this link leads to a file that does not exist; mend or remove it")
        return InputError(f"{label}: missing: there is no such file or folder; check the path")
    return InputError(f"{label}: cannot be read: {reason(error)}")


def reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.strip().split("\n")[0] or type(error).__name__


def json_value(value: Any) -> str:
    """A value that was read from JSON, as JSON writes it; shortened."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
