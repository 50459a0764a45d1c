"""Predicts tokens by mixing a few opinions, and learns from every frame.

Context mixing in the manner of lpaq and paq8 (Mahoney), made frame-synchronous: every token of a frame, in all segments
of a group, is predicted from the same frozen state with array operations; then the state learns from the whole frame at
once. A token is a path of binary decisions down the tree of its id's bits, from the top bit down.

Three tables declare what is mixed, and the code loops over them: CONTEXTS and SETS in `contexts.py`, OPINIONS below.
Counts and matches become logits through maps that learn what such have meant so far (`opinions.py`). The mixer adds up
all logits, each times a weight, which is the sum of its weights in several sets, one of each kind.

Numbers are integers, or float64 that hold integers below 2^53. A quotient or a product with a fraction is rounded at
once. What a frame teaches is summed over integers before it is applied, so neither the order of positions nor
collisions in tables matter, and all machines, NumPy versions and thread counts agree to the last bit. Masses are
float32, in a tree of sums whose order is fixed.

Shapes: P positions of a frame in all active segments, L levels, D = L * P decisions, C kinds of context, J opinions,
M kinds of weight sets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .contexts import CONTEXTS, MATCHES, RECALLED, RUNS, SETS, Decisions, Past
from .online import VOCABULARY_MAX, OnlineNetwork
from .opinions import (
    COUNT_STATES,
    LOGIT,
    LOGIT_MAX,
    NEW_COUNT,
    PROBABILITY,
    SQUASH,
    Counts,
    Maps,
    Masses,
    count_probabilities,
)
from .spec import TokenSpec

COUNT_BITS = 22
"""Slots of a kind of context, 2^22, shared by all factors: so their tables stay below 256 MiB."""
HASH = 0x9E3779B1
"""Multiplier that spreads contexts over the slots where there are more contexts than slots."""
ONE = 65536.0
"""A mixing weight of 1."""
WEIGHT_MAX = 16 * ONE
RATE = 2.0**-18
RATE_FRAMES = 64
"""Of the first frames: they teach up to three times as fast as later ones."""
RATE_DECISIONS = 64
"""Decisions of one set and frame that count fully; more are averaged down to so many, so that no step is too large."""


class Opinion(NamedTuple):
    """A kind of opinion, and the weight that each set gives it at first, in 1 / ONE."""

    name: str
    """As in FORMAT.md."""
    alone: int
    beside_network: int
    """Where a network is given."""


OPINIONS = (
    # One for each kind of context.
    Opinion("counts", 1049, 0),
    # Of tokens that stay or come back: which of the position's last ones lie below the node.
    Opinion("match", 0, 0),
    # Lets a set learn that a bit is likelier than all others say.
    Opinion("constant", 0, 0),
    # A small network, trained as it predicts.
    Opinion("online network", 6554, 0),
    # A trained network is believed at first, and the others must earn their weight.
    Opinion("given network", 0, 13107),
)

Given = Callable[[], np.ndarray]
"""Waits for a trained network's weights of the tokens, (G, S, V), perhaps of more segments than still run."""


def path_to(tokens: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """The way down the tree to tokens (P,): the node at each level, and the bit that leads on from it, both (L, P)."""
    level = np.arange(levels)[:, None]
    return (1 << level) | (tokens >> (levels - level)), (tokens >> (levels - 1 - level)) & 1


class TreeMixer:
    """Predicts and learns one factor's tokens: `begin` a frame, `predict` level by level or all at once, `update`."""

    given: Masses | None = None
    """Of a trained network."""

    def __init__(self, spec: TokenSpec, factor: int, segments: int):
        """segments: how many start out in the group."""
        self.past = past = Past(spec, factor, segments)
        self.levels = levels = past.levels
        self._contexts = [context for context in CONTEXTS if factor or not context.later]
        kinds = len(self._contexts)
        bits = COUNT_BITS - (len(spec.factors) - 1).bit_length()
        self.counts = Counts(kinds << bits)
        # The slot of a decision: the table of its kind of context, in it (number * step + node) modulo the slots.
        self._mask = np.int64((1 << bits) - 1)
        fits = [context.size(past) << levels <= 1 << bits for context in self._contexts]
        self._steps = np.array([1 << levels if fit else HASH for fit in fits])[:, None]  # (C, 1)
        self._first_slot = (np.arange(kinds) << bits)[:, None, None]
        # States of the maps: those of each kind of context, then those of the match by level and run.
        self._first_state = (np.arange(kinds) * COUNT_STATES + NEW_COUNT)[:, None, None]
        matches = np.full(levels * RUNS * MATCHES, PROBABILITY // 2)
        self._maps = Maps(np.concatenate([np.tile(count_probabilities(), kinds), matches]))
        self.online = OnlineNetwork(spec, factor) if past.size <= VOCABULARY_MAX else None
        self.weigh([opinion.alone for opinion in OPINIONS])
        self._time = 0

    def weigh(self, first: list[int]) -> None:
        """Start from these weights of the opinions, in all sets."""
        # How many there are of each of OPINIONS.
        many = [len(self._contexts), 1, 1, int(self.online is not None), int(self.given is not None)]
        # Weights of each kind of sets: a row for each opinion, a column for each set.
        column = np.repeat(first, many).astype(np.float64)[:, None]
        sizes = [kind.size(self.past) * (self.levels if kind.by_level else 1) for kind in SETS]
        self.weights = [column.repeat(size, 1) for size in sizes]

    def begin(self, coded: np.ndarray, given: Given | None = None) -> None:
        """Freeze what the next frame is predicted from.

        coded (G, S, f): the frame's factors before this one, of the segments that go on; given: for a mixer beside a
        network, see `mixed.py`.
        """
        past, levels = self.past, self.levels
        past.begin(coded)
        count = len(past.place)
        if self.online:
            self.online.begin(past, coded)
        numbers = np.stack([context.number(past) for context in self._contexts])  # (C, P)
        self._base = (numbers * self._steps)[:, None]  # (C, 1, P)
        # For the match, the node above each level of the last tokens, and 1 or 2 for the side where they went on.
        tokens = np.stack([past.at(dt) for dt in range(1, RECALLED + 1)])  # (RECALLED, P)
        leaves = np.where(tokens < past.size, tokens | 1 << levels, 0)
        path = leaves >> np.arange(levels, -1, -1)[:, None, None]  # (L + 1, RECALLED, P)
        self._parents = path[:-1]
        self._sides = ((path[1:] & 1) + 1) * 3 ** np.arange(RECALLED)[:, None]
        level = np.arange(levels)[:, None]
        run = np.minimum(past.run, RUNS - 1)
        self._first_match = len(self._contexts) * COUNT_STATES + MATCHES * (RUNS * level + run)  # (L, P)
        # The set of each kind that weighs each decision; `predict` adds the numbers that it learns.
        self._numbers = []  # (L, P), or (1, P) if the same one weighs all levels
        for kind in SETS:
            number = np.zeros((levels if kind.during or kind.by_level else 1, count), np.int64)
            if kind.by_level:
                number += kind.size(past) * level
            if kind.before:
                number += kind.before(past)
            self._numbers.append(number)
        self._trace: list[tuple[np.ndarray, ...]] = []

    def predict(self, level: int, node: np.ndarray) -> np.ndarray:
        """First level, node (l, P) of each of l levels -> probability of a 1, float64 (l, P), integers in 1..65535."""
        here, kinds = slice(level, level + len(node)), len(self._contexts)
        slot = self._base + node  # (C, l, P)
        slot &= self._mask
        slot += self._first_slot
        state = np.empty((kinds + 1, *node.shape), np.int64)
        np.add(self.counts.states.take(slot), self._first_state, out=state[:kinds])
        match = ((self._parents[here] == node[:, None]) * self._sides[here]).sum(1)  # (l, P)
        np.add(match, self._first_match[here], out=state[kinds])
        opinions = np.empty((len(self.weights[0]), *node.shape))  # (J, l, P), in the order of OPINIONS
        self._maps.logit.take(state, out=opinions[: kinds + 1], mode="clip")
        opinions[kinds + 1] = LOGIT
        networks = [self.online.masses] if self.online else []
        if self.given:
            networks.append(self.given)
        for network, opinion in zip(networks, opinions[kinds + 2 :]):
            network.look(node, opinion)
        decisions = Decisions(match, opinions[-1] if networks else None)
        weights = np.zeros(opinions.shape)  # (J, l, P)
        for kind, sets, number in zip(SETS, self.weights, self._numbers):
            here = slice(level, level + len(node)) if len(number) > 1 else slice(1)
            if kind.during:
                number[here] += kind.during(decisions)
            weights += sets.take(number[here], 1)
        weights *= opinions
        x = weights.sum(0)
        x /= ONE
        np.rint(x, out=x)
        x += LOGIT_MAX
        probability = SQUASH.take(x.astype(np.int64), mode="clip")
        self._trace.append((slot, state, opinions, probability))
        return probability

    def update(self, bits: np.ndarray, tokens: np.ndarray) -> None:
        """Learn from the frame: bits (L, P) of all levels, tokens (G, S)."""
        parts = zip(*self._trace, strict=True)
        slot, state, opinions, probability = (np.concatenate(p, -2) if len(p) > 1 else p[0] for p in parts)
        self.counts.learn(slot, bits)
        self._maps.learn(state, bits)
        self._learn(opinions, bits * float(PROBABILITY) - probability)
        self.past.push(tokens)
        self._time += 1
        if self.online:
            self.online.update(tokens.reshape(-1))

    def _learn(self, opinions: np.ndarray, error: np.ndarray) -> None:
        """Gradient descent of the weights on the code length: opinions (J, L, P), overwritten, error (L, P)."""
        opinions *= error
        totals = opinions.sum(1)
        rate = RATE * (1 + 2 * RATE_FRAMES / (RATE_FRAMES + self._time))
        for weights, number in zip(self.weights, self._numbers):
            same = len(error) // len(number)  # levels that are weighed by the same set
            cells = (np.arange(len(weights)) * weights.shape[1])[:, None, None] + number
            sums = np.bincount(cells.reshape(-1), (totals if same > 1 else opinions).reshape(-1), weights.size)
            decisions = same * np.bincount(number.reshape(-1), minlength=weights.shape[1])
            fading = np.minimum(RATE_DECISIONS / np.maximum(decisions, 1), 1.0) * rate
            weights += np.rint(sums.reshape(weights.shape) * fading)
            weights.clip(-WEIGHT_MAX, WEIGHT_MAX, out=weights)
