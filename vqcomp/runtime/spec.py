"""What the tokens look like."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class TokenSpec(NamedTuple):
    """A frame is a (height, width) grid of ids; an id is a tuple of factors, the first varying fastest.

    commaVQ: TokenSpec(8, 16, (1024,)); 1X: TokenSpec(16, 16, (512, 512)).
    """

    height: int
    width: int
    factors: tuple[int, ...]

    @property
    def positions(self) -> int:
        """S, the number of tokens in a frame."""
        return self.height * self.width

    @property
    def vocabulary(self) -> int:
        """The number of different ids."""
        size = 1
        for factor in self.factors:
            size *= factor
        return size

    @property
    def bits(self) -> int:
        """ceil(log2 vocabulary): what a token takes uncompressed, 10 for commaVQ."""
        return (self.vocabulary - 1).bit_length()

    def split(self, ids: np.ndarray) -> np.ndarray:
        """Factors (..., F) of ids (...), of the same dtype."""
        split = []
        for size in self.factors:
            split.append(ids % size)
            ids = ids // size
        return np.stack(split, -1)

    def join(self, factors: np.ndarray) -> np.ndarray:
        """int64 ids (...) of factors (..., F): undoes `split`."""
        ids = np.zeros(factors.shape[:-1], np.int64)
        for f, size in reversed(list(enumerate(self.factors))):
            ids = ids * size + factors[..., f]
        return ids
