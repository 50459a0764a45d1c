"""Integer inference of a FrameGPT: the past frames in, integer logits of the next frame out.

`Engine.forward` takes C consecutive steps of B segments at once and keeps what later steps need in a `State`. Encoding
calls it with many steps (prefill), decoding with one (step); the arithmetic is exact, so both give the same bits.

Letters in shapes: B segments, C steps, S positions, D width, A width of all heads, N window, V vocabulary, R rank;
rows are (b, c, s) flattened, B * C * S of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arithmetic import (
    ACTIVATION_MAX,
    GATE_MAX,
    HIDDEN_MAX,
    NORM_TARGET,
    OUTPUT_BIAS_MAX,
    SCORE_BIAS_MAX,
    SCORE_RANGE,
    WEIGHT_MAX,
)
from .config import ModelConfig, Offset
from .errors import ModelError
from .exact import Array, NumpyOps, TorchOps, Weight

Tensors = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""name -> (codes int8 (rows, columns), scale codes int8 (rows,) or (1,)); see `ModelConfig.tensor_shapes`."""

# 2^0, 2^(1/4), 2^(1/2) and 2^(3/4), each the nearest float32, as bit patterns.
QUARTERS = np.array([0x3F800000, 0x3F9837F0, 0x3FB504F3, 0x3FD744FD], np.uint32).view(np.float32)
MASKED = -(1 << 23)
"""Bias of a key that is not seen."""


def multipliers(scales: np.ndarray) -> np.ndarray:
    """Scale codes -> float32 2^(code / 4)."""
    codes = scales.astype(np.int32)
    return np.ldexp(QUARTERS[codes & 3], codes >> 2).astype(np.float32)


def scaled(codes: np.ndarray, scales: np.ndarray, bound: float) -> np.ndarray:
    """Codes (rows, columns) times their row's multiplier, rounded and clipped: integers in float32."""
    return np.clip(np.rint(codes.astype(np.float32) * multipliers(scales)[:, None]), -bound, bound)


@dataclass
class State:
    """What the next step needs of the past."""

    frames: Array
    """(B, history - 1, padded grid) ids of the latest frames, -1 outside the grid and before the first frame."""
    kv: list[Array]
    """Per block the latest steps' keys and values, with room for more: (room, 2, B, S, temporal heads, head_dim)."""
    end: int = 0
    """How much of the room is taken."""

    def keep(self, segments: int) -> None:
        """Go on with the first `segments` only."""
        self.frames, self.kv = self.frames[:segments], [x[:, :, :segments] for x in self.kv]


class Engine:
    """The weights of a FrameGPT, ready to predict over one backend."""

    def __init__(self, config: ModelConfig, tensors: Tensors, ops: NumpyOps | TorchOps) -> None:
        self.config, self.ops = config, ops
        c, factors = config, range(len(config.factors))
        _check_sums(config, tensors)

        def matrix(name: str) -> Weight:
            codes, scales = tensors[name]
            if name.endswith("qkv"):
                rows = _heads_together(c)
                codes, scales = codes[rows], scales[rows]
            return ops.weight(codes, multipliers(scales))

        self._position = ops.load(scaled(*tensors["position"], c.residual_max).T)  # (S, D)
        # A token's whole way into the residual stream is one row of a table: (V + 1, D), the first row for "no frame".
        # All tables are one; `first` tells where in it, less the number of the first token, each begins.
        tables = [_table(tensors, i, f, c.residual_max) for i in range(c.inputs) for f in factors]
        self._table = ops.load(np.concatenate(tables))
        sizes = np.array([len(table) for table in tables])
        self._first = ops.load((np.cumsum(sizes) - sizes + 1).reshape(c.inputs, -1).T[:, None])  # (F, 1, inputs)
        self._flags = matrix("flags") if c.flags else None
        self._blocks = [
            {name: matrix(f"blocks.{i}.{name}") for name in ("qkv", "proj", "up", "down")} for i in range(c.blocks)
        ]
        self._space, self._time = [], []
        for i in range(c.blocks):
            if c.spatial_heads:
                self._space.append(ops.load(_spatial_bias(c, *tensors[f"blocks.{i}.bias_s"])))
            if c.temporal_heads:
                table = scaled(*tensors[f"blocks.{i}.bias_t"], SCORE_BIAS_MAX)
                self._time.append(np.concatenate([table, np.full_like(table[:, :1], MASKED)], 1))  # (heads, N + 1)
        self._head = [matrix(f"head.{f}") for f in factors]
        embeds = [tensors[f"embed.{f}"] for f in factors]
        self.embeddings = [codes[:-1].astype(np.float32) for codes, _ in embeds]
        """For each factor the codes of its tokens, (V, R)."""
        self.output = [ops.weight(codes[:-1], multipliers(scales).repeat(len(codes) - 1)) for codes, scales in embeds]
        self._bias = [ops.load(scaled(*tensors[f"bias.{f}"], OUTPUT_BIAS_MAX)[0]) for f in factors]

        wanted = {(i + 1, 0, 0) for i in range(c.stack)} | set(c.copies) | {o for pair in c.flags for o in pair}
        self._offsets: list[Offset] = sorted(wanted)
        self._margin = max(abs(dy) for _, dy, _ in wanted), max(abs(dx) for _, _, dx in wanted)
        at = self._offsets.index
        self._stack = ops.load(np.array([at((min(i + 1, c.stack), 0, 0)) for i in range(c.inputs)], np.int64))
        self._copies = ops.load(np.array([at(o) for o in c.copies], np.int64))
        self._pairs = [ops.load(np.array([at(pair[side]) for pair in c.flags], np.int64)) for side in (0, 1)]
        self._cached: dict[Any, Array] = {}

    def start(self, batch: int) -> State:
        """The state before the first frame of `batch` segments."""
        c, ops = self.config, self.ops
        shape = (batch, c.history - 1, c.height + 2 * self._margin[0], c.width + 2 * self._margin[1])
        none = ops.empty(0, 2, batch, c.positions, c.temporal_heads, c.head_dim)
        return State(ops.load(np.full(shape, -1, np.int64)), [none] * c.blocks)

    def fork(self, state: State, copies: int = 1) -> State:
        """As many copies of the state of each segment, which go on by themselves."""
        concat, kept = self.ops.concat, slice(max(0, state.end - self.config.window + 1), state.end)
        kv = [concat([x[kept]] * copies, 2) for x in state.kv]
        return State(concat([state.frames] * copies, 0), kv, len(kv[0]))

    def forward(self, state: State, previous: np.ndarray, own: np.ndarray | None = None) -> list[Array]:
        """Predict C frames of each of B segments, and move `state` C steps on.

        previous: (B, C, S, F) integers, the frame before each predicted one; -1 everywhere where there is none.
        own: (B, C, S, F), the predicted frames' own tokens for a network `within_frame`, -1 for those not known; None
        for none known.
        Returns for each factor the logits in 1/64 bit: integers in float32, (B * C * S, V).
        """
        batch, steps = previous.shape[:2]
        if state.end + steps > len(state.kv[0]):
            room = max(steps, self.config.window // 2)  # then what is kept is moved every so many steps
            state.kv = [self._moved(x, state.end, room) for x in state.kv]
            state.end = len(state.kv[0]) - room
        past = self._past(state, previous)  # (rows, offsets)
        h = self._embed(past, own)  # (rows, D)
        for i, block in enumerate(self._blocks):
            self._attend(h, block, i, state, batch, steps)
            self._mlp(h, block)
        state.end += steps
        return self._logits(h, past)

    def _moved(self, kv: Array, end: int, room: int) -> Array:
        """A new array of those of the keys and values that the next step sees, with room for more."""
        kept = min(end, self.config.window - 1)
        new = self.ops.empty(kept + room, *kv.shape[1:])
        new[:kept] = kv[end - kept : end]
        return new

    def _past(self, state: State, previous: np.ndarray) -> Array:
        """The ids at all offsets of all rows, (rows, offsets); -1 where there is no such token."""
        c, ops, (my, mx) = self.config, self.ops, self._margin
        batch, steps = previous.shape[:2]
        grid = np.full((batch, steps, c.height + 2 * my, c.width + 2 * mx), -1, np.int64)
        inside = grid[:, :, my : my + c.height, mx : mx + c.width]
        inside[:] = self._ids(previous).reshape(inside.shape)
        frames = ops.concat([state.frames, ops.load(grid)], 1)  # (B, history - 1 + C, padded grid)
        state.frames = frames[:, steps:]
        if ("past", steps) not in self._cached:
            self._cached["past", steps] = ops.load(self._past_index(steps))
        flat = frames.reshape(batch, -1)
        return ops.take(flat, self._cached["past", steps], 1).reshape(-1, len(self._offsets))

    def _ids(self, tokens: np.ndarray) -> np.ndarray:
        """Ids of factors (B, C, S, F), -1 for no token: (B, C, S)."""
        return np.where(tokens[..., 0] < 0, -1, self.config.spec.join(tokens))

    def _past_index(self, steps: int) -> np.ndarray:
        """Where in a segment's padded frames each (step, position, offset) lies, flattened."""
        c, (my, mx) = self.config, self._margin
        dt, dy, dx = np.array(self._offsets).T
        t, y, x = (a[..., None] for a in np.mgrid[:steps, : c.height, : c.width])
        frame, row, column = c.history - dt + t, y + my + dy, x + mx + dx
        return ((frame * (c.height + 2 * my) + row) * (c.width + 2 * mx) + column).reshape(-1)

    def _factor(self, ids: Array, f: int) -> Array:
        """Factor f of ids; negative ids stay negative."""
        stride = 1
        for size in self.config.factors[:f]:
            stride *= size
        return ids if len(self.config.factors) == 1 else ids // stride % self.config.factors[f] - (ids < 0) * (1 << 20)

    def _embed(self, past: Array, own: np.ndarray | None) -> Array:
        c, ops = self.config, self.ops
        ids = ops.take(past, self._stack, 1)  # (rows, inputs)
        if c.within_frame:  # the last ones are those of the predicted frame itself
            ids[:, c.stack] = -1 if own is None else ops.load(self._ids(own).reshape(-1))
        rows = [ops.at_least_(self._factor(ids, f), -1) + first for f, first in enumerate(self._first)]
        h = ops.take_sum(self._table, rows[0] if len(rows) == 1 else ops.concat(rows, 1))
        if self._flags is not None:
            a, b = (ops.take(past, side, 1) for side in self._pairs)  # (rows, flags)
            h += ops.round_(ops.linear((a == b) & (a >= 0), self._flags))
        h = h.reshape(-1, c.positions, c.dim)
        h += self._position
        return ops.clip_(h, -c.residual_max, c.residual_max).reshape(-1, c.dim)

    def _add(self, h: Array, x: Array, weight: Weight) -> None:
        h += self.ops.round_(self.ops.linear(x, weight))
        self.ops.clip_(h, -self.config.residual_max, self.config.residual_max)

    def _norm(self, h: Array) -> Array:
        """Rows scaled to a mean absolute value of NORM_TARGET, as int8-range codes."""
        ops = self.ops
        total = ops.at_least_(ops.abs_sum(h), 1)
        a = h * ops.quotient(NORM_TARGET * self.config.dim, total)
        return ops.clip_(ops.round_(a), -ACTIVATION_MAX, ACTIVATION_MAX)

    def _attend(self, h: Array, block: dict[str, Weight], i: int, state: State, b: int, c: int) -> None:
        """Spatial heads look at the positions of their own step, temporal heads at the window of their position.

        n = b * c * hs of the spatial heads, b * s * ht of the temporal ones; K keys.
        """
        cfg, ops = self.config, self.ops
        s, hs, ht, e = cfg.positions, cfg.spatial_heads, cfg.temporal_heads, cfg.head_dim
        qkv = ops.codes(self._norm(h), block["qkv"])  # (rows, 3 A), spatial heads first: see _heads_together
        out = ops.empty_codes(b, c, s, hs + ht, e)
        heads = []  # queries (n, Q, e), keys (n, e, K), values (n, K, e), bias (heads, Q, K)
        into = []  # where it goes: a view of `out`
        if hs:
            x = ops.arrange(qkv[:, : 3 * hs * e].reshape(b * c, s, 3, hs, e), 2, 0, 3, 1, 4)
            q, k, v = x.reshape(3, b * c * hs, s, e)
            heads.append((q, ops.transpose(k), v, self._space[i]))
            into.append(ops.permute(out[:, :, :, :hs], 0, 1, 3, 2, 4))
        if ht:
            x = qkv[:, 3 * hs * e :].reshape(b, c, s, 3, ht, e)
            end = state.end + c
            state.kv[i][state.end : end] = ops.permute(x[:, :, :, 1:], 1, 3, 0, 2, 4, 5)
            kv = state.kv[i][max(0, end - c - cfg.window + 1) : end]
            k, v = (kv[:, j].reshape(len(kv), -1, e) for j in (0, 1))
            q = ops.arrange(x[:, :, :, 0], 0, 2, 3, 1, 4).reshape(-1, c, e)
            heads.append((q, ops.permute(k, 1, 2, 0), ops.permute(v, 1, 0, 2), self._temporal_bias(i, c, len(kv))))
            into.append(ops.permute(out[:, :, :, hs:], 0, 2, 3, 1, 4))
        for o, view in zip(self._mix(heads), into):
            view[:] = o.reshape(view.shape)
        self._add(h, out.reshape(-1, cfg.attention_dim), block["proj"])

    def _temporal_bias(self, i: int, steps: int, keys: int) -> Array:
        """(heads, C queries, keys), for queries that are the last `steps` of `keys` consecutive steps."""
        if ("time", i, steps, keys) not in self._cached:
            age = np.arange(keys - steps, keys)[:, None] - np.arange(keys)[None]
            age = np.where((age >= 0) & (age < self.config.window), age, self.config.window)
            self._cached["time", i, steps, keys] = self.ops.load(self._time[i][:, age])
        return self._cached["time", i, steps, keys]

    def _mix(self, heads: list[tuple[Array, Array, Array, Array]]) -> Iterator[Array]:
        """Attention: queries (n, Q, e), keys (n, e, K), values (n, K, e), bias (heads, Q, K) -> (n, Q, e), of each.

        The weight of a key is (1 + x / 2^15)^8, near exp(x / 2^12), for x = score - best > -2^15, else 0; in 1/127.
        """
        ops, parts, start = self.ops, [], 0
        # The weights of all lie in one array, so that what is done to each number is done once.
        p = ops.empty(sum(len(q) * q.shape[1] * k.shape[2] for q, k, _, _ in heads))
        for q, k, v, bias in heads:
            end = start + len(q) * q.shape[1] * k.shape[2]
            part = ops.bmm(q, k, p[start:end].reshape(len(q), q.shape[1], -1))
            start = end
            scores = part.reshape(-1, *bias.shape)
            scores += bias
            part -= ops.row_max(part) - SCORE_RANGE
            parts.append((part, v))
        ops.at_least_(p, 0)
        for _ in range(3):
            p *= p
        p *= ACTIVATION_MAX * 2.0**-120  # 127 / SCORE_RANGE^8
        ops.round_(p)
        for part, v in parts:
            o = ops.bmm(part, v)
            o *= ops.quotient(1, ops.row_sum(part))
            yield ops.round_(o)

    def _mlp(self, h: Array, block: dict[str, Weight]) -> None:
        """Squared ReLU."""
        u = self.ops.linear(self._norm(h), block["up"])
        self.ops.clip_(u, 0, HIDDEN_MAX)
        u *= u
        self._add(h, self.ops.round_(u), block["down"])

    def _logits(self, h: Array, past: Array) -> list[Array]:
        c, ops = self.config, self.ops
        a = self._norm(h)
        candidates = ops.take(past, self._copies, 1)  # (rows, copies)
        logits = []
        for f in range(len(c.factors)):
            y = ops.round_(ops.linear(a, self._head[f]))  # (rows, R + copies)
            z = ops.clip_(y[:, : c.rank], -ACTIVATION_MAX, ACTIVATION_MAX)
            x = ops.round_(ops.linear(z, self.output[f]))  # (rows, V)
            x += self._bias[f]
            if c.copies:
                ids = self._factor(candidates, f)
                known = ids >= 0
                gates = ops.clip_(y[:, c.rank :], -GATE_MAX, GATE_MAX) * known
                ops.add_at_(x, ids * known, gates)
            logits.append(x)
        return logits


def _table(tensors: Tensors, stack: int, factor: int, bound: int) -> np.ndarray:
    embed, (up, scales) = tensors[f"embed.{factor}"][0], tensors[f"stack.{stack}.{factor}"]
    exact = np.roll(embed, 1, 0).astype(np.int64) @ up.T.astype(np.int64)  # (1 + V, D)
    table = np.rint(exact.astype(np.float32) * multipliers(scales))
    return np.clip(table, -bound, bound, out=table)


def _check_sums(config: ModelConfig, tensors: Tensors) -> None:
    """Raise ModelError if a scale is so large that what is added to the residual or the logits could pass 2^23."""
    for name, (codes, scales) in tensors.items():
        kind = name.split(".")[-1] if name.startswith("blocks") else name.split(".")[0]
        if kind in ("proj", "down", "embed", "flags"):
            largest = codes.shape[1] * WEIGHT_MAX * (1 if kind == "flags" else ACTIVATION_MAX)
            if largest * float(multipliers(scales).max()) > 1 << 23:
                raise ModelError(f"tensor {name}: scale code {scales.max()} is too large for exact sums")


def _heads_together(config: ModelConfig) -> np.ndarray:
    """Rows of qkv in the order that attention reads: q, k, v of the spatial heads, then those of the temporal heads."""
    rows = np.arange(3 * config.attention_dim).reshape(3, config.heads, config.head_dim)
    space, time = rows[:, : config.spatial_heads], rows[:, config.spatial_heads :]
    return np.concatenate([space.reshape(-1), time.reshape(-1)])


def _spatial_bias(config: ModelConfig, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Relative position bias -> (heads, S queries, S keys)."""
    h, w = config.height, config.width
    y, x = (a.reshape(-1) for a in np.mgrid[:h, :w])
    index = (y[None] - y[:, None] + h - 1) * (2 * w - 1) + x[None] - x[:, None] + w - 1
    return scaled(codes, scales, SCORE_BIAS_MAX)[:, index]
