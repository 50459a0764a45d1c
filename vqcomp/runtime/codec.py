"""What turns segments into streams and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

Advance = Callable[[int], None]
"""Called with the number of newly coded tokens."""


class Codec(Protocol):
    """Groups of segments <-> streams, without loss, the same bytes on every machine and in every batch.

    A segment is an int32 array (T, S, F): T >= 1 frames of S positions, row-major, of F factors. A group is what shares
    one stream; a call computes its groups as a batch.
    """

    @property
    def group_size(self) -> int:
        """Segments in a group, unless the caller has a reason for another number."""
        ...

    @property
    def group_limit(self) -> int:
        """The most segments in a group."""
        ...

    def encode(self, groups: Sequence[Sequence[np.ndarray]], advance: Advance | None = None) -> list[bytes]:
        """One stream for each group: little-endian 32-bit words."""
        ...

    def decode(
        self, streams: Sequence[bytes], frames: Sequence[Sequence[int]], advance: Advance | None = None
    ) -> list[list[np.ndarray]]:
        """Inverse of `encode`; frames holds the lengths T of each group's segments.

        Damaged streams raise DamageError or give arrays with ids in range that differ: callers compare checksums.
        """
        ...

    def close(self) -> None:
        """Give back what it holds of the system."""
        return None


def lockstep(lengths: Sequence[int], chunk: int = 1) -> Iterator[tuple[list[int], int, int]]:
    """(segments still running, first frame, number of frames) until all have ended; longest segments first."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    t = 0
    while order := [i for i in order if lengths[i] > t]:
        steps = min(chunk, lengths[order[-1]] - t)
        yield order, t, steps
        t += steps
