"""Checkpoints: all that a training needs to go on to the same result, a file of torch.save and then its SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..data.messages import json_value, reason
from ..runtime.disk import replacing
from ..runtime.errors import InputError
from ..version import __version__
from .memory import is_out_of_memory

FORMAT = 3
HASH_BYTES = 32
STATES = 5
"""Numbers for each weight: the weight itself, two averages and, at most, two of an optimiser."""


def require_room(path: Path, parameters: int) -> None:
    """Raise InputError unless there is room for a checkpoint, and for the one that it replaces."""
    need, free = 2 * 4 * STATES * parameters, shutil.disk_usage(path.parent).free
    if free < need:
        raise InputError(
            f"{path}: too little disk: checkpoints take {need:,} bytes, {free:,} are free; make room or choose another "
            "disk"
        )


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Replace the file by `state`, tensors and plain values, as a whole or not at all. Raises InputError."""
    with replacing(path) as temporary, open(temporary, "x+b") as handle:
        try:
            torch.save({"format": FORMAT, "vqcomp": __version__, **state}, handle)
        except RuntimeError as error:
            # torch replaces the system's error by one of its own, about positions in the file.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            if is_out_of_memory(error):
                raise
            raise InputError(f"{path}: cannot be written: {error}") from error
        handle.write(_hash(handle, handle.seek(0, os.SEEK_END)))


def read_checkpoint(path: Path, same: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The state. `same` has tables that must be as they were, what they are about -> their fields.

    Raises InputError if the file is missing, damaged, of another format or of another training, naming the fields that
    differ and the version that wrote it.
    """
    try:
        with open(path, "rb") as handle:
            end = handle.seek(0, os.SEEK_END) - HASH_BYTES
            if end < 0 or _hash(handle, end) != handle.read():
                raise InputError(
                    f"{path}: the checkpoint is damaged, or another vqcomp's: its checksum does not match; train anew, "
                    "without --resume"
                )
        state = torch.load(path, map_location="cpu", weights_only=True)
        kind, shown, version = (
            state["format"],
            json_value(state["format"]),
            str(state.get("vqcomp", "an earlier version")),
        )
        then = {about: dict(state[about]) for about in same}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such checkpoint; train without --resume") from error
    except InputError:
        raise
    except Exception as error:  # zipfile, pickle and torch raise many kinds for files that are damaged
        raise InputError(
            f"{path}: the checkpoint is damaged, or is none of vqcomp train: {reason(error)}; train anew, without "
            "--resume"
        ) from error
    if kind != FORMAT:
        raise InputError(
            f"{path}: checkpoint format {shown}, written by vqcomp {version}; this is {__version__}, which "
            f"goes on from format {FORMAT}: resume with that version, or train anew"
        )
    for about, fields in same.items():
        before = then[about]
        differing = [
            f"{name} was {_shown(before, name)}, now it is {_shown(fields, name)}"
            for name in {**before, **fields}
            if before.get(name) != fields.get(name)
        ]
        if differing:
            wrote = f" (vqcomp {version} wrote it, this is {__version__})" if version != __version__ else ""
            raise InputError(
                f"{path}: the checkpoint is of another training, whose {about} differ: {'; '.join(differing)}; "
                f"give the same, or train anew without --resume{wrote}"
            )
    return dict(state)


def _hash(handle: BinaryIO, end: int) -> bytes:
    """Of the bytes before `end`, where the file then stands. torch checks neither checksums nor zip headers."""
    whole = hashlib.sha256()
    handle.seek(0)
    while piece := handle.read(min(1 << 20, end - handle.tell())):
        whole.update(piece)
    return whole.digest()


def _shown(fields: Mapping[str, Any], name: str) -> str:
    return json.dumps(fields[name]) if name in fields else "unknown"
