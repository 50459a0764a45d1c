"""Predicts tokens by mixing a few opinions, and learns from every frame.

Context mixing in the manner of lpaq and paq8 (Mahoney), made frame-synchronous: every token of a frame, in all segments
of a group, is predicted from the same frozen state with array operations; then the state learns from the whole frame at
once. A token is a path of binary decisions down the tree of its id's bits, from the top bit down. The opinions:

    counts     the bits seen at this node of the tree, after the same context of past tokens
    match      which of the position's last tokens lie below this node
    networks   the mass that a network gives to either side: a small one that is trained online, and a given one

Counts and matches become probabilities through maps that learn what such have meant so far. A mixer weighs all logits;
its weights are a sum of several sets, each set chosen by a small context.

All is integers, or float64 that hold integers below 2^53; a quotient or a product with a fraction is rounded at once.
What a frame teaches is summed over integers before it is applied, so neither the order of positions nor collisions in
tables matter, and all machines, NumPy versions and thread counts agree to the last bit. Masses are float32, in a tree
of sums whose order is fixed.

Shapes: P positions of a frame in all active segments, K contexts, L levels, R = L * P decisions, J opinions, M sets.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .online import OnlineNetwork
from .spec import TokenSpec

PROBABILITY = 1 << 16
LOGIT = 256
"""Steps of a logit per nat."""
LOGIT_MAX = 11 * LOGIT - 1
ONE = 65536.0
"""A mixing weight of 1."""
HISTORY = 3
"""Past frames that contexts read."""
COUNT = 64
"""Steps of a count, so that a count that is scaled down keeps a fraction."""
COUNT_LIMIT = 30 * COUNT
COUNT_PRIOR = 24
"""Added to the steps of either bit."""
COUNT_BITS = 22
"""Slots of a context: 2^22."""
COUNT_STEPS = np.searchsorted([1, 2, 3, 4, 6, 8, 12, 16, 24], np.arange(COUNT_LIMIT // COUNT + 1), side="right")
"""A count, of 10, and a probability, of 33, choose the state of a map."""
COUNT_STATES = 10 * 33
MAP_LIMIT = 1023.0
MIX_RATE = 2.0**-18
MIX_FRAMES = 64
"""Of the first frames: they teach up to three times as fast as later ones."""
MIX_DECISIONS = 64
"""Decisions of one set and frame that count fully; more are averaged down to so many, so that no step is too large."""
ONLINE_MAX = 4096
"""Largest vocabulary for which the online network is worth its time."""
OFFSETS = ((1, 0, 0), (2, 0, 0), (3, 0, 0), (1, 0, 1), (1, 0, -1), (1, 1, 0), (1, -1, 0))
"""Of the tokens that the online network reads."""


Given = Callable[[], np.ndarray]
"""Waits for a trained network's weights of the tokens, (P, V), perhaps of more positions than still matter."""


def _tables() -> tuple[np.ndarray, np.ndarray]:
    """(squash, stretch): logit + LOGIT_MAX -> probability of a 1 in 1..65535; probability -> logit. Integers alone."""
    decay = 18374827034086858296  # floor(2^64 * exp(-1 / LOGIT))
    power, half = 1 << 64, []
    for _ in range(LOGIT_MAX + 1):
        half.append(max(1, PROBABILITY * power // ((1 << 64) + power)))
        power = power * decay >> 64
    squash = np.array([*half[:0:-1], *(PROBABILITY - h for h in half)], np.int64)
    stretch = np.searchsorted(squash, np.arange(PROBABILITY), side="right") - 1 - LOGIT_MAX
    return squash.astype(np.float64), np.maximum(stretch, -LOGIT_MAX).astype(np.float64)


SQUASH, STRETCH = _tables()


class Past:
    """The last frames of one factor and how long tokens have stayed. Arrays of P tokens, V where there is none."""

    def __init__(self, spec: TokenSpec, factor: int, segments: int):
        self.height, self.width, self.none = spec.height, spec.width, spec.factors[factor]
        shape = (segments, self.height + 2, self.width + 2)
        self.frames = [np.full(shape, self.none, np.int64)] * HISTORY
        self.run = np.zeros(shape, np.int64)

    def keep(self, segments: int) -> None:
        """Drop the segments that have ended."""
        self.frames, self.run = [frame[:segments] for frame in self.frames], self.run[:segments]

    def push(self, tokens: np.ndarray) -> None:
        """tokens (G, S) of the frame that has been coded."""
        new = np.full_like(self.frames[0], self.none)
        new[:, 1:-1, 1:-1] = tokens.reshape(-1, self.height, self.width)
        self.run = np.minimum(self.run + 1, 255) * (new == self.frames[0]) * (new < self.none)
        self.frames = [new, *self.frames[:-1]]

    def at(self, dt: int, dy: int = 0, dx: int = 0) -> np.ndarray:
        frame = self.frames[dt - 1][:, 1 + dy : 1 + dy + self.height, 1 + dx : 1 + dx + self.width]
        return frame.reshape(-1)

    def stay(self) -> tuple[np.ndarray, np.ndarray]:
        """How long each token has stayed, and how many of the 3x3 around it have, 0..9."""
        stays = self.run > 0
        rows = stays[:, :-2].astype(np.int64) + stays[:, 1:-1] + stays[:, 2:]
        still = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
        return self.run[:, 1:-1, 1:-1].reshape(-1), still.reshape(-1)


class Maps:
    """Probabilities by state, each the mean of the bits seen in it, the more recent the heavier."""

    def __init__(self, start: np.ndarray):
        self.probability = start.astype(np.float64)
        self.logit = STRETCH.take(start)
        self.count = np.zeros(len(start))
        self.seen = np.zeros(len(start), np.int64)  # of this frame: decisions, and 2^32 for each 1

    def learn(self, state: np.ndarray, bits: np.ndarray) -> None:
        """state and bits (n,). A state that occurs often is written often, each time with the same value."""
        np.add.at(self.seen, state, (bits << 32) + 1)
        seen = self.seen.take(state)
        self.seen[state] = 0
        decisions = (seen & 0xFFFFFFFF).astype(np.float64)
        ones = (seen >> 32).astype(np.float64)
        old, count = self.probability.take(state), self.count.take(state)
        new = old + np.rint((ones * PROBABILITY - decisions * old) / (count + decisions + 1.5))
        self.probability[state] = np.clip(new, 16, PROBABILITY - 16, out=new)
        self.logit[state] = STRETCH.take(new.astype(np.int64))
        self.count[state] = np.minimum(count + decisions, MAP_LIMIT)


class Counts:
    """Counts of the bits seen at a node after a context: words of 16 bits for the ones, 16 for all."""

    def __init__(self, slots: int):
        self.words = np.zeros(slots, np.uint32)
        self.states = np.zeros(slots, np.int16)  # less that of a word of 0, which is 16

    def learn(self, slot: np.ndarray, bits: np.ndarray) -> None:
        """slot and bits (n,)."""
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
        self.states[slot] = COUNT_STEPS.take(total // COUNT) * 33 + (p * 33 >> 16) - 16


class Mass:
    """What a network says: the mass below each node of the tree."""

    def __init__(self, count: int, levels: int):
        """For frames of so many positions (P)."""
        self.size = 1 << levels
        self.tree = np.zeros((count, 2 * self.size), np.float32)  # node n at n, its children at 2 n and 2 n + 1
        self.first = np.arange(count) * 2 * self.size

    def fill(self, weights: np.ndarray) -> None:
        """weights (P, V) of the tokens."""
        size = self.size
        self.tree[:, size : size + weights.shape[1]] = weights
        while size > 1:
            children = self.tree[:, size : 2 * size]
            size >>= 1
            np.add(children[:, ::2], children[:, 1::2], out=self.tree[:, size : 2 * size])

    def look(self, node: np.ndarray, out: np.ndarray) -> None:
        """node (L, P) -> logits (L, P)."""
        at = self.first + node
        total = self.tree.take(at)
        at += node
        at += 1
        p = self.tree.take(at)
        p /= np.maximum(total, np.float32(2.0**-64))
        p *= np.float32(PROBABILITY)
        np.minimum(np.maximum(p, 1, out=p), PROBABILITY - 1, out=p)
        STRETCH.take(p.astype(np.int64), out=out, mode="clip")


class TreeMixer:
    """Predicts and learns one factor's tokens: `begin` a frame, `predict` level by level or all at once, `update`."""

    def __init__(self, spec: TokenSpec, factor: int, segments: int, codes: np.ndarray | None = None):
        """segments: how many start out in the group; codes: see OnlineNetwork, if `begin` is given an opinion."""
        given = codes is not None
        self.size, self.positions = spec.factors[factor], spec.positions
        self.levels = levels = (self.size - 1).bit_length()
        self.past = Past(spec, factor, segments)
        # Contexts are numbers: 0, the position, the last token; the factors before, and these with the last token.
        self.radix = np.cumprod([1, *spec.factors[:factor]], dtype=np.uint64)
        numbers = [1, self.positions, self.size + 1]
        if factor:
            coded = 1
            for size in spec.factors[:factor]:
                coded *= size
            numbers += [coded, coded * (self.size + 1)]
        bits = COUNT_BITS - (len(spec.factors) - 1).bit_length()  # all factors' tables together stay below 256 MiB
        self.mask = np.int64((1 << bits) - 1)
        fits = [n << levels <= 1 << bits for n in numbers]
        self.steps = np.array([1 << levels if fit else 0x9E3779B1 for fit in fits], np.uint64)[:, None]
        self.contexts = len(numbers)
        self.first_slot = (np.arange(self.contexts) << bits)[:, None, None]
        self.first_state = (np.arange(self.contexts) * COUNT_STATES + 16)[:, None, None]
        self.counts = Counts(self.contexts << bits)
        start = (np.arange(33) * 2 + 1) * (PROBABILITY // 66)
        matches = np.full(levels * 8 * 27, PROBABILITY // 2)
        self.maps = Maps(np.concatenate([np.tile(start, self.contexts * 10), matches]))
        self.online = None
        if self.size <= ONLINE_MAX:
            contexts = [min(size, ONLINE_MAX) for size in spec.factors[:factor]]
            self.online = OnlineNetwork(self.size, self.positions, len(OFFSETS), 3, contexts, codes)
        # At first a trained network alone is believed; the others must earn their weight.
        weights = [0.0 if given else 0.016] * self.contexts + [0.0, 0.0]
        weights += [0.0 if given else 0.1] * (self.online is not None) + [0.2] * given
        sets = np.cumsum([0, levels * 8, self.positions, 10, levels * 24, 27])
        self.first_set = sets[:-1]
        self.weights = np.rint(np.array(weights) * ONE)[:, None].repeat(sets[-1], 1)  # (J, sets)
        self.masses: list[Mass] = []
        self.time = 0

    def begin(self, coded: np.ndarray, given: Given | None = None) -> None:
        """Freeze what the next frame is predicted from.

        coded (G, S, f): the frame's factors before this one, of the segments that go on.
        """
        self.past.keep(len(coded))
        coded = coded.reshape(len(coded) * self.positions, coded.shape[2])
        count, levels = len(coded), self.levels
        past = np.stack([self.past.at(*offset) for offset in OFFSETS], axis=1)
        run, still = self.past.stay()
        place = np.arange(count) % self.positions
        networks = (self.online is not None) + (given is not None)
        if [len(mass.tree) for mass in self.masses] != [count] * networks:
            self.masses = [Mass(count, levels) for _ in range(networks)]
        if self.online is not None:
            self.masses[0].fill(self.online.predict(past, run, coded % ONLINE_MAX))
        numbers = [np.zeros_like(place), place, past[:, 0]]
        if coded.shape[1]:
            number = (coded.astype(np.uint64) * self.radix[:-1]).sum(1, dtype=np.uint64)
            numbers += [number, number * np.uint64(self.size + 1) + past[:, 0].astype(np.uint64)]
        self.base = (np.stack(numbers).astype(np.uint64) * self.steps).astype(np.int64)[:, None]  # (K, 1, P)
        leaves = np.where(past[:, :3] < self.size, past[:, :3] | 1 << levels, 0).T  # (3, P)
        below = leaves >> np.arange(levels, -1, -1)[:, None, None]  # (L + 1, 3, P)
        self.parents = below[:-1]
        self.codes = ((below[1:] & 1) + 1) * np.array([[1], [3], [9]])
        run = np.minimum(run, 7)
        level = np.arange(levels)[:, None]
        self.first_match = self.contexts * COUNT_STATES + 27 * (8 * level + run)
        # Which set of each kind weighs each decision; the last two await the last network's opinion, and the match.
        self.chosen = np.empty((len(self.first_set), levels, count), np.int64)  # (M, L, P)
        for chosen, first, of in zip(self.chosen, self.first_set, (8 * level + run, place, still, 24 * level, 0)):
            np.add(first, of, out=chosen)
        self.trace: list[tuple[np.ndarray, ...]] = []
        if given is not None:
            self.masses[-1].fill(given()[:count])

    def predict(self, level: int, node: np.ndarray) -> np.ndarray:
        """First level, node (L, P) of each level -> probability of a 1, float64 (L, P) of integers in 1..65535."""
        here, k = slice(level, level + len(node)), self.contexts
        slot = self.base + node
        slot &= self.mask
        slot += self.first_slot
        state = np.empty((k + 1, *node.shape), np.int64)
        np.add(self.counts.states.take(slot), self.first_state, out=state[:k])
        match = ((self.parents[here] == node[:, None]) * self.codes[here]).sum(1)  # (L, P)
        np.add(match, self.first_match[here], out=state[k])
        opinions = np.empty((len(self.weights), *node.shape))  # (J, L, P)
        self.maps.logit.take(state, out=opinions[: k + 1], mode="clip")
        opinions[k + 1] = LOGIT
        for i, mass in enumerate(self.masses):
            mass.look(node, opinions[k + 2 + i])
        chosen = self.chosen[:, here]
        if self.masses:
            sure = opinions[-1].astype(np.int64) // 192 + 12
            chosen[3] += np.minimum(np.maximum(sure, 0), 23)
        chosen[4] += match
        weights = self.weights.take(chosen, 1).sum(1)  # (J, L, P)
        weights *= opinions
        x = weights.sum(0)
        x /= ONE
        np.rint(x, out=x)
        x += LOGIT_MAX
        probability = SQUASH.take(x.astype(np.int64), mode="clip")
        self.trace.append((slot, state, opinions, probability))
        return probability

    def update(self, bits: np.ndarray, tokens: np.ndarray) -> None:
        """Learn from the frame: bits (L, P) of all levels, tokens (G, S)."""
        parts = zip(*self.trace, strict=True)
        slot, state, opinions, probability = (np.concatenate(p, -2) if len(p) > 1 else p[0] for p in parts)
        flat = bits.reshape(-1)
        self.counts.learn(slot.reshape(-1), np.tile(flat, len(slot)))
        self.maps.learn(state.reshape(-1), np.tile(flat, len(state)))
        self._learn(opinions.reshape(len(opinions), -1), (bits * float(PROBABILITY) - probability).reshape(-1))
        self.past.push(tokens)
        self.time += 1
        if self.online is not None:
            self.online.update(tokens.reshape(-1), self.masses[0].tree[:, 1])

    def _learn(self, opinions: np.ndarray, error: np.ndarray) -> None:
        """Gradient descent on the code length: opinions (J, R), error (R,)."""
        opinions *= error
        (count, sets), chosen = self.weights.shape, self.chosen.reshape(-1)  # (M * R,)
        cells = (np.arange(count) * sets)[:, None] + chosen
        values = np.broadcast_to(opinions[:, None], (count, len(self.chosen), len(error)))
        sums = np.bincount(cells.reshape(-1), values.reshape(-1), self.weights.size).reshape(count, sets)
        decisions = np.bincount(chosen, minlength=sets)
        rate = MIX_RATE * (1 + 2 * MIX_FRAMES / (MIX_FRAMES + self.time))
        self.weights += np.rint(sums * (np.minimum(MIX_DECISIONS / np.maximum(decisions, 1), 1.0) * rate))
        np.clip(self.weights, -16 * ONE, 16 * ONE, out=self.weights)
