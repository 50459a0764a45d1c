"""Predicts tokens by mixing many opinions, and learns from every frame.

Context mixing in the manner of lpaq and paq8 (Mahoney), made frame-synchronous: every token of a frame, in all segments
of a group, is predicted from the same frozen state with array operations; then the state learns from the whole frame at
once. A token is a path of binary decisions down the tree of its id's bits, from the top bit down. The opinions:

    counts     the bits seen at this node of the tree, after the same context of past tokens
    recalls    the last tokens that followed a context
    networks   the mass that a network gives to either side: a small one that is trained online, and a given one

Counts and recalls become probabilities through maps that learn what such counts have meant so far; a mixer weighs all
logits with several sets of weights, each set chosen by a small context; a second mixer weighs the sets' results.

All is integers, or float64 that hold integers below 2^53; a quotient or a product with a fraction is rounded at once.
What a frame teaches is summed over integers before it is applied, so neither the order of positions nor collisions of
hashes matter, and all machines, NumPy versions and thread counts agree to the last bit.

Shapes: P positions of a frame in all active segments, K contexts, L levels, R = L * P decisions, J opinions, M sets.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

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
"""Slots of a context: 2^22 words of 4 bytes; 2^20 words of 8 bytes for a recall."""
RECALL_BITS = 20
CANDIDATES = 3
RECALL_STATES = 3**CANDIDATES * 18
MAP_LIMIT = 1023.0
MIX_RATE = 2.0**-15
MIX_DECISIONS = 64
"""Decisions of one set and frame that count fully; more are averaged down to so many, so that no step is too large."""
FINAL_RATE = 2.0**-18
ONLINE_MAX = 4096
"""Largest vocabulary for which the online network is worth its time."""


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


def squash(logit: np.ndarray) -> np.ndarray:
    return SQUASH.take(logit.astype(np.int64) + LOGIT_MAX)


def stretch(probability: np.ndarray) -> np.ndarray:
    return STRETCH.take(probability.astype(np.int64))


def _logits(x: np.ndarray) -> np.ndarray:
    """Mixed logits in steps of ONE, overwritten -> logits."""
    x /= ONE
    np.rint(x, out=x)
    np.maximum(x, -LOGIT_MAX, out=x)
    return np.minimum(x, LOGIT_MAX, out=x)


class Past:
    """The last frames of one factor and how long tokens have stayed. Arrays of P tokens, V where there is none."""

    def __init__(self, spec: TokenSpec, factor: int, segments: int):
        self.height, self.width, self.none = spec.height, spec.width, spec.factors[factor]
        self.frames = np.full((HISTORY, segments, self.height + 2, self.width + 2), self.none, np.int64)
        self.run = np.zeros((segments, self.height, self.width), np.int64)

    def keep(self, segments: int) -> None:
        """Drop the segments that have ended."""
        self.frames, self.run = self.frames[:, :segments], self.run[:segments]

    def push(self, tokens: np.ndarray) -> None:
        """tokens (G, S) of the frame that has been coded."""
        self.frames = np.roll(self.frames, 1, axis=0)
        self.frames[0, :, 1:-1, 1:-1] = tokens.reshape(-1, self.height, self.width)
        same = self.frames[0, :, 1:-1, 1:-1] == self.frames[1, :, 1:-1, 1:-1]
        self.run = np.where(same, np.minimum(self.run + 1, 255), 0)

    def at(self, dt: int, dy: int = 0, dx: int = 0) -> np.ndarray:
        frame = self.frames[dt - 1, :, 1 + dy : 1 + dy + self.height, 1 + dx : 1 + dx + self.width]
        return frame.reshape(-1)

    def still(self) -> np.ndarray:
        """How many of the 3x3 tokens around a position did not change in the last frame, 0..9."""
        run = np.pad(self.run > 0, ((0, 0), (1, 1), (1, 1))).astype(np.int64)
        rows = run[:, :-2] + run[:, 1:-1] + run[:, 2:]
        return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]).reshape(-1)


def _hash(contexts: list[tuple[np.ndarray, ...]]) -> np.ndarray:
    """Contexts, each a tuple of arrays (P,), -> uint32 (P, K)."""
    columns = []
    for number, parts in enumerate(contexts):
        h = np.full(parts[0].shape, number * 0x9E3779B1 + 0x7F4A7C15 & 0xFFFFFFFF, np.uint32)
        for part in parts:
            h = (h ^ part.astype(np.uint32)) * np.uint32(0x85EBCA6B)
            h ^= h >> np.uint32(15)
        h *= np.uint32(0xC2B2AE35)
        h ^= h >> np.uint32(13)
        columns.append(h)
    return np.stack(columns, axis=1)


class _Maps:
    """Probabilities by state, each the mean of the bits seen in it, the more recent the heavier."""

    def __init__(self, start: np.ndarray):
        self.probability = start.astype(np.float64)
        self.count = np.zeros(len(start))
        self.seen = np.zeros(len(start), np.int64)  # of this frame: decisions, and 2^32 for each 1

    def logits(self, state: np.ndarray) -> np.ndarray:
        return stretch(self.probability.take(state))

    def learn(self, state: np.ndarray, bits: np.ndarray) -> None:
        """state (R, K), bits (R,). A state that occurs often is written often, each time with the same value."""
        flat = state.reshape(-1)
        np.add.at(self.seen, flat, np.repeat((bits << 32) + 1, state.shape[1]))
        seen = self.seen.take(flat)
        self.seen[flat] = 0
        decisions = (seen & 0xFFFFFFFF).astype(np.float64)
        ones = (seen >> 32).astype(np.float64)
        old, count = self.probability.take(flat), self.count.take(flat)
        new = old + np.rint((ones * PROBABILITY - decisions * old) / (count + decisions + 1.5))
        self.probability[flat] = np.clip(new, 16, PROBABILITY - 16)
        self.count[flat] = np.minimum(count + decisions, MAP_LIMIT)


class _Counts:
    """Hashed counts of the bits seen at a node after a context: words of 16 bits for the ones, 16 for all."""

    # A count and a probability choose the state of a map.
    _COUNT_STEPS = np.searchsorted([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128], np.arange(1025), side="right")
    _COUNT_STEPS *= 33
    _PROBABILITY_STEPS = 33

    def __init__(self, contexts: int, bits: int):
        self.contexts, self.shift = contexts, np.uint32(32 - bits)
        self.table = np.zeros(contexts << bits, np.uint32)
        self.first = np.arange(contexts) << bits
        steps = self._PROBABILITY_STEPS
        start = (np.arange(steps) * 2 + 1) * (PROBABILITY // (2 * steps))
        self.maps = _Maps(np.tile(start, contexts * 13))
        self.first_state = np.arange(contexts) * (13 * steps)

    def look(self, context: np.ndarray, node: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """context (P, K), node (L, P) -> slots and states of the maps (L, P, K); fills logits (L, P, 2 K)."""
        key = context ^ (node.astype(np.uint32) * np.uint32(0x9E3779B1))[:, :, None]
        key *= np.uint32(0x2C1B3C6D)
        key >>= self.shift
        slot = key + self.first
        word = self.table.take(slot).astype(np.int64)
        total = word & 0xFFFF
        word >>= 16
        ones = np.minimum(word, total, out=word)
        # Below PROBABILITY, for the prior keeps the quotient below 1.
        p = ((ones + COUNT_PRIOR) * float(PROBABILITY) / (total + 2 * COUNT_PRIOR)).astype(np.int64)
        total >>= 6
        state = self._COUNT_STEPS.take(total)
        state += (p * self._PROBABILITY_STEPS) >> 16
        state += self.first_state
        logits[:, :, : self.contexts] = STRETCH.take(p)
        logits[:, :, self.contexts :] = self.maps.logits(state)
        return slot, state

    def learn(self, slot: np.ndarray, state: np.ndarray, bits: np.ndarray) -> None:
        self.maps.learn(state, bits)
        flat = slot.reshape(-1)
        # Words wrap around if one frame overflows a count: the same everywhere, and no harm but to that count.
        add = (bits * (COUNT << 16) + COUNT).astype(np.uint32)
        np.add.at(self.table, flat, np.repeat(add, self.contexts))
        word = self.table.take(flat)
        over = np.flatnonzero((word & np.uint32(0xFFFF)) > COUNT_LIMIT)
        word = word[over].astype(np.int64)
        total = word & 0xFFFF
        ones = np.minimum(word >> 16, total) * COUNT_LIMIT // total
        self.table[flat[over]] = (ones << 16 | COUNT_LIMIT).astype(np.uint32)


class _Recalls:
    """Hashed lists of the last three different tokens that followed a context, the newest first, and how often.

    A word: bits 0..3 check the context, 4..15 three counts, 16..63 three tokens.
    """

    # The first two counts take part in the state.
    _FIRST = np.array([0, 1, 2, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 5, 5, 5]) * 3
    _SECOND = np.array([0, 1] + [2] * 14)

    def __init__(self, contexts: int, levels: int, bits: int):
        self.contexts, self.levels, self.shift = contexts, levels, np.uint32(32 - bits)
        self.table = np.zeros(contexts << bits, np.uint64)
        self.first = np.arange(contexts) << bits
        self.maps = _Maps(np.full(contexts * levels * RECALL_STATES, PROBABILITY // 2))
        self.first_state = np.arange(contexts) * (levels * RECALL_STATES)

    def begin(self, context: np.ndarray) -> None:
        """context (P, K)."""
        self.slot = (context >> self.shift).astype(np.int64) + self.first
        self.check = (context & np.uint32(15)).astype(np.uint64)
        word = self.table.take(self.slot)
        word = np.where((word & np.uint64(15)) == self.check, word, np.uint64(0)).astype(np.int64)
        self.tokens = [word >> 16 + 16 * i & 0xFFFF for i in range(CANDIDATES)]
        self.counts = [word >> 4 + 4 * i & 15 for i in range(CANDIDATES)]
        self.leaves = np.where(np.stack(self.counts) > 0, np.stack(self.tokens) | 1 << self.levels, 0)  # (3, P, K)
        self.state = 3**CANDIDATES * (self._FIRST.take(self.counts[0]) + self._SECOND.take(self.counts[1]))
        self.state += self.first_state

    def look(self, level: int, node: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """First level, node (L, P) -> states of the maps (L, P, K); fills logits (L, P, K)."""
        state = np.empty(logits.shape, np.int64)
        for i, (n, at) in enumerate(zip(node, state, strict=True)):
            np.add(self.state, (level + i) * RECALL_STATES, out=at)
            # 0, 1 or 2 in base 3 for each candidate: not below this node, below its 0 or its 1.
            child = self.leaves >> (self.levels - (level + i) - 1)  # (3, P, K)
            child -= (n * 2 - 1)[:, None]
            child *= (child == 1) | (child == 2)
            at += child[0] + child[1] * 3 + child[2] * 9
        logits[:] = self.maps.logits(state)
        return state

    def learn(self, state: np.ndarray, bits: np.ndarray, token: np.ndarray) -> None:
        """Move token (P,) to the front of its lists. Of positions that share a list, the first one writes it."""
        self.maps.learn(state, bits)
        (t1, t2, t3), (n1, n2, n3) = self.tokens, self.counts
        t = np.broadcast_to(token[:, None], t1.shape)
        is1, is2, is3 = (t == t1) & (n1 > 0), (t == t2) & (n2 > 0), (t == t3) & (n3 > 0)
        n = np.minimum(1 + np.where(is1, n1, np.where(is2, n2, np.where(is3, n3, 0))), 15)
        second, n_second = np.where(is1, t2, t1), np.where(is1, n2, n1 + 1 >> 1)
        third, n_third = np.where(is1 | is2, t3, t2), np.where(is1 | is2, n3, n2 + 1 >> 1)
        word = t << 16 | second << 32 | third << 48 | n << 4 | n_second << 8 | n_third << 12
        slot, first = np.unique(self.slot, return_index=True)
        self.table[slot] = (word.astype(np.uint64) | self.check).reshape(-1)[first]


class _Mass:
    """What a network says: the mass below each node of the tree."""

    def __init__(self, weights: np.ndarray, levels: int):
        """weights (P, V): integers, float64, that sum to less than 2^53."""
        row = np.zeros((len(weights), 1 << levels))
        row[:, : weights.shape[1]] = weights
        self.rows = [row]
        for _ in range(levels):
            row = row[:, ::2] + row[:, 1::2]
            self.rows.insert(0, row)
        self.position = np.arange(len(weights))

    def look(self, level: int, node: np.ndarray) -> np.ndarray:
        """First level, node (L, P) -> logits (L, P)."""
        p = np.empty(node.shape)
        for i, n in enumerate(node):
            child = self.rows[level + i + 1]
            at = self.position * child.shape[1] + (n * 2 - child.shape[1])
            zeros, ones = child.take(at), child.take(at + 1)
            p[i] = (ones + 1) * PROBABILITY / (ones + zeros + 2)
        return stretch(np.minimum(np.maximum(p, 1), PROBABILITY - 1))


class _Mixer:
    """Sets of weights over the opinions, and weights over the sets."""

    def __init__(self, sizes: list[int], start: np.ndarray, levels: int):
        self.weights = [np.tile(start, (size, 1)) for size in sizes]
        self.final = np.full((levels, len(sizes)), np.rint(ONE / len(sizes)))

    def mix(self, opinions: np.ndarray, chosen: list[np.ndarray], level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """opinions (R, J), of each context the set chosen (R,), level (R,) -> sets' logits (R, M), probability (R,)."""
        dots = np.empty((len(opinions), len(chosen)))
        for m, (weights, choice) in enumerate(zip(self.weights, chosen, strict=True)):
            dots[:, m] = np.einsum("rj,rj->r", weights.take(choice, 0), opinions)
        dots = _logits(dots)
        final = np.einsum("rm,rm->r", self.final.take(level, 0), dots)
        return dots, squash(_logits(final))

    def learn(
        self,
        opinions: np.ndarray,
        chosen: list[np.ndarray],
        level: np.ndarray,
        dots: np.ndarray,
        probability: np.ndarray,
        bits: np.ndarray,
    ) -> None:
        """Gradient descent on the code length, of each set by itself."""
        target = bits * float(PROBABILITY)
        for m, (weights, choice) in enumerate(zip(self.weights, chosen, strict=True)):
            error = target - squash(dots[:, m])
            decisions = np.bincount(choice, minlength=len(weights))
            rate = np.minimum(MIX_DECISIONS / np.maximum(decisions, 1), 1.0) * MIX_RATE
            weights += np.rint(_sums(opinions * error[:, None], choice, len(weights)) * rate[:, None])
            np.clip(weights, -16 * ONE, 16 * ONE, out=weights)
        total = _sums(dots * (target - probability)[:, None], level, len(self.final))
        self.final += np.rint(total * (FINAL_RATE * min(1, 128 * len(self.final) / len(bits))))
        np.clip(self.final, -16 * ONE, 16 * ONE, out=self.final)


def _sums(values: np.ndarray, row: np.ndarray, rows: int) -> np.ndarray:
    """Sum values (R, J) of integers into (rows, J)."""
    columns = values.shape[1]
    cell = (row * columns)[:, None] + np.arange(columns)
    return np.bincount(cell.reshape(-1), weights=values.reshape(-1), minlength=rows * columns).reshape(rows, columns)


class TreeMixer:
    """Predicts and learns one factor's tokens: `begin` a frame, `predict` level by level or all at once, `update`."""

    def __init__(self, spec: TokenSpec, factor: int, segments: int, given: bool = False):
        """segments: how many start out in the group; given: whether `begin` is given a trained network's opinion."""
        self.size, self.positions = spec.factors[factor], spec.positions
        self.levels = (self.size - 1).bit_length()
        self.past = Past(spec, factor, segments)
        smaller = (len(spec.factors) - 1).bit_length()  # all factors' tables together stay below 256 MiB
        coded = np.zeros((factor, segments * self.positions), np.int64)
        counts, recalls = self._contexts(coded)
        self.counts = _Counts(len(counts), COUNT_BITS - smaller)
        self.recalls = _Recalls(len(recalls), self.levels, RECALL_BITS - smaller)
        self.online = None
        if self.size <= ONLINE_MAX:
            self.online = OnlineNetwork(self.size, self.positions, 7, 3, list(spec.factors[:factor]))
        # At first a trained network alone is believed; the others must earn their weight.
        start = [0.0] * len(counts) + [0.0 if given else 0.08] * len(counts) + [0.0] * (len(recalls) + 1)
        start += [0.0 if given else 0.5] * (self.online is not None) + [1.0] * given
        sizes = [self.levels * 8, self.positions, self.levels * 24, self.levels * 10]
        self.mixer = _Mixer(sizes, np.rint(np.array(start) * ONE), self.levels)

    def _contexts(self, coded: np.ndarray) -> tuple[list[tuple[np.ndarray, ...]], list[tuple[np.ndarray, ...]]]:
        """Of counts, and of recalls; coded (factors before this one, P) of the same frame."""
        at = self.past.at
        last, before, third = at(1), at(2), at(3)
        place = np.tile(np.arange(self.positions), len(last) // self.positions)
        counts: list[tuple[np.ndarray, ...]]
        counts = [(np.zeros_like(last),), (place,), (last,), (last, place), (before, place)]
        counts += [(at(1, dy, dx), place) for dy, dx in ((0, -1), (0, 1), (-1, 0), (1, 0))]
        recalls = [(place,), (last, place), (last, before, place), (last, before, third)]
        if len(coded):
            counts += [tuple(coded), (*coded, last)]
        return counts, recalls

    def begin(self, coded: np.ndarray, given: np.ndarray | None = None) -> None:
        """Freeze what the next frame is predicted from.

        coded (G, S, f): the frame's factors before this one, of the segments that go on. given: the trained network's
        weights of the tokens, integers in float64 (P, V), of any sum below 2^53.
        """
        self.past.keep(len(coded))
        coded = coded.reshape(len(coded) * self.positions, coded.shape[2])
        contexts, recalls = self._contexts(coded.T)
        self.context = _hash(contexts)
        self.recalls.begin(_hash(recalls))
        masses = []
        run = self.past.run.reshape(-1)
        if self.online is not None:
            offsets = ((1, 0, 0), (2, 0, 0), (3, 0, 0), (1, 0, 1), (1, 0, -1), (1, 1, 0), (1, -1, 0))
            past = np.stack([self.past.at(*offset) for offset in offsets], axis=1)
            masses.append(self.online.predict(past, run, coded))
        if given is not None:
            masses.append(given)
        self.masses = [_Mass(weights, self.levels) for weights in masses]
        count = len(run)
        place = np.arange(count) % self.positions
        level = np.arange(self.levels)[:, None]
        run, still = np.minimum(run, 7), self.past.still()
        # Which set of each kind weighs each decision, (L, P); the third kind awaits the last network's opinion.
        self.chosen = [level * 8 + run, level * 0 + place, level * 24 + np.zeros_like(run), level * 10 + still]
        self.level = np.repeat(level, count, 1)
        self.trace: list[tuple[np.ndarray, ...]] = []

    def predict(self, level: int, node: np.ndarray) -> np.ndarray:
        """First level, node (L, P) of each level -> probability of a 1, float64 (L, P) of integers in 1..65535."""
        k, r = 2 * self.counts.contexts, self.recalls.contexts
        opinions = np.empty((*node.shape, k + r + 1 + len(self.masses)))
        slot, state = self.counts.look(self.context, node, opinions[:, :, :k])
        recall = self.recalls.look(level, node, opinions[:, :, k : k + r])
        opinions[:, :, k + r] = LOGIT
        for i, mass in enumerate(self.masses):
            opinions[:, :, k + r + 1 + i] = mass.look(level, node)
        here = slice(level, level + len(node))
        if self.masses:
            sure = opinions[:, :, -1].astype(np.int64) // 192 + 12
            self.chosen[2][here] += np.minimum(np.maximum(sure, 0), 23)
        opinions = opinions.reshape(-1, opinions.shape[2])  # (R, J)
        chosen = [c[here].reshape(-1) for c in self.chosen]
        dots, probability = self.mixer.mix(opinions, chosen, self.level[here].reshape(-1))
        self.trace.append((slot, state, recall, opinions, dots, probability))
        return probability.reshape(node.shape)

    def update(self, bits: np.ndarray, tokens: np.ndarray) -> None:
        """Learn from the frame: bits (L, P) of all levels, tokens (G, S)."""
        token, bit = tokens.reshape(-1), bits.reshape(-1)
        slot, state, recall, opinions, dots, probability = (np.concatenate(p) for p in zip(*self.trace, strict=True))
        training = None if self.online is None else _pool().submit(self.online.update, token)
        self.counts.learn(slot.reshape(-1, slot.shape[2]), state.reshape(-1, state.shape[2]), bit)
        self.recalls.learn(recall.reshape(-1, recall.shape[2]), bit, token)
        chosen = [c.reshape(-1) for c in self.chosen]
        self.mixer.learn(opinions, chosen, self.level.reshape(-1), dots, probability, bit)
        self.past.push(tokens)
        if training is not None:
            training.result()


_POOL: list[ThreadPoolExecutor] = []


def _pool() -> ThreadPoolExecutor:
    """A thread for the network's training, beside the tables' learning: they share nothing."""
    if not _POOL:
        _POOL.append(ThreadPoolExecutor(1))
    return _POOL[0]
