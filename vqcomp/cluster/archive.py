"""An archive whose groups are decoded on a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from ..archive.reader import Archive
from ..runtime.codec import Advance
from ..runtime.compute import Compute
from ..runtime.errors import ArchiveError, DamageError
from ..runtime.layout import MODEL
from ..runtime.manifest import Group
from .codec import Cluster, ClusterCodec


def opened(path: str | os.PathLike[str], compute: Compute | None, cluster: Cluster | None) -> Archive:
    """The archive at `path`, decoded on `cluster` or, without one, here. Raises as Archive."""
    return ClusterArchive(path, cluster) if cluster else Archive(path, compute)


class ClusterArchive(Archive):
    """As Archive. Groups go to the cluster ahead of what is asked for, so many as keep it busy."""

    def __init__(self, path: str | os.PathLike[str], cluster: Cluster) -> None:
        self._cluster = cluster
        super().__init__(path, Compute("numpy", 1, 1))

    def _codec(self, index: int) -> ClusterCodec:
        codec = super()._codec(index)  # the first time one for this machine, which finds a model that is damaged
        if not isinstance(codec, ClusterCodec):
            spec, kind = self.manifest.codings[index]
            model = self.read(MODEL, self.manifest.model[0]) if kind.has_network and self.manifest.model else None
            self._codecs[index] = codec = ClusterCodec(self._cluster, codec, spec, model, kind.learns)
        return codec

    def _batches(self, wanted: set[str]) -> Iterator[list[Group]]:
        """All groups of a coding at once: they come into memory only as they are coded."""
        groups = [g for g in self.manifest.groups if any(self.segments[i].name in wanted for i in g.segments)]
        for coding in sorted({g.coding for g in groups}):
            yield [g for g in groups if g.coding == coding]

    def _decode_groups(
        self, groups: list[Group], lost: dict[str, str], advance: Advance | None
    ) -> Iterator[tuple[Group, list[np.ndarray]]]:
        try:
            codec = self._codec(groups[0].coding)
        except ArchiveError as error:
            for group in groups:
                self._lose(group, error, lost)
            return

        def healthy() -> Iterator[tuple[Group, bytes, list[int]]]:
            for group in groups:
                try:
                    yield group, self._stream(group), [self.segments[i].shape[0] for i in group.segments]
                except ArchiveError as error:
                    self._lose(group, error, lost)

        for group, found in codec.decoded(healthy(), advance):
            if isinstance(found, str):
                self._lose(group, DamageError(found), lost)
            else:
                yield group, found
