"""What is known before a token is coded, and what the mixer makes of it: the tables CONTEXTS and SETS.

To add a context or a set of weights is to add a row. FORMAT.md, section 9, has the same rows in the same order.

Shapes: P positions of a frame in all active segments, L levels of the code tree.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import numpy as np

from .spec import TokenSpec

HISTORY = 3
"""Past frames that are kept."""
RECALLED = 3
"""A match compares a token with so many last ones of its position."""
MATCHES = 3**RECALLED
"""Each of them lies below the node on the side of a 0, below it on the side of a 1, or elsewhere."""
LONGEST_RUN = 255
RUNS = 8
"""Runs that are told apart: 0..6, and 7 or longer."""
STILLS = 10
"""Of a position and its eight neighbours, 0..9 are still."""
CONFIDENCES = 24
"""Steps of a network's logit that are told apart, half of them below 0."""
CONFIDENCE_STEP = 192
"""Logits in a step, 3/4 nat."""


class Past:
    """What is known of one factor before a frame of it is coded: the frames before, and this frame's other factors.

    `begin` a frame, read, `push` its tokens. Arrays are int64.
    """

    place: np.ndarray
    """(P,): numbers of the positions, 0 .. positions - 1 in each segment."""
    run: np.ndarray
    """(P,): frames since the token last changed, at most LONGEST_RUN."""
    still: np.ndarray
    """(P,): how many of the 3 x 3 positions around have a run above 0, 0..9."""
    coded: np.ndarray
    """(P,): the token's factors before this one as one number below `coded_size`, modulo 2^64."""

    def __init__(self, spec: TokenSpec, factor: int, segments: int):
        """segments: how many start out together."""
        self.height, self.width, self.positions = spec.height, spec.width, spec.positions
        self.size = self.none = spec.factors[factor]
        """Vocabulary of the factor, and the token that stands for none."""
        self.levels = (self.size - 1).bit_length()
        self.coded_size = prod(spec.factors[:factor])
        self._radix = np.cumprod([1, *spec.factors], dtype=np.int64)[:factor]
        shape = (segments, self.height + 2, self.width + 2)  # a border of "none" stands around each frame
        self._frames = [np.full(shape, self.none, np.int64)] * HISTORY  # newest first
        self._run = np.zeros(shape, np.int64)

    def begin(self, coded: np.ndarray) -> None:
        """coded (G, S, f): factors before this one, of the segments that go on. The others are dropped."""
        segments, positions, _ = coded.shape
        self._frames, self._run = [frame[:segments] for frame in self._frames], self._run[:segments]
        self.place = np.arange(segments * positions, dtype=np.int64) % positions
        self.coded = (coded * self._radix).sum(2, dtype=np.int64).reshape(-1)
        stays = self._run > 0
        rows = stays[:, :-2].astype(np.int64) + stays[:, 1:-1] + stays[:, 2:]
        still = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
        self.run, self.still = self._run[:, 1:-1, 1:-1].reshape(-1), still.reshape(-1)

    def at(self, dt: int, dy: int = 0, dx: int = 0) -> np.ndarray:
        """(P,): tokens dt frames ago, 1..HISTORY, dy rows below and dx columns to the right, each -1..1."""
        frame = self._frames[dt - 1][:, 1 + dy : 1 + dy + self.height, 1 + dx : 1 + dx + self.width]
        return frame.reshape(-1)

    def push(self, tokens: np.ndarray) -> None:
        """tokens (G, S) of the frame that has been coded."""
        new = np.full_like(self._frames[0], self.none)
        new[:, 1:-1, 1:-1] = tokens.reshape(-1, self.height, self.width)
        self._run = np.minimum(self._run + 1, LONGEST_RUN) * (new == self._frames[0]) * (new < self.none)
        self._frames = [new, *self._frames[:-1]]


class Context(NamedTuple):
    """A kind of context. The bits of tokens are counted apart after each of its numbers."""

    name: str
    """As in FORMAT.md."""
    size: Callable[[Past], int]
    """How many numbers there are."""
    number: Callable[[Past], np.ndarray]
    """int64 (P,): below `size`, modulo 2^64."""
    later: bool = False
    """Whether it needs another factor before this one: the first factor of a token has no such context."""


# In brackets, what leaving the row out costs in bits/token: learning alone, on the 1,200 frames of commaVQ's example
# (4.905 in all) / beside commavq-nano, on the last 300 of them by themselves (4.321 in all). Rows that only later
# factors have were not measured.
CONTEXTS = (
    # What is common anywhere. It learns soonest, and speaks where the other contexts are new. [0.004 / 0.001]
    Context("none", lambda past: 1, lambda past: np.zeros_like(past.place)),
    # What is common at this place: the sky, the road, the car's own bonnet. [0.014 / 0.006]
    Context("position", lambda past: past.positions, lambda past: past.place),
    # What tends to follow this very token, wherever it is. One more number stands for no token. [0.020 / -0.002]
    Context("last token", lambda past: past.size + 1, lambda past: past.at(1)),
    # The factors of a token belong together: those that are known tell much of the next.
    Context("coded factors", lambda past: past.coded_size, lambda past: past.coded, later=True),
    # The same, after the last token: whether a factor changes depends on whether those before it did.
    Context(
        "coded factors, last token",
        lambda past: past.coded_size * (past.size + 1),
        lambda past: past.coded * (past.size + 1) + past.at(1),
        later=True,
    ),
)


class Decisions(NamedTuple):
    """What is known of decisions once their nodes are: of some levels l of the tree, shapes (l, P)."""

    match: np.ndarray
    """int64, 0 .. MATCHES - 1: where the last tokens lie."""
    network: np.ndarray | None
    """float64: logits by the last network; None if there is no network."""


def confidence(decisions: Decisions) -> np.ndarray | int:
    if decisions.network is None:
        return 0
    steps = decisions.network.astype(np.int64) // CONFIDENCE_STEP + CONFIDENCES // 2
    return np.minimum(np.maximum(steps, 0), CONFIDENCES - 1)


class WeightSets(NamedTuple):
    """A kind of weight sets of the mixer: each decision is weighed by the set with its number, one of each kind."""

    name: str
    """As in FORMAT.md."""
    size: Callable[[Past], int]
    """How many numbers there are."""
    before: Callable[[Past], np.ndarray] | None = None
    """int64 (P,), the numbers, if they are known before the frame is coded; else"""
    during: Callable[[Decisions], np.ndarray | int] | None = None
    """int64 (l, P), the numbers, of decisions whose nodes are known."""
    by_level: bool = False
    """Whether each level of the tree has sets of its own."""


# In brackets, as above.
SETS = (
    # A token that has long stayed will stay. High levels of the tree decide more than low ones. [0.006 / -0.002]
    WeightSets("run", lambda past: RUNS, before=lambda past: np.minimum(past.run, RUNS - 1), by_level=True),
    # Some places are predicted best by what they always show, others by what was there last. [0.016 / 0.009]
    WeightSets("position", lambda past: past.positions, before=lambda past: past.place),
    # Where the neighbours stand still, so does the token. [0.010 / 0.000]
    WeightSets("still", lambda past: STILLS, before=lambda past: past.still),
    # How far a network is to be believed depends on how sure it is. [0.001 / -0.003]
    WeightSets("confidence", lambda past: CONFIDENCES, during=confidence, by_level=True),
    # What the match says is worth something only where there is a match. [0.010 / 0.007]
    WeightSets("match", lambda past: MATCHES, during=lambda decisions: decisions.match),
)
