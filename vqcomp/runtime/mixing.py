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

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .contexts import CONTEXTS, MATCHES, RECALLED, RUNS, SETS, Decisions, Past
from .online import GATES, OFFSETS, VOCABULARY_MAX, OnlineNetwork
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
"""Waits for a trained network's weights of the tokens, (P, V), perhaps of more positions than still matter."""


class TreeMixer:
    """Predicts and learns one factor's tokens: `begin` a frame, `predict` level by level or all at once, `update`."""

    def __init__(self, spec: TokenSpec, factor: int, segments: int, codes: np.ndarray | None = None):
        """segments: how many start out in the group; codes: of the network that `begin` is given, see OnlineNetwork."""
        self.past = past = Past(spec, factor, segments)
        self.levels = levels = past.levels
        self.contexts = [context for context in CONTEXTS if factor or not context.later]
        kinds = len(self.contexts)
        bits = COUNT_BITS - (len(spec.factors) - 1).bit_length()
        self.counts = Counts(kinds << bits)
        # The slot of a decision: the table of its kind of context, in it (number * step + node) modulo the slots.
        self.mask = np.int64((1 << bits) - 1)
        fits = [context.size(past) << levels <= 1 << bits for context in self.contexts]
        self.steps = np.array([1 << levels if fit else HASH for fit in fits])[:, None]  # (C, 1)
        self.first_slot = (np.arange(kinds) << bits)[:, None, None]
        # States of the maps: those of each kind of context, then those of the match by level and run.
        self.first_state = (np.arange(kinds) * COUNT_STATES + NEW_COUNT)[:, None, None]
        matches = np.full(levels * RUNS * MATCHES, PROBABILITY // 2)
        self.maps = Maps(np.concatenate([np.tile(count_probabilities(), kinds), matches]))
        self.online = None
        if past.size <= VOCABULARY_MAX:
            before = [min(size, VOCABULARY_MAX) for size in spec.factors[:factor]]
            self.online = OnlineNetwork(past.size, past.positions, len(OFFSETS), GATES, before, codes)
        self.given = codes is not None
        self.masses: list[Masses] = []  # of the online network, then of the given one
        # Weights: a row for each opinion, a column for each set, all sets of a kind side by side.
        numbers = {"counts": kinds, "online network": self.online is not None, "given network": self.given}
        start = [opinion.beside_network if self.given else opinion.alone for opinion in OPINIONS]
        weights = np.repeat(start, [numbers.get(opinion.name, 1) for opinion in OPINIONS]).astype(np.float64)
        self.set_levels = np.array([levels if kind.by_level else 1 for kind in SETS])
        self.set_sizes = np.array([kind.size(past) for kind in SETS])
        ends = np.cumsum(self.set_levels * self.set_sizes)
        self.first_set = ends - self.set_levels * self.set_sizes
        self.weights = weights[:, None].repeat(ends[-1], 1)
        self.time = 0

    def begin(self, coded: np.ndarray, given: Given | None = None) -> None:
        """Freeze what the next frame is predicted from.

        coded (G, S, f): the frame's factors before this one, of the segments that go on; given: the network's weights,
        where `codes` were given.
        """
        past, levels = self.past, self.levels
        past.begin(coded)
        count = len(past.place)
        if not self.masses or len(self.masses[0].tree) != count:
            self.masses = [Masses(count, levels) for _ in range((self.online is not None) + self.given)]
        if self.online is not None:
            read = np.stack([past.at(*offset) for offset in OFFSETS], axis=1)
            before = coded.reshape(count, coded.shape[2]) % VOCABULARY_MAX
            self.masses[0].fill(self.online.predict(read, past.run, before))
        numbers = np.stack([context.number(past) for context in self.contexts])  # (C, P)
        self.base = (numbers * self.steps)[:, None]  # (C, 1, P)
        # For the match, the node above each level of the last tokens, and 1 or 2 for the side where they went on.
        tokens = np.stack([past.at(dt) for dt in range(1, RECALLED + 1)])  # (RECALLED, P)
        leaves = np.where(tokens < past.size, tokens | 1 << levels, 0)
        path = leaves >> np.arange(levels, -1, -1)[:, None, None]  # (L + 1, RECALLED, P)
        self.parents = path[:-1]
        self.sides = ((path[1:] & 1) + 1) * 3 ** np.arange(RECALLED)[:, None]
        level = np.arange(levels)[:, None]
        run = np.minimum(past.run, RUNS - 1)
        self.first_match = len(self.contexts) * COUNT_STATES + MATCHES * (RUNS * level + run)  # (L, P)
        # The set of each kind that weighs each decision; `predict` adds the numbers that it learns.
        self.chosen = np.empty((len(SETS), levels, count), np.int64)  # (M, L, P)
        for chosen, kind, first, size in zip(self.chosen, SETS, self.first_set, self.set_sizes):
            chosen[:] = first + size * level if kind.by_level else first
            if kind.before:
                chosen += kind.before(past)
        self.trace: list[tuple[np.ndarray, ...]] = []
        if given is not None:
            self.masses[-1].fill(given()[:count])

    def predict(self, level: int, node: np.ndarray) -> np.ndarray:
        """First level, node (l, P) of each of l levels -> probability of a 1, float64 (l, P), integers in 1..65535."""
        here, kinds = slice(level, level + len(node)), len(self.contexts)
        slot = self.base + node  # (C, l, P)
        slot &= self.mask
        slot += self.first_slot
        state = np.empty((kinds + 1, *node.shape), np.int64)
        np.add(self.counts.states.take(slot), self.first_state, out=state[:kinds])
        match = ((self.parents[here] == node[:, None]) * self.sides[here]).sum(1)  # (l, P)
        np.add(match, self.first_match[here], out=state[kinds])
        opinions = np.empty((len(self.weights), *node.shape))  # (J, l, P), in the order of OPINIONS
        self.maps.logit.take(state, out=opinions[: kinds + 1], mode="clip")
        opinions[kinds + 1] = LOGIT
        for i, masses in enumerate(self.masses):
            masses.look(node, opinions[kinds + 2 + i])
        decisions = Decisions(match, opinions[-1] if self.masses else None)
        chosen = self.chosen[:, here]  # (M, l, P)
        for part, kind in zip(chosen, SETS):
            if kind.during:
                part += kind.during(decisions)
        weights = self.weights.take(chosen, 1).sum(1)  # (J, l, P)
        weights *= opinions
        x = weights.sum(0)
        x /= ONE
        np.rint(x, out=x)
        x += LOGIT_MAX
        probability = SQUASH.take(x.astype(np.int64), mode="clip")
        self.trace.append((slot, state, opinions, probability))
        return probability

    def of_place(self, place: int, weights: np.ndarray) -> TreeMixer:
        """A mixer that predicts one place in the frame of each segment, and nothing else; after `begin` without given.

        weights (G, V): the given network's, there. For a network that predicts a frame token by token. Once all are
        known, `hear` and `predict` the whole frame before `update`.
        """
        part, rows = copy.copy(self), slice(place, None, self.past.positions)
        part.base, part.parents, part.sides = self.base[..., rows], self.parents[..., rows], self.sides[..., rows]
        part.first_match, part.chosen = self.first_match[:, rows], self.chosen[..., rows].copy()
        part.masses, part.trace = [masses.of_rows(rows) for masses in self.masses], []
        part.masses[-1].fill(weights)
        return part

    def hear(self, weights: np.ndarray) -> None:
        """The given network's weights of the whole frame (P, V), where `begin` was not given them."""
        self.masses[-1].fill(weights)

    def update(self, bits: np.ndarray, tokens: np.ndarray) -> None:
        """Learn from the frame: bits (L, P) of all levels, tokens (G, S)."""
        parts = zip(*self.trace, strict=True)
        slot, state, opinions, probability = (np.concatenate(p, -2) if len(p) > 1 else p[0] for p in parts)
        flat = bits.reshape(-1)  # (D,)
        self.counts.learn(slot.reshape(-1), np.tile(flat, len(slot)))
        self.maps.learn(state.reshape(-1), np.tile(flat, len(state)))
        self._learn(opinions.reshape(len(opinions), -1), (bits * float(PROBABILITY) - probability).reshape(-1))
        self.past.push(tokens)
        self.time += 1
        if self.online is not None:
            self.online.update(tokens.reshape(-1), self.masses[0].total)

    def _learn(self, opinions: np.ndarray, error: np.ndarray) -> None:
        """Gradient descent of the weights on the code length: opinions (J, D), which are overwritten, error (D,)."""
        opinions *= error
        (count, sets), chosen = self.weights.shape, self.chosen.reshape(-1)  # (M * D,)
        cells = (np.arange(count) * sets)[:, None] + chosen
        values = np.broadcast_to(opinions[:, None], (count, len(self.chosen), len(error)))
        sums = np.bincount(cells.reshape(-1), values.reshape(-1), self.weights.size).reshape(count, sets)
        decisions = np.bincount(chosen, minlength=sets)
        rate = RATE * (1 + 2 * RATE_FRAMES / (RATE_FRAMES + self.time))
        self.weights += np.rint(sums * (np.minimum(RATE_DECISIONS / np.maximum(decisions, 1), 1.0) * rate))
        np.clip(self.weights, -WEIGHT_MAX, WEIGHT_MAX, out=self.weights)
