"""One segment, wherever it is: in a file, a shard or a folder of tokens, or in an archive."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..archive.reader import Archive
from ..data import hub
from ..data.segments import Grid
from ..data.sources import find_segments
from ..data.specs import COMMAVQ, find_specs
from ..runtime import layout
from ..runtime.compute import Compute
from ..runtime.errors import InputError
from ..runtime.kinds import Kind
from ..runtime.spec import TokenSpec

SHOWN = 3
"""Names in a message."""


@dataclass(frozen=True)
class NamedTokens:
    """A segment's tokens (T, S, F) int32, and what its ids were stored as."""

    name: str
    tokens: np.ndarray
    spec: TokenSpec
    dtype: np.dtype[Any]
    model: bytes | None
    """The network (.vqm) of the archive that it lies in, if that has one for these tokens."""
    kind: Kind | None = None
    """What codes it in the archive that it lies in."""

    @property
    def ids(self) -> np.ndarray:
        """int64 (T, H, W)."""
        return self.spec.join(self.tokens).reshape(-1, self.spec.height, self.spec.width)


def is_archive(path: Path) -> bool:
    """Whether it is a zip that vqcomp wrote, or the folder that one was unpacked into."""
    if path.is_dir():
        return (path / layout.MANIFEST).is_file()
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as opened:
        return layout.MANIFEST in opened.namelist()


def read_segment(
    place: str, grid: Grid | None = None, known: TokenSpec | None = None, compute: Compute | None = None
) -> NamedTokens:
    """The segment of PATH, where there is but one, or of PATH:NAME; PATH may be on the hub (hf://...).

    known: tokens that a model predicts; others are told from the grid and the ids. Raises InputError, DamageError.
    """
    path, name = _split(place)
    if is_archive(path):
        with Archive(path, compute) as archive:
            chosen = _choose(str(path), list(archive), name)
            segment = archive.segments[list(archive).index(chosen)]
            spec, kind = archive.manifest.coding_of(segment)
            model = None
            if kind.has_network:
                model = read_model(archive)
            ids = archive[chosen].reshape(segment.shape[0], spec.positions)
            tokens = spec.split(ids.astype(np.int64)).astype(np.int32)
            return NamedTokens(chosen, tokens, spec, segment.dtype, model, kind)
    segments = {s.name: s for s in find_segments(path, grid).segments}
    source = segments[_choose(str(path), list(segments), name)]
    (spec,) = find_specs([source], [source.maximum()], [*([known] if known else []), COMMAVQ])
    return NamedTokens(source.name, source.tokens_of(spec), spec, source.dtype, None)


def read_model(archive: Archive) -> bytes | None:
    """The network (.vqm) that an archive carries."""
    return archive.read(layout.MODEL, archive.manifest.model[0]) if archive.manifest.model else None


def _choose(place: str, names: list[str], name: str | None) -> str:
    if name is None and len(names) == 1:
        return names[0]
    if name in names:
        return str(name)
    some = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    if name is None:
        raise InputError(f"{place}: expected one segment, found {len(names)}: name one, as in {place}:{names[0]}")
    raise InputError(f"{place}: no segment {name!r} inside; expected one of {some}")


def _split(place: str) -> tuple[Path, str | None]:
    """PATH and NAME of PATH:NAME; a path that exists as it stands has no name."""
    if place.startswith(hub.SCHEME):
        address, _, name = place.removeprefix(hub.SCHEME).partition(":")
        return hub.local(hub.SCHEME + address, "dataset"), name or None
    parts = place.split(":")
    for count in range(len(parts), 0, -1):
        path = ":".join(parts[:count])
        if os.path.exists(path):
            return Path(path), ":".join(parts[count:]) or None
    raise InputError(f"{place}: no such file or folder")
