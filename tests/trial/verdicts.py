"""What can come of a case, and how that is told from what came back."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

import numpy as np

from vqcomp import VqcompError


class Verdict(Enum):
    """The columns of the table."""

    EXACT = "exact"
    """All that came back is what was compressed, and nothing is missing."""
    ERROR = "clear error"
    """What is wrong was said in vqcomp's own words; what came back all the same is right."""
    SILENT = "silent"
    """Something wrong came back, or something is missing, without a word."""
    TRACEBACK = "traceback"
    """An error that nobody meant to raise, or one that speaks Python."""
    HANG = "hang"
    """No end within the limit of a case."""


FAILURES = (Verdict.SILENT, Verdict.TRACEBACK, Verdict.HANG)


class Outcome(NamedTuple):
    """A verdict; `detail` says what happened, in one line that is the same for the same fault."""

    verdict: Verdict
    detail: str = ""


EXACT = Outcome(Verdict.EXACT)

_PYTHON = re.compile(r"Traceback|\b\w+(Error|Exception)\(|<class|object at 0x|Errno|np\.\w+\(|dtype\(|\bNone\b")
"""What only Python says: no message of ours may."""


def of_error(error: BaseException) -> Outcome:
    """The verdict on an exception."""
    if isinstance(error, VqcompError):
        return of_message(str(error), type(error).__name__)
    frames = [f for f in traceback.extract_tb(sys.exc_info()[2]) if "/vqcomp/" in f.filename.replace("\\", "/")]
    where = f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else "?"
    return Outcome(Verdict.TRACEBACK, f"{type(error).__name__} in {where}: {str(error)[:120]}")


def of_message(message: str, kind: str = "error") -> Outcome:
    """The verdict on an error's text."""
    if not message.strip() or _PYTHON.search(message):
        return Outcome(Verdict.TRACEBACK, f"{kind} speaks Python: {message[:160]!r}")
    return Outcome(Verdict.ERROR)


def of_command(code: int, errors: str) -> Outcome | None:
    """The verdict on a command that failed, by its exit code and standard error; None if it says that all is well."""
    if "Traceback" in errors or "Exception ignored" in errors:
        last = errors.strip().splitlines()[-1]
        return Outcome(Verdict.TRACEBACK, f"exit code {code}: {last[:160]}")
    if code == 0 or (code == 4 and "skipped" in errors):
        return None
    lines = [line for line in errors.splitlines() if line.lower().startswith("error:")]
    if code not in (1, 2, 3) or len(lines) != 1:
        return Outcome(
            Verdict.TRACEBACK, f"exit code {code} with {len(lines)} lines of error: {errors.strip()[-120:]!r}"
        )
    return of_message(lines[0])


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether an array is just what was compressed."""
    return found.dtype == expected.dtype and found.shape == expected.shape and bool((found == expected).all())


def of_parts(found: Mapping[str, Any], expected: Mapping[str, Any], lost: Mapping[str, str]) -> Outcome:
    """The verdict on what came back, name -> array or bytes, where `lost` is what was said to be lost."""
    for name, value in found.items():
        if name not in expected:
            return Outcome(Verdict.SILENT, f"{name!r} came back, which was never there")
        before = expected[name]
        if not (same(value, before) if isinstance(before, np.ndarray) else value == before):
            return Outcome(Verdict.SILENT, f"{name!r} came back wrong")
    for name in expected.keys() - found.keys() - lost.keys():
        return Outcome(Verdict.SILENT, f"{name!r} is missing without a word")
    for reason in lost.values():
        return of_message(reason, "reason of a loss")
    return EXACT
