"""Integer inference of a FrameGPT: the past frames in, integer logits of the next frame out.

`Engine.forward` takes C consecutive steps of B segments at once and keeps what later steps need in a `State`. Encoding
calls it with many steps (prefill), decoding with one (step); the arithmetic is exact, so both give the same bits.

Letters in shapes: B segments, C steps, S positions, D width, A width of all heads, N window, V vocabulary, R rank;
rows are (b, c, s) flattened, B * C * S of them.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from .exact import Array, NumpyOps, TorchOps

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
    """Per block the keys and values of at most N - 1 steps: (steps kept, 2, B * S * temporal heads, head_dim)."""

    def keep(self, segments: int) -> None:
        """Go on with the first `segments` only."""
        rows = self.kv[0].shape[2] // len(self.frames) * segments
        self.frames, self.kv = self.frames[:segments], [x[:, :, :rows] for x in self.kv]


class Engine:
    """The weights of a FrameGPT, ready to predict over one backend."""

    def __init__(self, config: ModelConfig, tensors: Tensors, ops: NumpyOps | TorchOps) -> None:
        self.config, self.ops = config, ops
        c, factors = config, range(len(config.factors))
        _check_sums(config, tensors)

        def matrix(name: str) -> tuple[Array, Array]:
            codes, scales = tensors[name]
            if name.endswith("qkv"):
                rows = _heads_together(c)
                codes, scales = codes[rows], scales[rows]
            return ops.weight(codes), ops.load(multipliers(scales))

        self.position = ops.load(scaled(*tensors["position"], c.residual_max).T)  # (S, D)
        # A token's whole way into the residual stream is one row of a table: (V + 1, D), the last row for "no frame".
        self.tables = [[ops.load(_table(tensors, i, f, c.residual_max)) for f in factors] for i in range(c.inputs)]
        self.flags = matrix("flags") if c.flags else None
        self.blocks = [
            {name: matrix(f"blocks.{i}.{name}") for name in ("qkv", "proj", "up", "down")} for i in range(c.blocks)
        ]
        self.space, self.time = [], []
        for i in range(c.blocks):
            if c.spatial_heads:
                self.space.append(ops.load(_spatial_bias(c, *tensors[f"blocks.{i}.bias_s"])))
            if c.temporal_heads:
                table = scaled(*tensors[f"blocks.{i}.bias_t"], SCORE_BIAS_MAX)
                self.time.append(np.concatenate([table, np.full_like(table[:, :1], MASKED)], 1))  # (heads, N + 1)
        self.head = [matrix(f"head.{f}") for f in factors]
        embeds = [tensors[f"embed.{f}"] for f in factors]
        self.output = [(ops.weight(codes[:-1]), ops.load(multipliers(scales))) for codes, scales in embeds]
        self.bias = [ops.load(scaled(*tensors[f"bias.{f}"], OUTPUT_BIAS_MAX)[0]) for f in factors]

        wanted = {(i + 1, 0, 0) for i in range(c.stack)} | set(c.copies) | {o for pair in c.flags for o in pair}
        self.offsets: list[Offset] = sorted(wanted)
        self.margin = max(abs(dy) for _, dy, _ in wanted), max(abs(dx) for _, _, dx in wanted)
        at = self.offsets.index
        self.copies = ops.load(np.array([at(o) for o in c.copies], np.int64))
        self.pairs = [ops.load(np.array([at(pair[side]) for pair in c.flags], np.int64)) for side in (0, 1)]
        self.cached: dict[Any, Array] = {}

    def start(self, batch: int) -> State:
        """The state before the first frame of `batch` segments."""
        c, ops = self.config, self.ops
        shape = (batch, c.history - 1, c.height + 2 * self.margin[0], c.width + 2 * self.margin[1])
        none = ops.empty(0, 2, batch * c.positions * c.temporal_heads, c.head_dim)
        return State(ops.load(np.full(shape, -1, np.int64)), [none] * c.blocks)

    def forward(self, state: State, previous: np.ndarray, own: np.ndarray | None = None) -> list[Array]:
        """Predict C frames of each of B segments, and move `state` C steps on.

        previous: (B, C, S, F) integers, the frame before each predicted one; -1 everywhere where there is none.
        own: (B, C, S, F), the predicted frames' own tokens for a network `within_frame`, -1 for those not known; None
        for none known.
        Returns for each factor the logits in 1/64 bit: integers in float32, (B * C * S, V).
        """
        batch, steps = previous.shape[:2]
        past = self._past(state, previous)  # (rows, offsets)
        h = self._embed(past, own)  # (rows, D)
        for i, block in enumerate(self.blocks):
            self._attend(h, block, i, state, batch, steps)
            self._mlp(h, block)
        return self._logits(h, past)

    def _past(self, state: State, previous: np.ndarray) -> Array:
        """The ids at all offsets of all rows, (rows, offsets); -1 where there is no such token."""
        c, ops, (my, mx) = self.config, self.ops, self.margin
        batch, steps = previous.shape[:2]
        grid = self._ids(previous).reshape(batch, steps, c.height, c.width)
        grid = np.pad(grid, ((0, 0), (0, 0), (my, my), (mx, mx)), constant_values=-1)
        frames = ops.concat([state.frames, ops.load(grid)], 1)  # (B, history - 1 + C, padded grid)
        state.frames = frames[:, steps:]
        if ("past", steps) not in self.cached:
            self.cached["past", steps] = ops.load(self._past_index(steps))
        flat = frames.reshape(batch, -1)
        return ops.take(flat, self.cached["past", steps], 1).reshape(-1, len(self.offsets))

    def _ids(self, tokens: np.ndarray) -> np.ndarray:
        """Ids of factors (B, C, S, F), -1 for no token: (B, C, S)."""
        return np.where(tokens[..., 0] < 0, -1, self.config.spec.join(tokens))

    def _past_index(self, steps: int) -> np.ndarray:
        """Where in a segment's padded frames each (step, position, offset) lies, flattened."""
        c, (my, mx) = self.config, self.margin
        dt, dy, dx = np.array(self.offsets).T
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
        parts = []
        for i, tables in enumerate(self.tables):
            ids = past[:, self.offsets.index((min(i + 1, c.stack), 0, 0))]
            if i == c.stack:  # those of the predicted frame itself
                ids = ids * 0 - 1 if own is None else ops.load(self._ids(own).reshape(-1))
            for f, table in enumerate(tables):
                rows = self._factor(ids, f)
                rows = ops.where(rows < 0, c.factors[f], rows)
                parts.append(ops.take(table, rows))
        h = parts[0]
        for part in parts[1:]:
            h += part
        if self.flags is not None:
            a, b = (ops.take(past, side, 1) for side in self.pairs)  # (rows, flags)
            h += self._scaled_linear(ops.as_float((a == b) & (a >= 0)), self.flags)
        h = h.reshape(-1, c.positions, c.dim)
        h += self.position
        return ops.clip_(h, -c.residual_max, c.residual_max).reshape(-1, c.dim)

    def _scaled_linear(self, x: Array, matrix: tuple[Array, Array]) -> Array:
        """Linear, times the row multipliers, rounded."""
        weight, scale = matrix
        y = self.ops.linear(x, weight)
        y *= scale
        return self.ops.round_(y)

    def _codes(self, x: Array, matrix: tuple[Array, Array]) -> Array:
        return self.ops.clip_(self._scaled_linear(x, matrix), -ACTIVATION_MAX, ACTIVATION_MAX)

    def _add(self, h: Array, x: Array, matrix: tuple[Array, Array]) -> None:
        h += self._scaled_linear(x, matrix)
        self.ops.clip_(h, -self.config.residual_max, self.config.residual_max)

    def _norm(self, h: Array) -> Array:
        """Rows scaled to a mean absolute value of NORM_TARGET, as int8-range codes."""
        ops = self.ops
        total = ops.at_least_(ops.abs_sum(h), 1)
        a = h * ops.quotient(NORM_TARGET * self.config.dim, total)
        return ops.clip_(ops.round_(a), -ACTIVATION_MAX, ACTIVATION_MAX)

    def _attend(self, h: Array, block: dict[str, tuple[Array, Array]], i: int, state: State, b: int, c: int) -> None:
        """Spatial heads look at the positions of their own step, temporal heads at the window of their position."""
        cfg, ops = self.config, self.ops
        s, hs, ht, e = cfg.positions, cfg.spatial_heads, cfg.temporal_heads, cfg.head_dim
        qkv = self._codes(self._norm(h), block["qkv"])  # (rows, 3 A), spatial heads first: see _heads_together
        out = ops.empty(b, c, s, hs + ht, e)
        if hs:
            x = ops.permute(qkv[:, : 3 * hs * e].reshape(b * c, s, 3, hs, e), 2, 0, 3, 1, 4)
            q, k, v = x.reshape(3, b * c * hs, s, e)
            o = self._mix(q, k, v, self.space[i]).reshape(b, c, hs, s, e)
            out[:, :, :, :hs] = ops.permute(o, 0, 1, 3, 2, 4)
        if ht:
            x = ops.permute(qkv[:, 3 * hs * e :].reshape(b, c, s, 3, ht, e), 1, 3, 0, 2, 4, 5)
            x = x.reshape(c, 3, b * s * ht, e)
            kv = ops.concat([state.kv[i], x[:, 1:]], 0)  # (kept + C, 2, B * S * heads, e)
            state.kv[i] = kv[max(0, len(kv) - (cfg.window - 1)) :]
            q, k, v = (ops.permute(y, 1, 0, 2) for y in (x[:, 0], kv[:, 0], kv[:, 1]))
            o = self._mix(q, k, v, self._temporal_bias(i, c, len(kv))).reshape(b, s, ht, c, e)
            out[:, :, :, hs:] = ops.permute(o, 0, 3, 1, 2, 4)
        self._add(h, out.reshape(-1, cfg.attention_dim), block["proj"])

    def _temporal_bias(self, i: int, steps: int, keys: int) -> Array:
        """(heads, C queries, keys), for queries that are the last `steps` of `keys` consecutive steps."""
        if ("time", i, steps, keys) not in self.cached:
            age = np.arange(keys - steps, keys)[:, None] - np.arange(keys)[None]
            age = np.where((age >= 0) & (age < self.config.window), age, self.config.window)
            self.cached["time", i, steps, keys] = self.ops.load(self.time[i][:, age])
        return self.cached["time", i, steps, keys]

    def _mix(self, q: Array, k: Array, v: Array, bias: Array) -> Array:
        """Attention: (n * heads, Q, e), (n * heads, K, e) twice, bias (heads, Q, K) -> (n * heads, Q, e).

        The weight of a key is (1 + x / 2^15)^8, near exp(x / 2^12), for x = score - best > -2^15, else 0; in 1/127.
        """
        ops = self.ops
        p = ops.bmm(q, ops.transpose(k)).reshape(-1, *bias.shape)
        p += bias
        p -= ops.row_max(p) - SCORE_RANGE
        ops.at_least_(p, 0)
        for _ in range(3):
            p *= p
        p *= ACTIVATION_MAX * 2.0**-120  # 127 / SCORE_RANGE^8
        p = ops.round_(p).reshape(len(q), *bias.shape[1:])
        o = ops.bmm(p, v)
        o *= ops.quotient(1, ops.row_sum(p))
        return ops.round_(o)

    def _mlp(self, h: Array, block: dict[str, tuple[Array, Array]]) -> None:
        """Squared ReLU."""
        weight, scale = block["up"]
        u = self.ops.linear(self._norm(h), weight)
        u *= scale
        self.ops.clip_(u, 0, HIDDEN_MAX)
        u *= u
        self._add(h, self.ops.round_(u), block["down"])

    def _logits(self, h: Array, past: Array) -> list[Array]:
        c, ops = self.config, self.ops
        a = self._norm(h)
        candidates = ops.take(past, self.copies, 1)  # (rows, copies)
        logits = []
        for f in range(len(c.factors)):
            y = self._scaled_linear(a, self.head[f])  # (rows, R + copies)
            z = ops.clip_(y[:, : c.rank], -ACTIVATION_MAX, ACTIVATION_MAX)
            x = self._scaled_linear(z, self.output[f])  # (rows, V)
            x += self.bias[f]
            if c.copies:
                ids = self._factor(candidates, f)
                known = ids >= 0
                gates = ops.clip_(y[:, c.rank :], -GATE_MAX, GATE_MAX) * known
                ops.add_at_(x, ids * known, gates)
            logits.append(x)
        return logits


def _table(tensors: Tensors, stack: int, factor: int, bound: int) -> np.ndarray:
    embed, (up, scales) = tensors[f"embed.{factor}"][0], tensors[f"stack.{stack}.{factor}"]
    exact = embed.astype(np.int64) @ up.T.astype(np.int64)  # (V + 1, D)
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
