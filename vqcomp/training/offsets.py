"""Which past tokens a network compares with each other, and which it can copy."""

from __future__ import annotations

from ..runtime.config import Offset

_NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


def default_flags(past: int) -> tuple[tuple[Offset, Offset], ...]:
    """Pairs of past tokens: is the last one the same as k frames ago, did it come from or go to a neighbour."""
    same = [((1, 0, 0), (dt, 0, 0)) for dt in range(2, past + 1)]
    still = [((2, 0, 0), (3, 0, 0))]
    moved = [((1, 0, 0), (2, dy, dx)) for dy, dx in _NEIGHBOURS] + [((2, 0, 0), (1, dy, dx)) for dy, dx in _NEIGHBOURS]
    return tuple(same + still + moved)


def default_copies(past: int) -> tuple[Offset, ...]:
    """The same position in the last `past` frames and its eight neighbours in the last one."""
    return tuple([(dt, 0, 0) for dt in range(1, past + 1)] + [(1, dy, dx) for dy, dx in _NEIGHBOURS])
