"""What the mixer asks for opinions: maps from states to probabilities, counts, and the masses of a network.

An opinion is a logit. Logits are integers in 1/256 nat, in arrays of float64; probabilities of a 1 are integers in
2^-16. FORMAT.md, section 9, specifies all of it.

Shapes: P positions of a frame in all active segments, V vocabulary, L levels of the code tree, n decisions.
"""

from __future__ import annotations

import numpy as np

PROBABILITY = 1 << 16
"""A probability of 1."""
LOGIT = 256
"""Steps of a logit per nat."""
LOGIT_MAX = 11 * LOGIT - 1
PROBABILITY_MIN = 16
"""Of a map: it learns no probability below this, or above PROBABILITY - PROBABILITY_MIN."""
MAP_LIMIT = 1023.0
"""Decisions after which a state learns no more slowly."""
MAP_DELTA = 1.5
"""Added to the decisions that a state has seen: its first ones do not make it certain."""
COUNT = 64
"""Steps of a count, so that a count that is scaled down keeps a fraction."""
COUNT_LIMIT = 30 * COUNT
COUNT_PRIOR = 24
"""Added to the steps of either bit."""
COUNT_BOUNDS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
"""Totals are told apart by how many of these they reach."""
SHARES = 33
"""Shares of ones are told apart in so many steps."""
COUNT_STATES = (len(COUNT_BOUNDS) + 1) * SHARES
"""States of a count: its total, then its share of ones."""
NEW_COUNT = SHARES // 2
"""State of a count of nothing: total 0, a share of one half."""
_COUNT_STEPS = np.searchsorted(COUNT_BOUNDS, np.arange(COUNT_LIMIT // COUNT + 1), side="right")
_MASS_MIN = np.float32(2.0**-64)
"""Below any mass that is not 0; keeps quotients finite."""


def _logistic() -> tuple[np.ndarray, np.ndarray]:
    """(squash, stretch): logit + LOGIT_MAX -> probability of a 1 in 1..65535; probability -> logit. Integers alone."""
    decay = 18374827034086858296  # floor(2^64 * exp(-1 / LOGIT))
    power, half = 1 << 64, []
    for _ in range(LOGIT_MAX + 1):
        half.append(max(1, PROBABILITY * power // ((1 << 64) + power)))
        power = power * decay >> 64
    squash = np.array([*half[:0:-1], *(PROBABILITY - h for h in half)], np.int64)
    stretch = np.searchsorted(squash, np.arange(PROBABILITY), side="right") - 1 - LOGIT_MAX
    return squash.astype(np.float64), np.maximum(stretch, -LOGIT_MAX).astype(np.float64)


SQUASH, STRETCH = _logistic()


class Maps:
    """Probabilities by state, each the mean of the bits seen in it, the more recent the heavier."""

    def __init__(self, start: np.ndarray):
        """start: the first probability of each state, integers (states,)."""
        self.probability = start.astype(np.float64)
        self.logit = STRETCH.take(start)
        self.count = np.zeros(len(start))
        self._seen = np.zeros(len(start), np.int64)  # of this frame: decisions, and 2^32 for each 1

    def learn(self, state: np.ndarray, bits: np.ndarray) -> None:
        """A frame's states and bits, int64 (n,). A state that occurs often is written often, always the same value."""
        np.add.at(self._seen, state, (bits << 32) + 1)
        seen = self._seen.take(state)
        self._seen[state] = 0
        decisions = (seen & 0xFFFFFFFF).astype(np.float64)
        ones = (seen >> 32).astype(np.float64)
        old, count = self.probability.take(state), self.count.take(state)
        new = old + np.rint((ones * PROBABILITY - decisions * old) / (count + decisions + MAP_DELTA))
        self.probability[state] = np.clip(new, PROBABILITY_MIN, PROBABILITY - PROBABILITY_MIN, out=new)
        self.logit[state] = STRETCH.take(new.astype(np.int64))
        self.count[state] = np.minimum(count + decisions, MAP_LIMIT)


def count_probabilities() -> np.ndarray:
    """The first probability of each state of a count: the middle of its share."""
    middle = (np.arange(SHARES) * 2 + 1) * (PROBABILITY // (2 * SHARES))
    return np.tile(middle, COUNT_STATES // SHARES)


class Counts:
    """Counts of bits in slots: words of 16 bits for the ones, 16 for all."""

    def __init__(self, slots: int):
        self.words = np.zeros(slots, np.uint32)
        self.states = np.zeros(slots, np.int16)  # less NEW_COUNT, so that an untouched table takes no memory

    def learn(self, slot: np.ndarray, bits: np.ndarray) -> None:
        """A frame's slots and bits, int64 (n,)."""
        # Words wrap around if one frame overflows a count: the same everywhere, and no harm but to that count.
        np.add.at(self.words, slot, (bits * (COUNT << 16) + COUNT).astype(np.uint32))
        word = self.words.take(slot).astype(np.int64)
        total = word & 0xFFFF
        ones = np.minimum(word >> 16, total)
        over = np.flatnonzero(total > COUNT_LIMIT)
        ones[over] = ones[over] * COUNT_LIMIT // total[over]
        total[over] = COUNT_LIMIT
        self.words[slot[over]] = (ones << 16 | total)[over]
        # The quotient is below PROBABILITY, for the prior keeps it below 1.
        p = ((ones + COUNT_PRIOR) * float(PROBABILITY) / (total + 2 * COUNT_PRIOR)).astype(np.int64)
        self.states[slot] = _COUNT_STEPS.take(total // COUNT) * SHARES + p * SHARES // PROBABILITY - NEW_COUNT


class Masses:
    """The mass that a network gives to the tokens below each node of the tree."""

    def __init__(self, count: int, levels: int):
        """For frames of so many positions (P)."""
        self.size = 1 << levels
        self.tree = np.zeros((count, 2 * self.size), np.float32)  # node n at n, its children at 2 n and 2 n + 1
        self.first = np.arange(count) * 2 * self.size

    @property
    def total(self) -> np.ndarray:
        """(P,): of all tokens."""
        return self.tree[:, 1]

    def of_rows(self, rows: slice) -> Masses:
        """Those of some positions."""
        part = Masses(0, self.size.bit_length() - 1)
        part.tree = np.ascontiguousarray(self.tree[rows])
        part.first = np.arange(len(part.tree)) * 2 * self.size
        return part

    def fill(self, weights: np.ndarray) -> None:
        """weights (P, V) of the tokens, float32."""
        size = self.size
        self.tree[:, size : size + weights.shape[1]] = weights
        while size > 1:
            children = self.tree[:, size : 2 * size]
            size >>= 1
            np.add(children[:, ::2], children[:, 1::2], out=self.tree[:, size : 2 * size])

    def look(self, node: np.ndarray, out: np.ndarray) -> None:
        """Write the logits at nodes (L, P) to `out` (L, P)."""
        at = self.first + node
        total = self.tree.take(at)
        at += node
        at += 1
        p = self.tree.take(at)
        p /= np.maximum(total, _MASS_MIN)
        p *= np.float32(PROBABILITY)
        np.minimum(np.maximum(p, 1, out=p), PROBABILITY - 1, out=p)
        STRETCH.take(p.astype(np.int64), out=out, mode="clip")
