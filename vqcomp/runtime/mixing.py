"""Predicts tokens by mixing contexts, and learns while it does.

A context-mixing model in the manner of lpaq and paq8 (Mahoney), made frame-synchronous: every token of a frame, in all
segments of a group, is predicted from the same frozen state with array operations; then the state learns from the
whole frame at once. A token of one factor is coded as the binary decisions on its bits, from the top bit down.

Prediction of one decision:
    tables    each context of past tokens counts the bits seen at this node of its code tree
    maps      a count becomes a probability by what such counts have meant so far
    mixer     logits are weighted by several sets of weights, each set chosen by a small context
    final     a second mixer weighs the sets' predictions

Everything is an integer, or a float64 that holds an integer below 2^53, or one IEEE division or multiplication that is
rounded at once; sums are over integers only. So all machines, NumPy versions and thread counts agree to the last bit,
and no sum depends on the order of the positions.

Shapes: P positions of a frame in all active segments, K contexts, L levels, R = L * P decisions, J inputs, M sets.
"""

from __future__ import annotations

import numpy as np

from .online import OnlineNetwork
from .spec import TokenSpec

UNIT = 64
"""Steps of a count, so that a scaled-down count keeps a fraction."""
PROBABILITY = 1 << 16
LOGIT = 256
"""Steps of a logit per nat."""
LOGIT_MAX = 11 * LOGIT - 1
ONE = 65536.0
"""A weight of 1."""


def _tables() -> tuple[np.ndarray, np.ndarray]:
    """(squash, stretch): logit + LOGIT_MAX -> probability of a 1 in 1..65535, and back. Built of integers alone."""
    decay = 18374827034086858296  # floor(2^64 * exp(-1 / LOGIT))
    power, half = 1 << 64, []
    for _ in range(LOGIT_MAX + 1):
        half.append(max(1, PROBABILITY * power // ((1 << 64) + power)))
        power = power * decay >> 64
    squash = np.array([*half[:0:-1], *(PROBABILITY - h for h in half)], np.int64)
    stretch = np.searchsorted(squash, np.arange(PROBABILITY), side="right") - 1 - LOGIT_MAX
    return squash.astype(np.float64), np.maximum(stretch, -LOGIT_MAX).astype(np.float64)


SQUASH, STRETCH = _tables()

HISTORY = 8
"""Past frames that contexts read."""
BORDER = 2
"""Cells of padding around a frame, so that every neighbour exists."""
TABLE_BITS = 22
COUNT_STEPS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128], np.int64)


RATE = 2.0**-15
FRATE = 2.0**-18
DELTA = 24
LIMIT = 250
MAP_LIMIT = 1023
WA = 0.0
WB = 0.05


CBITS = 18
CDEC = 4


CAP = 32


ONLINE = True
WN = 0.5


class _Past:
    """The last frames of one factor, newest first, with a border; and how long each token has stayed."""

    def __init__(self, spec: TokenSpec, factor: int, segments: int):
        self.height, self.width, self.fill = spec.height, spec.width, spec.factors[factor]
        shape = (segments, self.height + 2 * BORDER, self.width + 2 * BORDER)
        self.frames = [np.full(shape, self.fill, np.uint32) for _ in range(HISTORY)]
        self.run = np.zeros((segments, self.height, self.width), np.int64)

    def at(self, dt: int, dy: int = 0, dx: int = 0) -> np.ndarray:
        y, x = BORDER + dy, BORDER + dx
        return self.frames[dt - 1][:, y : y + self.height, x : x + self.width].reshape(-1)

    def push(self, tokens: np.ndarray) -> None:
        """tokens (active, S)."""
        tokens = tokens.reshape(-1, self.height, self.width)
        active = len(tokens)
        frame = np.full((active, *self.frames[0].shape[1:]), self.fill, np.uint32)
        frame[:, BORDER : BORDER + self.height, BORDER : BORDER + self.width] = tokens
        self.frames = [frame] + [f[:active] for f in self.frames[:-1]]
        same = (self.at(1) == self.at(2)).reshape(tokens.shape)
        self.run = np.where(same, np.minimum(self.run[:active] + 1, 255), 0)

    def keep(self, active: int) -> None:
        self.frames = [f[:active] for f in self.frames]
        self.run = self.run[:active]


class TreeMixer:
    """Predicts and learns the decisions of one factor."""

    def __init__(self, spec: TokenSpec, factor: int, segments: int, networks: int = 0):
        self.size = spec.factors[factor]
        self.levels = (self.size - 1).bit_length()
        self.positions = spec.positions
        self.past = _Past(spec, factor, segments)
        self.online = None
        if ONLINE and self.size <= 4096:
            own = [self.size + 1] * 3
            self.online = OnlineNetwork(self.size, self.positions, own + list(spec.factors[:factor]), 3)
            networks += 1
        self.n_ctx = K = len(self._contexts(None))
        self.bits = TABLE_BITS
        self.table = np.zeros(K << self.bits, np.uint32)
        self.region = (np.arange(K, dtype=np.int64) << self.bits)
        # maps: probability of a 1 by (context, count step, probability step)
        nq, pq = len(COUNT_STEPS), 33
        self.nq, self.pq = nq, pq
        start = (np.arange(pq) * 2 + 1) * (PROBABILITY // (2 * pq))
        self.map_p = np.tile(start.astype(np.float64), K * nq)
        self.map_n = np.zeros(K * nq * pq)
        self.map_base = np.arange(K, dtype=np.int64) * (nq * pq)
        self.step_of = np.searchsorted(COUNT_STEPS, np.arange(1025), side="right") - 1
        self.Kc = Kc = len(self._recalls(None))
        self.cbits = CBITS
        self.cand = np.zeros(Kc << CBITS, np.uint64)
        self.cregion = np.arange(Kc, dtype=np.int64) << CBITS
        self.cstates = 27 * 18
        self.cmap_p = np.full(Kc * self.levels * self.cstates, 32768.0)
        self.cmap_n = np.zeros(Kc * self.levels * self.cstates)
        self.cmap_base = np.arange(Kc) * (self.levels * self.cstates)
        self.acc = np.zeros(max(len(self.map_p), len(self.cmap_p)), np.int64)
        self.inputs = J = 2 * K + 1 + Kc + networks
        self.set_sizes = [self.levels * 8, self.positions, 1 << min(self.levels, 8)]
        w0 = np.zeros(J); w0[:K] = np.rint(ONE * WA); w0[K:2*K] = np.rint(ONE * WB)
        w0[J - networks:] = np.rint(ONE * WN)
        self.weights = [np.tile(w0, (n, 1)) for n in self.set_sizes]
        self.final = np.full((self.levels, len(self.set_sizes)), np.rint(ONE / len(self.set_sizes)))
        self.rate = RATE
        self.final_rate = FRATE

    def _contexts(self, extra):
        at = self.past.at
        z = np.zeros_like(at(1))
        pos = (z.reshape(-1, self.positions) + np.arange(self.positions, dtype=np.uint32)).reshape(-1)
        h1, h2, h3, h4 = at(1), at(2), at(3), at(4)
        n, s, w, e = at(1, -1, 0), at(1, 1, 0), at(1, 0, -1), at(1, 0, 1)
        return CONTEXTS(**locals())

    def begin(self, extra=None, network=None):
        """Freeze the contexts of the next frame."""
        self.past.keep(len(extra))
        self.hash = self._hashes(self._contexts(extra))
        self.begin2(extra)
        self.nets = [] if network is None else [network]
        if self.online is not None:
            at = self.past.at
            own = np.stack([at(1), at(2), at(3)], 1).astype(np.int64)
            current = extra.reshape(len(own), -1)
            self.nets.append(self.online.predict(np.concatenate([own, current], 1), own))
        self.sums = []
        for weights in self.nets:
            level = np.zeros((len(weights), 1 << self.levels))
            level[:, : self.size] = weights
            sums = [level]
            for _ in range(self.levels):
                level = level[:, ::2] + level[:, 1::2]
                sums.append(level)
            self.sums.append(sums[::-1])

    def _hashes(self, contexts):
        cols = []
        for i, parts in enumerate(contexts):
            h = np.full(parts[0].shape, (i * 0x9E3779B1 + 0x7F4A7C15) & 0xFFFFFFFF, np.uint32)
            for p in parts:
                h = (h ^ p) * np.uint32(0x85EBCA6B)
                h ^= h >> np.uint32(15)
                h *= np.uint32(0xC2B2AE35)
                h ^= h >> np.uint32(13)
            cols.append(h)
        return np.stack(cols, 1)  # (P, K)

    def begin2(self, extra):
        self.run = np.minimum(self.past.run.reshape(-1), 7)
        self.pos = np.tile(np.arange(self.positions), len(self.run) // self.positions)
        c = self._hashes(self._recalls(extra))
        self.cslot = (c >> np.uint32(32 - self.cbits)).astype(np.int64) + self.cregion  # (P, Kc)
        word = self.cand.take(self.cslot)
        self.ccheck = (c & np.uint32(15)).astype(np.uint64)
        word = np.where((word & np.uint64(15)) == self.ccheck, word, np.uint64(0)).astype(np.int64)
        self.ct = [(word >> (16 + 16 * a)) & 0xFFFF for a in range(3)]
        self.cc = [(word >> (4 + 4 * a)) & 15 for a in range(3)]
        self.leaf = [np.where(c > 0, t | 1 << self.levels, 0) for t, c in zip(self.ct, self.cc)]
        b1 = np.array([0,1,2,3,3,4,4,4,4,5,5,5,5,5,5,5]); b2 = np.array([0,1]+[2]*14)
        self.cbase = self.cmap_base + 27 * (b1.take(self.cc[0]) * 3 + b2.take(self.cc[1]))
        self.trace = []

    def predict(self, lo: int, node: np.ndarray) -> np.ndarray:
        """First level, node (L, P) -> probability of a 1 in 1..65535, float64 (hi - lo, P)."""
        L, P, K = len(node), len(self.hash), self.n_ctx
        hi = lo + L
        key = (self.hash[None] ^ (node.astype(np.uint32) * np.uint32(0x9E3779B1))[:, :, None])
        key *= np.uint32(0x2C1B3C6D)
        slot = (key >> np.uint32(32 - self.bits)).astype(np.int64)
        slot += self.region
        slot = slot.reshape(L * P, K)
        word = self.table.take(slot)
        n = (word & np.uint32(0xFFFF)).astype(np.int32)
        n1 = (word >> np.uint32(16)).astype(np.int32)
        np.minimum(n1, n, out=n1)
        p = ((n1 + DELTA) * 65536.0 / (n + 2 * DELTA)).astype(np.int64)
        np.minimum(p, 65535, out=p)
        cell = self.step_of.take(n >> 6) * self.pq + (p * self.pq >> 16) + self.map_base
        st = np.empty((L * P, self.inputs))
        st[:, :K] = STRETCH.take(p)
        st[:, K : 2 * K] = STRETCH.take(self.map_p.take(cell).astype(np.int64))
        st[:, 2 * K] = LOGIT
        cst = np.zeros((L, P, self.Kc), np.int64)
        for a, leaf in enumerate(self.leaf):
            for l in range(L):
                d = self.levels - (lo + l) - 1
                pre = leaf >> d
                cst[l] += np.where(pre >> 1 == node[l][:, None], (pre & 1) + 1, 0) * 3**a
        cst += self.cbase
        cst += (np.arange(lo, hi) * self.cstates)[:, None, None]
        ccell = cst.reshape(L * P, self.Kc)
        st[:, 2 * K + 1 : 2 * K + 1 + self.Kc] = STRETCH.take(self.cmap_p.take(ccell).astype(np.int64))
        for m, sums in enumerate(self.sums):
            net = np.empty((L, P))
            for l in range(L):
                below = sums[lo + l + 1][np.arange(P)[:, None], (node[l][:, None] * 2 + [0, 1]) - (2 << (lo + l))]
                net[l] = (below[:, 1] + 1) * 65536.0 / (below.sum(1) + 2)
            st[:, self.inputs - len(self.sums) + m] = STRETCH.take(np.clip(net, 1, 65535).astype(np.int64)).reshape(-1)
        level = np.repeat(np.arange(lo, hi), P)
        nd = node.reshape(-1)
        sel = [level * 8 + np.tile(self.run, L), np.tile(self.pos, L), np.where(nd < 256, nd, (nd >> np.maximum(level - 7, 0)))]
        dots = np.empty((L * P, len(sel)))
        for j, (s, wt) in enumerate(zip(sel, self.weights)):
            dots[:, j] = np.einsum("rj,rj->r", wt.take(s, 0), st)
        dots = np.clip(np.rint(dots / ONE), -LOGIT_MAX, LOGIT_MAX)
        f = np.einsum("rm,rm->r", self.final.take(level, 0), dots)
        f = np.clip(np.rint(f / ONE), -LOGIT_MAX, LOGIT_MAX).astype(np.int64)
        p = SQUASH.take(f + LOGIT_MAX)
        self.trace.append((slot, cell, st, sel, level, dots, p, ccell))
        return p.reshape(L, P)

    def update(self, bit: np.ndarray, tokens: np.ndarray) -> None:
        """bit (L, P)."""
        slot, cell, st, level, dots, p = (np.concatenate([t[i] for t in self.trace]) for i in (0, 1, 2, 4, 5, 6))
        sel = [np.concatenate([t[3][j] for t in self.trace]) for j in range(len(self.weights))]
        bit = bit.reshape(-1)
        K = self.n_ctx
        if self.online is not None:
            self.online.update(tokens.reshape(-1))
        self.past.push(tokens)
        # maps
        self._learn(self.map_p, self.map_n, cell, bit)
        self._learn(self.cmap_p, self.cmap_n, np.concatenate([t[7] for t in self.trace]), bit)
        v = np.broadcast_to(tokens.reshape(-1, 1), self.cslot.shape)
        (t1, t2, t3), (c1, c2, c3) = self.ct, self.cc
        m1 = (v == t1) & (c1 > 0)
        m2 = (v == t2) & (c2 > 0)
        m3 = (v == t3) & (c3 > 0)
        cf = np.minimum(1 + np.where(m1, c1, np.where(m2, c2, np.where(m3, c3, 0))), 15)
        n2, d2 = np.where(m1, t2, t1), np.where(m1, c2, (c1 * CDEC) >> 3)
        n3, d3 = np.where(m1 | m2, t3, t2), np.where(m1 | m2, c3, (c2 * CDEC) >> 3)
        d2 = np.where((c1 > 0) & ~m1, np.maximum(d2, 1), d2)
        d3 = np.where((c2 > 0) & ~m1 & ~m2, np.maximum(d3, 1), d3)
        word = (v << 16) | (n2 << 32) | (n3 << 48) | (cf << 4) | (d2 << 8) | (d3 << 12)
        word = word.astype(np.uint64) | self.ccheck
        u, first = np.unique(self.cslot.reshape(-1), return_index=True)
        self.cand[u] = word.reshape(-1)[first]
        # mixers
        target = bit * 65536.0
        for j, wt in enumerate(self.weights):
            err = target - SQUASH.take((dots[:, j] + LOGIT_MAX).astype(np.int64))
            g = st * err[:, None]
            J = self.inputs
            at = (sel[j][:, None] * J + np.arange(J)).reshape(-1)
            total = np.bincount(at, weights=g.reshape(-1), minlength=wt.size).reshape(wt.shape)
            wt += np.rint(total * self.rate * np.minimum(1, CAP / np.maximum(np.bincount(sel[j], minlength=len(wt)), 1))[:, None])
        g = dots * (target - p)[:, None]
        M = len(sel)
        at = (level[:, None] * M + np.arange(M)).reshape(-1)
        self.final += np.rint(np.bincount(at, weights=g.reshape(-1), minlength=self.final.size).reshape(self.final.shape) * self.final_rate / (len(bit) / (128 * self.levels)))
        # tables
        add = np.where(bit > 0, (UNIT << 16) + UNIT, UNIT).astype(np.uint32)
        slots = slot.reshape(-1)
        np.add.at(self.table, slots, np.repeat(add, K))
        word = self.table.take(slots)
        n = word & np.uint32(0xFFFF)
        over = np.flatnonzero(n > LIMIT * UNIT)
        if len(over):
            s = slots[over]
            word = word[over].astype(np.int64)
            n = word & 0xFFFF
            n1 = np.minimum(word >> 16, n) * (LIMIT * UNIT) // n
            self.table[s] = (n1 << 16 | LIMIT * UNIT).astype(np.uint32)

    def _learn(self, map_p, map_n, cell, bit):
        cells = cell.reshape(-1)
        add = np.repeat(np.where(bit > 0, (1 << 32) + 1, 1), cell.shape[1])
        np.add.at(self.acc, cells, add)
        a = self.acc.take(cells)
        self.acc[cells] = 0
        h, o = (a & 0xFFFFFFFF).astype(np.float64), (a >> 32).astype(np.float64)
        q, m = map_p.take(cells), map_n.take(cells)
        q += np.rint((o * 65536 - h * q) / (m + h + 1.5))
        map_p[cells] = np.clip(q, 16, 65520)
        map_n[cells] = np.minimum(m + h, MAP_LIMIT)

    def _recalls(self, extra):
        at = self.past.at
        z = np.zeros_like(at(1))
        pos = (z.reshape(-1, self.positions) + np.arange(self.positions, dtype=np.uint32)).reshape(-1)
        h1, h2, h3, h4 = at(1), at(2), at(3), at(4)
        n, s, w, e = at(1, -1, 0), at(1, 1, 0), at(1, 0, -1), at(1, 0, 1)
        return RECALLS(**locals())


def RECALLS(pos, h1, h2, h3, h4, n, s, w, e, **_):
    return [(pos,), (h1, pos), (h1, h2), (h1, h2, pos), (h1, h2, h3), (h1, h2, h3, pos), (h1,h2,h3,h4), (h1,w,e), (h1,n,s), (h1,w,e,n,s)]

def CONTEXTS(pos, h1, h2, h3, h4, n, s, w, e, **_):
    return [(pos,), (h1,), (h1, pos), (h1, h2), (h1, w), (h1, e), (h1, n), (h1, s), (w,), (e,), (n,), (s,), (h2,), (h3,)]
