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
BLOCK = 64
"""Positions whose gradients are summed exactly; the blocks' sums are added one after another."""
_FIRST_STATES = SHARES * np.searchsorted(COUNT_BOUNDS, np.arange(COUNT_LIMIT // COUNT + 1), side="right") - NEW_COUNT
"""Of a total, the state of share 0, less NEW_COUNT."""
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

    def learn(self, state: np.ndarray, bits: np.ndarray) -> None:
        """A frame's states (..., n) and bits (n,), int64. `state` is overwritten."""
        state *= 2
        state += bits
        zeros, ones = np.bincount(state.reshape(-1), minlength=2 * len(self.count)).reshape(-1, 2).T
        decisions, old = (zeros + ones).astype(np.float64), self.probability
        new = old + np.rint((ones * float(PROBABILITY) - decisions * old) / (self.count + decisions + MAP_DELTA))
        self.probability = np.clip(new, PROBABILITY_MIN, PROBABILITY - PROBABILITY_MIN, out=new)
        self.logit = STRETCH.take(new.astype(np.int64))
        self.count = np.minimum(self.count + decisions, MAP_LIMIT)


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
        """A frame's slots (..., n) and bits (n,), int64."""
        # Words wrap around if one frame overflows a count: the same everywhere, and no harm but to that count.
        seen = np.broadcast_to((bits * (COUNT << 16) + COUNT).astype(np.uint32), slot.shape)
        slot = slot.reshape(-1)
        np.add.at(self.words, slot, seen.reshape(-1))
        word = self.words.take(slot)
        total = word & 0xFFFF
        ones = np.minimum(word >> 16, total)
        over = np.flatnonzero(total > COUNT_LIMIT)
        ones[over] = ones[over] * COUNT_LIMIT // total[over]
        total[over] = COUNT_LIMIT
        self.words[slot[over]] = ones[over] << 16 | COUNT_LIMIT
        # The quotient is below PROBABILITY, for the prior keeps it below 1.
        p = (ones + COUNT_PRIOR) * float(PROBABILITY)
        p /= total + 2 * COUNT_PRIOR
        # Shifts: quotients by 2^16 and by COUNT.
        self.states[slot] = (p.astype(np.int32) * SHARES >> 16) + _FIRST_STATES.take(total >> 6)


class Masses:
    """The mass that a network gives to the tokens below each node of the tree.

    A level stands in the order of its nodes' bits read backwards: its first half are the first children of the level
    above, in that level's order, and its second half the second ones. Whole halves are added sooner than pairs.
    """

    def __init__(self, vocabulary: int):
        level, levels = np.arange(1), [np.arange(1, 2)]
        while level.size < vocabulary:
            level = np.concatenate([level * 2, level * 2 + 1])
            levels.append(level + level.size)
        self.size = level.size
        self.place = np.concatenate([[0], *levels]) * BLOCK  # of each node
        self.tree = np.zeros((0, 2 * self.size, BLOCK), np.float32)  # (b, nodes, B)

    def fit(self, count: int) -> None:
        """Make room for frames of so many positions (P)."""
        blocks = -(-count // BLOCK)
        if blocks != len(self.tree):
            self.tree = np.zeros((blocks, *self.tree.shape[1:]), np.float32)
            position = np.arange(blocks * BLOCK)  # with what is beyond the last one
            # Where a position's node stands in the tree, flat: `first` of the one and `place` of the other together.
            self.first = position + position // BLOCK * (self.tree[0].size - BLOCK)

    def sum_up(self, tree: np.ndarray) -> None:
        """From the weights in some blocks' tree, all other masses."""
        size = self.size
        while size > 1:
            children = tree[:, size : 2 * size]
            size >>= 1
            np.add(children[:, :size], children[:, size:], out=tree[:, size : 2 * size])

    def look(self, node: np.ndarray, out: np.ndarray) -> None:
        """Write the logits at nodes (l, P) to `out` (l, P)."""
        first = self.first[: node.shape[1]]
        p = self.tree.take(first + self.place.take(2 * node + 1))
        p /= np.maximum(self.tree.take(first + self.place.take(node)), _MASS_MIN)
        p *= PROBABILITY
        p.clip(1, PROBABILITY - 1, out=p)
        STRETCH.take(p.astype(np.int64), out=out, mode="clip")
