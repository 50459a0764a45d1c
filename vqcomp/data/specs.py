"""The TokenSpec of each segment."""

from __future__ import annotations

from collections.abc import Sequence

from ..runtime.spec import TokenSpec
from .segments import Grid, SegmentSource

COMMAVQ = TokenSpec(8, 16, (1024,))


def find_specs(segments: Sequence[SegmentSource], maxima: Sequence[int], known: Sequence[TokenSpec]) -> list[TokenSpec]:
    """The TokenSpec of each segment: its own, or the first of `known` that it fits, or that of its grid.

    maxima: the largest id of each segment. The vocabulary of a grid is the largest id + 1 of all segments of that grid
    that fit nothing else.
    """
    specs: list[TokenSpec | None] = []
    largest: dict[Grid, int] = {}
    for segment, maximum in zip(segments, maxima):
        fitting = (k for k in known if (k.height, k.width) == segment.grid and maximum < k.vocabulary)
        specs.append(segment.spec or next(fitting, None))
        if specs[-1] is None:
            largest[segment.grid] = max(maximum, largest.get(segment.grid, 1))
    return [spec or TokenSpec(*s.grid, (largest[s.grid] + 1,)) for s, spec in zip(segments, specs)]
