"""Integer inference of a network of the GPT-2 family: ids in, integer logits of the next ids out.

`TokenGPT.forward` takes the next C ids of B segments at once and keeps keys and values in a `TokenState`. Encoding
calls it with many ids (prefill), decoding with one (step); the arithmetic is exact, so both give the same bits. What is
added up in an order that is not fixed are integers whose sums stay exact. All else are single IEEE operations on
float32 in a fixed order, and no product is added to anything before it is rounded, unless it is exact.

Numbers become integers at run time: each row of an activation is scaled by its own largest value, to codes of 8 bits,
or of 15 bits in two parts. Weights were quantised alike, once: see token_weights.py.

Letters in shapes: B segments, C ids of each, D width, N outputs, H heads, E width of a head, K keys, V vocabulary;
n = B * H, rows = B * C.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .exact import Array, NumpyOps, TorchOps
from .token_config import Precision, TokenConfig
from .token_ops import as_float32, as_int64, look_up, root, running_max
from .token_tables import GELU_STEP, POWER_STEP, gelu, powers
from .token_weights import PART, WEIGHT_TOP, quantise

RESIDUAL_BITS, RESIDUAL_MAX = 12, (1 << 24) - 1
"""The residual stream is in 2^-12, so up to 4096."""
VALUE_BITS, VALUE_MAX = 14, 1 << 23
"""Other activations are in 2^-14, so up to 512."""
LOGIT_UNIT = 64
"""Logits are in 1/64 bit."""
ACTIVATION_TOP = (0, 127, 127 * PART + 63)
"""Largest code of an activation of one and of two parts."""
COLUMNS = 2048
"""Inputs that one exact product may have: 2048 * 127 * 64 < 2^24."""
SHARE_BITS = 16
"""What attention shares out among the keys is 2^16."""
SCORES = 1 << 23
"""Scores that are in memory at a time."""
UNSEEN = -float(1 << 30)
LOG2_E = 1.4426950408889634
PRECISION = Precision()
"""As precise as it gets."""


@dataclass
class Matrix:
    """A linear layer: products of columns, what a code counts, the bias."""

    products: list[tuple[slice, Array]]
    scale: Array
    """(N,): times a row's largest value, it turns sums of codes into the unit of the outputs."""
    bias: Array | None


@dataclass
class TokenState:
    """Keys and values of the ids so far, for each layer, with room for `room` ids."""

    length: int
    room: int
    keys: list[tuple[Array, Array]]
    """Codes (n, room, E), and the largest value that they stand for (n, room)."""
    values: list[tuple[Array, Array]]
    """Codes (n, room, parts * E), and the same."""

    def keep(self, heads: int, segments: int) -> None:
        """Go on with the first `segments` only."""
        n = heads * segments
        self.keys = [(codes[:n], largest[:n]) for codes, largest in self.keys]
        self.values = [(codes[:n], largest[:n]) for codes, largest in self.values]


class TokenGPT:
    """The weights of a network of the GPT-2 family, ready to predict over one backend."""

    def __init__(
        self,
        config: TokenConfig,
        load: Callable[[str], np.ndarray],
        ops: NumpyOps | TorchOps,
        precision: Precision = PRECISION,
    ) -> None:
        """load: name of a tensor -> float32 array of the shape that `config.tensor_shapes` says."""
        config.check()
        self.config, self.ops, self.precision = config, ops, precision
        self.top = ACTIVATION_TOP[precision.activations]
        # Scores are exact while E * code^2 < 2^24: queries and keys may have more than 8 bits.
        self.score_top = math.isqrt(((1 << 24) - 1) // config.head_dim)
        self.tokens = self._vector(load("transformer.wte.weight"), RESIDUAL_BITS)
        self.places = self._vector(load("transformer.wpe.weight"), RESIDUAL_BITS)

        def norm(name: str) -> tuple[Array, Array]:
            return ops.load(load(f"{name}.weight")), self._vector(load(f"{name}.bias"), VALUE_BITS)

        def matrix(name: str, unit: float) -> Matrix:
            return self._matrix(load(f"{name}.weight").T, unit, load(f"{name}.bias"))

        self.layers = []
        for i in range(config.layers):
            at = f"transformer.h.{i}"
            self.layers.append(
                (
                    norm(f"{at}.ln_1"),
                    matrix(f"{at}.attn.c_attn", 1 << VALUE_BITS),
                    matrix(f"{at}.attn.c_proj", 1 << RESIDUAL_BITS),
                    norm(f"{at}.ln_2"),
                    matrix(f"{at}.mlp.c_fc", 1 << VALUE_BITS),
                    matrix(f"{at}.mlp.c_proj", 1 << RESIDUAL_BITS),
                )
            )
        self.last_norm = norm("transformer.ln_f")
        # The id that begins a frame is never predicted.
        self.head = self._matrix(load("lm_head.weight")[: config.bos], LOGIT_UNIT * LOG2_E, None)
        self.powers, self.gelu = ops.load(powers()), ops.load(gelu(VALUE_BITS))
        self.score_unit = np.float32(
            POWER_STEP * LOG2_E / (self.score_top**2 * math.sqrt(config.head_dim) * (1 << 2 * VALUE_BITS))
        ).item()

    def start(self, segments: int, room: int | None = None) -> TokenState:
        """The state before the first id of so many segments, which will have at most `room` ids."""
        c, ops, n = self.config, self.ops, segments * self.config.heads
        room, width = min(room or c.positions, c.positions), c.head_dim * self.precision.activations
        keys = [(ops.empty(n, room, c.head_dim), ops.empty(n, room)) for _ in range(c.layers)]
        values = [(ops.empty(n, room, width), ops.empty(n, room)) for _ in range(c.layers)]
        return TokenState(0, room, keys, values)

    def forward(self, state: TokenState, ids: np.ndarray) -> Array:
        """Take the next ids (B, C) in, and move `state` C ids on -> residuals (rows, D), for `logits`."""
        (batch, steps), ops = ids.shape, self.ops
        start = state.length
        if start + steps > state.room:
            raise ValueError(f"room for {state.room} ids, found {start + steps}")
        h = ops.take(self.tokens, ops.load(ids.reshape(-1).astype(np.int64)))
        h = h.reshape(batch, steps, -1)
        h += self.places[start : start + steps]
        h = h.reshape(batch * steps, -1)
        for i, (norm_1, qkv, proj, norm_2, up, down) in enumerate(self.layers):
            self._add(h, self._attend(self._linear(self._norm(h, norm_1), qkv), state, i, batch), proj)
            self._add(h, self._activate(self._linear(self._norm(h, norm_2), up)), down)
        state.length += steps
        return h

    def logits(self, h: Array) -> Array:
        """Residuals (rows, D) -> logits of the ids (rows, V) in 1/64 bit, integers in float32."""
        return self._linear(self._norm(h, self.last_norm), self.head)

    def _vector(self, x: np.ndarray, bits: int) -> Array:
        """In 2^-bits, rounded."""
        limit = RESIDUAL_MAX // 2 if bits == RESIDUAL_BITS else VALUE_MAX
        return self.ops.load(np.clip(np.rint(x * np.float32(1 << bits)), -limit, limit))

    def _matrix(self, weight: np.ndarray, unit: float, bias: np.ndarray | None) -> Matrix:
        """weight (N, K), for outputs in 1 / unit."""
        codes, largest = quantise(np.ascontiguousarray(weight), self.precision.weights)
        top = WEIGHT_TOP[self.precision.weights]
        assert top is not None
        products = []
        for k in range(0, codes.shape[1], COLUMNS):
            products.append((slice(k, k + COLUMNS), self.ops.weight(codes[:, k : k + COLUMNS])))
        scale = largest * np.float32(unit / (top * self.top * 2.0**VALUE_BITS))
        rounded = None
        if bias is not None:
            rounded = self.ops.load(np.clip(np.rint(bias * np.float32(unit)), -VALUE_MAX, VALUE_MAX))
        return Matrix(products, self.ops.load(scale), rounded)

    def _codes(self, x: Array, top: int) -> tuple[Array, Array]:
        """Integers (..., K) -> each row's codes, its largest value standing for `top`, and that value (..., 1)."""
        ops = self.ops
        largest = ops.at_least_(ops.row_max(abs(x)), 1)
        return ops.round_(x * ops.quotient(top, largest)), largest

    def _parts(self, codes: Array) -> list[Array]:
        """Codes of two parts -> the one that counts 128, within 127, and the rest, in -64..63."""
        if self.precision.activations == 1:
            return [codes]
        high = codes + PART // 2
        high *= 1 / PART
        high = self.ops.floor_(high)
        return [high, codes - high * PART]

    def _linear(self, x: Array, matrix: Matrix) -> Array:
        """Integers (rows, K) in 2^-14 -> integers (rows, N) in the matrix's unit."""
        ops = self.ops
        codes, largest = self._codes(x, self.top)
        parts = self._parts(codes)
        stacked = parts[0] if len(parts) == 1 else ops.concat(parts, 0)  # (parts * rows, K)
        total = None
        for columns, product in matrix.products:
            y = ops.linear(stacked[:, columns], product)  # (parts * rows, parts * N)
            total = y if total is None else total + y
        assert total is not None
        y = total.reshape(len(parts), len(x), self.precision.weights, -1)
        # Products with 128 are exact, so no fused multiply-add can change the sum.
        y = y[:, :, 0] * PART + y[:, :, 1] if self.precision.weights == 2 else y[:, :, 0]
        y = y[0] * PART + y[1] if len(parts) == 2 else y[0]
        y = y * matrix.scale
        y *= largest
        ops.clip_(ops.round_(y), -VALUE_MAX, VALUE_MAX)
        if matrix.bias is not None:
            y += matrix.bias
        return y

    def _add(self, h: Array, x: Array, matrix: Matrix) -> None:
        h += self._linear(x, matrix)
        self.ops.clip_(h, -RESIDUAL_MAX, RESIDUAL_MAX)

    def _norm(self, h: Array, norm: tuple[Array, Array]) -> Array:
        """LayerNorm: residuals (rows, D) -> integers in 2^-14."""
        ops, d = self.ops, self.config.dim
        gain, bias = norm
        x = as_int64(h)
        mean = (2 * ops.row_sum(x) + d) // (2 * d)
        x = x - mean  # below 2^25
        squares = ops.row_sum(x * x) + round(d * self.config.epsilon * 4.0**RESIDUAL_BITS)
        # The root of a small sum would have few digits; a sum of 2^42 has a root of 22 bits.
        small = squares < 1 << 42
        squares = ops.where(small, squares << 20, squares)
        length = as_float32(root(squares))
        length *= ops.where(small, 2.0**-10, 1.0)
        y = as_float32(x)
        y *= ops.quotient(math.isqrt(d << 2 * VALUE_BITS), ops.at_least_(length, 2.0**-10))
        ops.round_(y)
        y *= gain
        ops.clip_(ops.round_(y), -VALUE_MAX, VALUE_MAX)
        y += bias
        return y

    def _activate(self, x: Array) -> Array:
        """GELU."""
        ops = self.ops
        index = abs(x)
        index *= GELU_STEP / (1 << VALUE_BITS)
        correction = look_up(self.gelu, ops.clip_(ops.round_(index), 0, len(self.gelu) - 1))
        ops.at_least_(x, 0)
        x += correction
        return x

    def _attend(self, qkv: Array, state: TokenState, i: int, batch: int) -> Array:
        """Queries, keys and values (rows, 3 D) of the next ids -> what attention gives (rows, D), all in 2^-14."""
        c, ops = self.config, self.ops
        steps, heads, e = len(qkv) // batch, c.heads, c.head_dim
        x = ops.permute(qkv.reshape(batch, steps, 3, heads, e), 2, 0, 3, 1, 4).reshape(3, batch * heads, steps, e)
        q, q_largest = self._codes(x[0], self.score_top)
        k, k_largest = self._codes(x[1], self.score_top)
        v, v_largest = self._codes(x[2], self.top)
        parts = self._parts(v)
        here, end = state.length, state.length + steps
        for (codes, largest), new, of in (
            (state.keys[i], k, k_largest),
            (state.values[i], ops.concat(parts, -1), v_largest),
        ):
            codes[:, here:end] = new
            largest[:, here:end] = of[..., 0]
        q_largest = q_largest * self.score_unit
        out = ops.empty(batch * heads, steps, e)
        some = max(1, SCORES // (steps * end))
        for n in range(0, batch * heads, some):
            rows = slice(n, n + some)
            keys, values = ([x[rows, :end] for x in pair] for pair in (state.keys[i], state.values[i]))
            out[rows] = self._mix(q[rows], q_largest[rows], keys, values, here)
        out = ops.permute(out.reshape(batch, heads, steps, e), 0, 2, 1, 3)
        return out.reshape(batch * steps, heads * e)

    def _mix(self, q: Array, q_scale: Array, keys: list[Array], values: list[Array], here: int) -> Array:
        """Queries (n, C, E) at places `here`, ..., keys and values (n, K, ...) up to the last of them -> (n, C, E).

        A key's weight w is 2^(12 + its score less the best), from a table. Its value's codes count by the largest value
        that they stand for: u is w by that, next to the largest such one seen. Of 2^16, a key gets the share of its u.
        """
        ops, e = self.ops, self.config.head_dim
        k, k_largest = keys
        v, v_largest = values
        n, steps, count = len(q), q.shape[1], k.shape[1]
        z = ops.bmm(k, q.reshape(n, e, 1)).reshape(n, 1, count) if steps == 1 else ops.bmm(q, ops.transpose(k))
        z *= q_scale
        z *= k_largest[:, None]
        ops.round_(z)
        if steps > 1:
            z = ops.where(self._seen(here, steps), z, UNSEEN)
        z = ops.row_max(z) - z
        w = look_up(self.powers, ops.clip_(z, 0, len(self.powers) - 1))  # (n, C, K)
        total = ops.row_sum(w)  # at most 4095 * 2^12
        v_largest = v_largest[:, None]  # (n, 1, K)
        most = ops.row_max(v_largest) if steps == 1 else ops.transpose(running_max(v_largest)[:, :, here:])  # (n, C, 1)
        w *= v_largest
        w *= ops.quotient(1, most)
        shares = ops.at_least_(ops.row_sum(ops.round_(w)), 1)
        w *= ops.quotient(1 << SHARE_BITS, shares)
        ops.round_(w)  # adds up to less than 2^16 + K / 2: times 127, below 2^24
        one = steps == 1
        o = ops.bmm(ops.transpose(v), w.reshape(n, count, 1)).reshape(n, 1, -1) if one else ops.bmm(w, v)
        if self.precision.activations == 2:
            o = o[..., :e] * PART + o[..., e:]
        o *= shares / total
        o *= most
        o *= np.float32(1 / (self.top << SHARE_BITS)).item()
        return ops.clip_(ops.round_(o), -VALUE_MAX, VALUE_MAX)

    def _seen(self, here: int, steps: int) -> Array:
        """(C, K): whether the query at place here + i sees the key at place j."""
        places = np.arange(here + steps)
        return self.ops.load(places[None] <= places[here:, None])
