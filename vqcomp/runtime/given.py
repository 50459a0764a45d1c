"""The mixer beside a trained network: it has one opinion more, and believes it at first."""

from __future__ import annotations

import numpy as np

from .mixing import OPINIONS, Given, TreeMixer
from .online import WIDTH
from .opinions import BLOCK, Masses
from .spec import TokenSpec

KNOWN = 1024.0
"""Steps of the online network's weights for each of a trained network's codes."""
KNOWN_SQUARES = float(1 << 22)
"""Rows that start from such codes take smaller steps at first."""


class GivenMixer(TreeMixer):
    """A mixer beside a trained network, whose weights of the tokens each `begin` is given."""

    given: Masses

    def __init__(self, spec: TokenSpec, factor: int, segments: int, codes: np.ndarray):
        """codes: what the network has learned of the tokens, integers (V, any number) within a byte: the online network
        starts from them."""
        super().__init__(spec, factor, segments)
        self.given = Masses(self.past.size)
        if self.online:
            tokens = self.online.order[:-1]
            self.online.rows[tokens, : codes.shape[1]] = codes[:, :WIDTH] * KNOWN
            self.online.squares[tokens] = KNOWN_SQUARES
        self.weigh([opinion.beside_network for opinion in OPINIONS])

    def begin(self, coded: np.ndarray, given: Given | None = None) -> None:
        super().begin(coded)
        if given:
            fill(self.given, given()[: len(coded)].reshape(-1, self.past.size))


def fill(masses: Masses, weights: np.ndarray) -> None:
    """weights (P, V) of the tokens, float32."""
    masses.fit(len(weights))
    for i, tree in enumerate(masses.tree):
        part = weights[i * BLOCK : (i + 1) * BLOCK].T
        tree[masses.place[masses.size :][: len(part)] // BLOCK, : part.shape[1]] = part
        masses.sum_up(masses.tree[i : i + 1])
