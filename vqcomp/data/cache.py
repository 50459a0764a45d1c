"""Arrays that were dear to come by, kept at hand within a bound."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np


class Cache:
    """Lists of arrays by key. They take at most `limit` bytes, but for those that were added last; the least recently
    used go first. For one thread. A pickled cache comes back empty.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._kept: OrderedDict[Hashable, list[np.ndarray]] = OrderedDict()

    def get(self, key: Hashable) -> list[np.ndarray] | None:
        """The arrays of a key; None if they are not here (any more)."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def add(self, entries: Mapping[Any, list[np.ndarray]]) -> None:
        """Keep these arrays, all of them, and drop as many of the others as it takes."""
        for key, arrays in entries.items():
            self._drop(key)
            self._kept[key] = arrays
            self.size += _bytes(arrays)
        while self.size > self.limit and len(self._kept) > len(entries):
            self._drop(next(iter(self._kept)))

    def _drop(self, key: Hashable) -> None:
        self.size -= _bytes(self._kept.pop(key, []))

    def __getstate__(self) -> int:
        return self.limit

    def __setstate__(self, limit: int) -> None:
        self.__init__(limit)  # type: ignore[misc]


def _bytes(arrays: list[np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays)
