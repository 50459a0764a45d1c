"""Checkpoints: everything that a training needs to go on to the same result, in one file of torch.save."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..runtime.disk import replacing
from ..runtime.errors import InputError

FORMAT = 1


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Replace the file by `state`, tensors and plain values, as a whole or not at all. Raises InputError."""
    with replacing(path) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)


def read_checkpoint(path: Path, same: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The state. `same` has tables that must be as they were, what they are about -> their fields.

    Raises InputError if the file is missing, damaged or of another training, naming the fields that differ.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load checks no checksums
            if damaged := archive.testzip():
                raise InputError(f"{path}: the checkpoint is damaged in {damaged}; train anew, without --resume")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["format"] != FORMAT:
            raise InputError(f"{path}: checkpoint format {state['format']}, expected {FORMAT}; train anew")
        before = {about: dict(state[about]) for about in same}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such checkpoint; train without --resume") from error
    except InputError:
        raise
    except Exception as error:  # zipfile, pickle and torch raise many kinds for files that are damaged
        raise InputError(
            f"{path}: the checkpoint is damaged, or is none of vqcomp train: {error}; train anew, without --resume"
        ) from error
    for about, fields in same.items():
        differing = [
            f"{name} was {before[about].get(name)!r}, now it is {fields.get(name)!r}"
            for name in {**before[about], **fields}
            if before[about].get(name) != fields.get(name)
        ]
        if differing:
            raise InputError(
                f"{path}: the checkpoint is of another training, whose {about} differ: {'; '.join(differing)}; "
                "give the same, or train anew without --resume"
            )
    return dict(state)
