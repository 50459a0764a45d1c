"""Tokens to look at, wherever they lie: arrays, archives, or one segment of many by its name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..archive.reader import Archive
from ..data import hub
from ..data.segments import Grid
from ..data.sources import find_segments
from ..data.specs import COMMAVQ, find_specs
from ..runtime.compute import Compute
from ..runtime.errors import FormatError, InputError
from ..runtime.layout import MODEL
from ..runtime.manifest import Coding
from ..runtime.spec import TokenSpec

Part = TypeVar("Part")


@dataclass(frozen=True)
class Tokens:
    """One segment: ids int64 (T, H, W), and what an archive that it comes from codes it with."""

    name: str
    ids: np.ndarray = field(repr=False)
    spec: TokenSpec
    coding: Coding | None = None
    model: bytes | None = field(default=None, repr=False)
    """The network that codes it, a .vqm; None without one."""


def open_tokens(
    place: str | os.PathLike[str],
    grid: Grid | None = None,
    known: Sequence[TokenSpec] = (COMMAVQ,),
    compute: Compute | None = None,
) -> Tokens:
    """The segment at PATH or PATH:NAME; PATH is whatever `find_segments` takes, or an archive.

    NAME is needed where there are several. Raises InputError, and what opening and decoding archives raises.
    """
    text = os.fspath(place)
    path, name = text, None
    if not text.startswith(hub.SCHEME) and not os.path.exists(text):
        # The last colon whose left side exists: names and Windows' drives have colons, too.
        cuts = [i for i, c in enumerate(text) if c == ":" and os.path.exists(text[:i])]
        if cuts:
            path, name = text[: cuts[-1]], text[cuts[-1] + 1 :]
    archive = try_archive(path, compute)
    if archive is not None:
        with archive:
            segment = _pick(path, {s.name: s for s in archive.segments}, name)
            coding = archive.manifest.coding_of(segment)
            model = archive_model(archive) if coding.kind.has_network else None
            spec = coding.spec
            ids = archive[segment.name].astype(np.int64).reshape(-1, spec.height, spec.width)
            return Tokens(segment.name, ids, spec, coding, model)
    found = find_segments(path, grid)
    source = _pick(path, {s.name: s for s in found.segments}, name)
    (spec,) = find_specs([source], [source.maximum()], known)
    ids = source.array().astype(np.int64).reshape(-1, spec.height, spec.width)
    return Tokens(source.name, ids, spec)


def try_archive(path: str | os.PathLike[str], compute: Compute | None = None) -> Archive | None:
    """The archive at `path`, a zip or a folder; None where other tokens may lie. Raises as `Archive` does."""
    if not os.path.isdir(path) and Path(path).suffix.lower() != ".zip":
        with_zip = False
        try:
            with open(path, "rb") as handle:
                with_zip = handle.read(2) == b"PK"
        except OSError:
            return None  # whoever reads it next says what is wrong
        if not with_zip:
            return None
    try:
        return Archive(path, compute)
    except FormatError as error:
        if "no vqcomp/" in str(error):  # a folder, or a zip, of other things
            return None
        raise


def archive_model(archive: Archive) -> bytes | None:
    """The network that an archive carries, a .vqm."""
    return archive.read(MODEL, archive.manifest.model[0]) if archive.manifest.model else None


def _pick(path: str, parts: dict[str, Part], name: str | None) -> Part:
    """The part called `name`, or the only one. Raises InputError."""
    if name is None and len(parts) == 1:
        return next(iter(parts.values()))
    if name is not None and name in parts:
        return parts[name]
    some = ", ".join(list(parts)[:3]) + (", ..." if len(parts) > 3 else "")
    if name is None:
        raise InputError(
            f"{path}: {len(parts)} segments inside, one is wanted; name it as {path}:NAME; they are {some}"
        )
    raise InputError(f"{path}: no segment {name} inside; there are {some}")
