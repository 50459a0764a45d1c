"""A small network that is trained while it predicts, in exact arithmetic.

A log-bilinear language model (Mnih and Hinton 2007) with a copy head: the embeddings of past tokens, each through the
matrix of its offset, are summed and compared with the embeddings of all tokens; gates point at past tokens. One table
embeds tokens on both sides (Press and Wolf 2017), which is worth most here, where there is little to learn from. After
each frame it takes one step of gradient ascent on that frame, with a step size of its own for each row of a matrix
(Adagrad, Duchi et al. 2011). It starts from pseudo-random embeddings, so nothing is shipped.

Arrays are float32. A product of matrices is of codes: integers so small that its sums stay below 2^24, so it is exact
in any order, on any BLAS. All else is single IEEE operations on elements, in the order written here.

A frame's positions are taken in blocks of 64. What concerns tokens stands in arrays (b, V, B), so that operations run
along whole arrays, and a few blocks at a time stay in a cache. BLAS takes products of 64 x 64 in one go, and starts no
threads for them. Tokens have the order of the tree of masses, see `Masses`.

Shapes: P positions of a frame in all active segments, padded to b blocks of B; V vocabulary, filled up to a power of
two; D width, J past tokens, N gates.
"""

from __future__ import annotations

import numpy as np

from .contexts import HISTORY, Past
from .opinions import BLOCK, Masses
from .spec import TokenSpec

VOCABULARY_MAX = 4096
"""Largest vocabulary for which the network is worth its time."""
OFFSETS = ((1, 0, 0), (2, 0, 0), (3, 0, 0), (1, 0, 1), (1, 0, -1), (1, 1, 0), (1, -1, 0))
"""(dt, dy, dx) of the past tokens that it reads."""
GATES = 3
"""It can point at so many of them, from the first on."""
WIDTH = 64
"""Of an embedding."""
RATE = 0.12
RATE_MATRIX = 0.007
RATE_CONTEXT = 0.02
UNIT = 65536.0
"""Steps of a weight: 2^-16."""
BOUND = float((1 << 20) - 1)
"""Weights stay within 16."""
CODE = 256.0
"""Steps of an embedding as products take it: 2^-8."""
CODE_MAX = 480.0
MATRIX_MAX = 511.0
"""Of a matrix's weight, in the same steps."""
HIDDEN = 128.0
"""Steps of an activation, and of what flows back to it: 2^-7."""
HIDDEN_MAX = 511.0
COARSE = 8.0
"""Steps of an activation in the gradient of the embeddings: 2^-3."""
COARSE_MAX = 15.0
ERROR = 16384.0
"""Steps of a probability's error, and of a gradient: 2^-14."""
GRADIENT_MAX = float((1 << 18) - 1)
OCTAVE = 8388608.0
"""Steps of a logit per bit: 2^-23, the place of a float32's exponent."""
NATS = OCTAVE * 1.4426950408889634
RANGE = 22 * OCTAVE
"""The least likely token has 2^-22 of the likeliest one's weight."""
DECAY = 512.0
"""Updates after which a squared gradient has faded."""
FLOOR = 256.0
"""Keeps the first steps finite, in steps of a gradient."""
NOISE = 4500
RUNS = 16
FEW = 2
"""Blocks that are computed together: few enough for a cache."""
FOLD = 16
"""Rows of lanes that are compared as one: long rows are faster."""


def _noise(rows: int, columns: int) -> np.ndarray:
    """Pseudo-random integers within NOISE of 0, float32 (rows, columns)."""
    x = np.arange(rows * columns, dtype=np.uint32).reshape(rows, columns)
    for multiplier in (0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F):
        x ^= x >> np.uint32(16)
        x = x * np.uint32(multiplier) + np.uint32(0x9E3779B9)
    x ^= x >> np.uint32(15)
    return (x % np.uint32(2 * NOISE + 1)).astype(np.float32) - NOISE


def _root(x: np.ndarray) -> np.ndarray:
    """Integer square root of integers below 2^52, however the machine rounds its own."""
    r = np.floor(np.sqrt(x))
    r -= r * r > x
    r += (r + 1) * (r + 1) <= x
    return r


def _codes(x: np.ndarray, scale: float, bound: float) -> np.ndarray:
    """x in steps of another size: integers within the bound. In place."""
    x *= scale
    np.rint(x, out=x)
    return x.clip(-bound, bound, out=x)


class OnlineNetwork:
    """Probabilities of the tokens of a frame: `begin` it, look at `masses`, `update`."""

    def __init__(self, spec: TokenSpec, factor: int):
        """For a factor of at most VOCABULARY_MAX tokens."""
        self._spec, vocabulary, self.masses = spec, spec.factors[factor], Masses(spec.factors[factor])
        self._size = size = self.masses.size
        # The rows of tokens and of "no token": in the order of the tree, which has some places more.
        order = self.masses.place[size:] // BLOCK - size
        self._unused, self.order = order[vocabulary:], np.append(order[:vocabulary], size)
        # Rows of weights: embeddings, of which the last is "no token" and stays 0; matrices; contexts. Then single
        # weights: biases of the tokens, gates of positions and of runs. All are views of one array.
        further = [min(size, VOCABULARY_MAX) for size in spec.factors[:factor]]
        sizes = [size + 1, len(OFFSETS) * WIDTH, spec.positions, RUNS, *further]
        singles = [size, spec.positions * GATES, RUNS * GATES]
        self._first, self._first_single = np.cumsum([0, *sizes]), np.cumsum([0, *singles])
        rates = [RATE, RATE_MATRIX] + [RATE_CONTEXT] * (len(sizes) - 2) + [RATE, RATE, RATE_MATRIX]
        self._rates = UNIT * np.repeat(rates, sizes + singles)
        self.squares = np.zeros(len(self._rates))
        end = self._first[-1] * WIDTH
        self.value, self._gradient = np.zeros((2, end + self._first_single[-1]), np.float32)
        self.rows, self._slopes = (array[:end].reshape(-1, WIDTH) for array in (self.value, self._gradient))
        self._singles, self._single_slopes = self.value[end:], self._gradient[end:]
        self.rows[self.order[:-1]] = _noise(vocabulary, WIDTH)
        for j in range(GATES):
            np.fill_diagonal(self.rows[size + 1 + j * WIDTH :][:WIDTH], UNIT if j == 0 else UNIT / 2)
        self._singles[size : self._first_single[2] : GATES] = UNIT

    def begin(self, past: Past, coded: np.ndarray) -> None:
        """Predict a frame, whose factors before this one are coded (G, S, f)."""
        size, first, count = self._size, self._first, len(past.run)
        self.masses.fit(count)
        tree = self.masses.tree
        row = np.arange(len(self.masses.first))
        inside = np.minimum(row, count - 1)  # what is beyond the last position repeats it, for nothing
        place, run = past.place.take(inside), np.minimum(past.run, RUNS - 1).take(inside)
        read = np.stack([past.at(*offset).take(inside) for offset in OFFSETS])  # (J, P)
        self._past = self.order.take(read)
        factors = coded.reshape(count, -1).T % VOCABULARY_MAX
        self._context = np.stack([place, run, *factors.take(inside, 1)]) + first[2:-1, None]  # (n, P)
        gates = np.stack([place, run]) * GATES + self._first_single[1:3, None]
        self._gates = gates[:, None] + np.arange(GATES)[:, None]  # (2, N, P)
        self._known = read[:GATES] < past.size
        self._copies = self.masses.first + self.masses.place.take(size + read[:GATES] * self._known)  # (N, P)
        gate = self._singles.take(self._gates).sum(0) * (NATS / UNIT) * self._known
        bias = self._singles[:size] * (NATS / UNIT)
        bias[self._unused] = -np.inf
        bias = bias.repeat(BLOCK).reshape(-1, BLOCK)
        codes = _codes(self.rows[: size + 1].copy(), CODE / UNIT, CODE_MAX)
        self._table = codes[:-1].reshape(-1, min(BLOCK, size), WIDTH)
        self._matrix = _codes(self.rows[first[1] : first[2]].copy(), CODE / UNIT, MATRIX_MAX).reshape(-1, WIDTH, WIDTH)
        self._input = codes.take(self._past.reshape(len(read), -1, BLOCK).swapaxes(0, 1), 0)  # (b, J, B, D)
        sums, *products = np.matmul(self._input, self._matrix).swapaxes(0, 1)  # (b, B, D) each
        for product in products:
            sums += product
        sums += self.rows.take(self._context, 0).sum(0).reshape(sums.shape)
        self._hidden = _codes(sums, HIDDEN / UNIT, HIDDEN_MAX)
        lanes = self._hidden.swapaxes(1, 2).copy()
        for i in range(0, len(tree), FEW):
            few = slice(i, i + FEW)
            x = tree[few, size:]  # (b, V, B): at first logits
            np.matmul(self._table, lanes[few, None], out=self._parts(x))
            x *= NATS / (CODE * HIDDEN)
            x += bias
            rows = slice(i * BLOCK, (i + FEW) * BLOCK)
            np.add.at(tree.reshape(-1), self._copies[:, rows], gate[:, rows])
            best = x.reshape(len(x), -1, min(FOLD, size) * BLOCK).max(1)
            x -= best.reshape(len(x), -1, BLOCK).max(1)[:, None]
            x.clip(-RANGE, 0, out=x)
            x.view(np.int32)[:] = x + 127 * OCTAVE
            x[:, self._unused] = 0
            self.masses.sum_up(tree[few])

    def update(self, tokens: np.ndarray) -> None:
        """One step up the gradient of log p of the frame's tokens (P,)."""
        gradient, slopes, first, size, spec = self._gradient, self._slopes, self._first, self._size, self._spec
        tree, outputs, matrix = self.masses.tree, np.zeros((size, WIDTH), np.float32), np.zeros_like(self._matrix)
        scale = -ERROR / tree[:, 1]  # (b, B)
        # What becomes the error of the right token once it is scaled and rounded, as all are: an integer below 2^15 and
        # a quotient by it differ by two roundings of 2^-24, far less than the half that rounding takes away.
        flat, factor = tree.reshape(-1), scale.reshape(-1)[: len(tokens)]
        right = self.masses.first[: len(tokens)] + self.masses.place.take(size + tokens)
        flat[right] = (np.rint(flat[right] * factor) + ERROR) / factor
        scale.reshape(-1)[len(tokens) :] = 0
        coarse = _codes(self._hidden.copy(), COARSE / HIDDEN, COARSE_MAX)
        lanes, biases = np.empty((len(tree), WIDTH, BLOCK), np.float32), np.zeros(size)
        for i in range(0, len(tree), FEW):
            few = slice(i, i + FEW)
            error = tree[few, size:]
            error *= scale[few, None]
            np.rint(error, out=error)
            biases += np.einsum("bvp->bv", error).sum(0)
            parts = self._parts(error)
            lanes[few] = np.matmul(self._table.swapaxes(1, 2), parts).sum(1)  # (b, D, B)
            for part, y in zip(parts, coarse[few]):
                outputs += np.matmul(part, y).reshape(-1, WIDTH)
        back = _codes(lanes, HIDDEN / (ERROR * CODE), HIDDEN_MAX).swapaxes(1, 2).copy()  # (b, B, D)
        for x, k in zip(self._input.swapaxes(2, 3), back):
            matrix += np.matmul(x, k)
        slopes[first[1] : first[2]] = matrix.reshape(-1, WIDTH) * (ERROR / (CODE * HIDDEN))
        flow = np.matmul(back, self._matrix.swapaxes(1, 2).copy()[:, None])  # (J, b, B, D)
        flow *= ERROR / (HIDDEN * CODE)
        flow = np.rint(flow, out=flow).astype(np.int32).reshape(len(flow), -1, WIDTH)
        # What flows back to tokens: that of the neighbours is added up where they are.
        flow[self._past == size] = 0
        grid = flow[:, : len(tokens)].reshape(len(flow), -1, spec.height, spec.width, WIDTH)
        for (dt, dy, dx), flows in zip(OFFSETS[HISTORY:], grid[HISTORY:]):
            grid[dt - 1] += np.roll(flows, (dy, dx), (1, 2))
        slopes[: first[1]] = _sums(self._past[:HISTORY], flow[:HISTORY], first[1])
        slopes[:size] += outputs * (1 / COARSE)
        back = back.reshape(-1, WIDTH) * (ERROR / HIDDEN)
        places = back[: len(tokens)].reshape(-1, spec.positions, WIDTH)
        slopes[first[2] : first[3]] = places.sum(0, dtype=np.float64)
        for context, i, j in zip(self._context[1:], first[3:], first[4:]):
            slopes[i:j] = _sums(context - i, back, j - i)
        picked = np.broadcast_to(flat.take(self._copies) * self._known, self._gates.shape)
        self._single_slopes[:] = np.bincount(self._gates.reshape(-1), picked.reshape(-1), len(self._singles))
        self._single_slopes[:size] = biases
        _codes(gradient, 1, GRADIENT_MAX)
        mean = np.append(np.einsum("rc->r", np.abs(slopes)) / np.float64(WIDTH), np.abs(self._single_slopes))
        self.squares += np.rint(mean * mean) - np.floor(self.squares / DECAY)
        scale = (self._rates / (_root(self.squares) + FLOOR)).astype(np.float32)
        slopes *= scale[: len(slopes), None]
        self._single_slopes *= scale[len(slopes) :]
        self.value += np.rint(gradient, out=gradient)
        self.value.clip(-BOUND, BOUND, out=self.value)

    def _parts(self, x: np.ndarray) -> np.ndarray:
        """(b, V, B) -> (b, V / 64, 64, B), as products take it."""
        return x.reshape(len(x), *self._table.shape[:2], BLOCK)


def _sums(rows: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Sum of the values (..., D) of each of `count` rows, numbers (...): float64 (count, D)."""
    cells = rows[..., None] * WIDTH + np.arange(WIDTH)
    return np.bincount(cells.reshape(-1), values.reshape(-1), count * WIDTH).reshape(-1, WIDTH)
