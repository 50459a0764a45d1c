"""A small network that is trained while it predicts, in exact arithmetic.

A log-bilinear language model (Mnih and Hinton 2007) with a copy head: the embeddings of past tokens, each through the
matrix of its offset, are summed and compared with the embeddings of all tokens; gates point at past tokens. One table
embeds tokens on both sides (Press and Wolf 2017), which is worth most here, where there is little to learn from. After
each frame it takes one step of gradient ascent on that frame, with a step size of its own for each row of a matrix
(Adagrad, Duchi et al. 2011). It starts from pseudo-random embeddings, so nothing is shipped.

Arrays are float32. A product of matrices is of codes: integers so small that its sums stay below 2^24, so it is exact
in any order, on any BLAS. All else is single IEEE operations on elements, in the order written here.

Shapes: P positions of a frame in all active segments, S positions of one, V vocabulary, D width, J past tokens,
N gates.
"""

from __future__ import annotations

import numpy as np

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
KNOWN = 1024.0
"""Steps of a weight for each of a trained network's codes."""
KNOWN_SQUARES = float(1 << 22)
"""Rows that start from such codes take smaller steps at first."""
RUNS = 16
BLOCK = 64
"""Positions whose gradients are summed exactly; the blocks' sums are added one after another."""


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


def _in_order(parts: np.ndarray) -> np.ndarray:
    """Add the first axis up, one after another, in place."""
    for part in parts[1:]:
        parts[0] += part
    return parts[0]


class _Weights:
    """Rows of weights (rows, columns) that learn by Adagrad, each with a step size of its own."""

    def __init__(self, value: np.ndarray, rates: np.ndarray):
        self.value, self.rates = value, rates * UNIT
        self.squares = np.zeros(len(value))

    def step(self, gradient: np.ndarray) -> None:
        """Add a step up the gradient (rows, columns), in steps of ERROR, and overwrite it."""
        np.rint(gradient, out=gradient)
        np.clip(gradient, -GRADIENT_MAX, GRADIENT_MAX, out=gradient)
        mean = np.einsum("rc->r", np.abs(gradient)).astype(np.float64) / gradient.shape[1]
        self.squares += np.rint(mean * mean) - np.floor(self.squares / DECAY)
        gradient *= (self.rates / (_root(self.squares) + FLOOR)).astype(np.float32)[:, None]
        np.rint(gradient, out=gradient)
        self.value += gradient
        np.clip(self.value, -BOUND, BOUND, out=self.value)


class OnlineNetwork:
    """Probabilities of the tokens of a frame."""

    def __init__(
        self,
        vocabulary: int,
        positions: int,
        past: int,
        gates: int,
        contexts: list[int],
        codes: np.ndarray | None = None,
    ):
        """past (J) tokens to read, of which the first `gates` (N) can be pointed at; sizes of further contexts.

        codes: what a trained network has learned of the tokens, integers (V, any number) within a byte, to start from.
        """
        self.vocabulary, self.positions, self.past_count, self.gate_count = vocabulary, positions, past, gates
        # OpenBLAS starts no threads for products of blocks of this size: the waiting would cost more than they do.
        self.columns = BLOCK if vocabulary % BLOCK == 0 else vocabulary
        # Rows: embeddings, of which the last is "no token" and stays 0; matrices; contexts.
        sizes = [vocabulary + 1, past * WIDTH, positions, RUNS, *contexts]
        self.first = np.cumsum([0, *sizes])
        rows = np.zeros((self.first[-1], WIDTH), np.float32)
        rows[:vocabulary] = _noise(vocabulary, WIDTH)
        rates = np.repeat([RATE, RATE_MATRIX] + [RATE_CONTEXT] * (len(sizes) - 2), sizes)
        self.rows = _Weights(rows, rates)
        self.table, self.matrix = np.split(rows, self.first[1:3])[:2]
        if codes is not None:
            self.table[:-1, : codes.shape[1]] = codes[:, :WIDTH] * KNOWN
            self.rows.squares[:vocabulary] = KNOWN_SQUARES
        for j in range(gates):
            np.fill_diagonal(self.matrix[j * WIDTH :], UNIT if j == 0 else UNIT / 2)
        # Single weights: biases of the tokens, gates of positions and of runs.
        sizes = [vocabulary, positions * gates, RUNS * gates]
        self.first_single = np.cumsum([0, *sizes])
        singles = np.zeros((self.first_single[-1], 1), np.float32)
        singles[vocabulary : vocabulary + positions * gates : gates] = UNIT
        self.singles = _Weights(singles, np.repeat([RATE, RATE, RATE_MATRIX], sizes))

    def predict(self, past: np.ndarray, run: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        """Weights of each token, float32 (P, V), 2^-22..1.

        past (P, J) tokens, newest first, V for none; run (P,) frames that the newest has stayed; contexts (P, ...).
        """
        self.count, gates = len(past), self.gate_count
        row = np.arange(-(-len(past) // BLOCK) * BLOCK)  # padded to whole blocks of B
        inside = np.minimum(row, len(past) - 1)
        place, run, past = row % self.positions, np.minimum(run, RUNS - 1)[inside], past[inside]
        self.row, self.past = row[:, None], past
        self.context = np.concatenate([place[:, None], run[:, None], contexts[inside]], 1) + self.first[2:-1]
        pair = np.stack([place, run], 1) * gates + self.first_single[1:3]
        self.gates = (pair[:, :, None] + np.arange(gates))[: self.count]  # (P, 2, N)
        codes = np.rint(self.rows.value[: self.first[2]] * np.float32(CODE / UNIT))
        self.codes, matrix = codes[: self.vocabulary + 1], codes[self.first[1] :]
        np.clip(self.codes, -CODE_MAX, CODE_MAX, out=self.codes)
        self.matrix_codes = np.clip(matrix, -MATRIX_MAX, MATRIX_MAX, out=matrix).reshape(-1, WIDTH, WIDTH)
        self.input = self.codes.take(past, 0).reshape(-1, BLOCK, self.past_count, WIDTH)
        hidden = _in_order(np.matmul(self.input.transpose(2, 0, 1, 3), self.matrix_codes[:, None]))  # (P / B, B, D)
        hidden += self.rows.value.take(self.context, 0).sum(1).reshape(hidden.shape)
        hidden *= np.float32(HIDDEN / UNIT)
        np.rint(hidden, out=hidden)
        self.hidden = np.clip(hidden, -HIDDEN_MAX, HIDDEN_MAX, out=hidden)
        x = np.empty((len(past), self.vocabulary), np.float32)
        table = self.codes[:-1].reshape(-1, self.columns, WIDTH)
        np.matmul(hidden[:, None], table.swapaxes(1, 2), out=self._blocks(x))
        x *= np.float32(NATS / (CODE * HIDDEN))
        x += self.singles.value[: self.vocabulary, 0] * np.float32(NATS / UNIT)
        self.known = past[:, :gates] < self.vocabulary
        self.copies = np.minimum(past[:, :gates], self.vocabulary - 1)
        gate = self.singles.value[:, 0].take(self.gates).sum(1) * np.float32(NATS / UNIT)
        for n in range(gates):
            x[row[: self.count], self.copies[: self.count, n]] += gate[:, n] * self.known[: self.count, n]
        x -= x.max(1, keepdims=True)
        np.clip(x, -RANGE, 0, out=x)
        x += np.float32(127 * OCTAVE)
        self.weights = x.astype(np.int32).view(np.float32)
        return self.weights[: self.count]

    def _blocks(self, x: np.ndarray) -> np.ndarray:
        """(P, V) as blocks (P / B, V / columns, B, columns)."""
        return x.reshape(len(x) // BLOCK, BLOCK, -1, self.columns).swapaxes(1, 2)

    def update(self, tokens: np.ndarray, total: np.ndarray) -> None:
        """One step up the gradient of log p of tokens (P,); total (P,) is the sum of each row of `predict`."""
        error = self.weights
        error[: self.count] *= (np.float32(-ERROR) / total)[:, None]
        error[self.count :] = 0
        np.rint(error, out=error)
        error[self.row[: self.count, 0], tokens] += np.float32(ERROR)  # (P, V)
        blocks, table = self._blocks(error), self.codes[:-1].reshape(-1, self.columns, WIDTH)
        back = np.matmul(blocks, table).sum(1)  # (P / B, B, D)
        back *= np.float32(HIDDEN / (ERROR * CODE))
        np.rint(back, out=back)
        np.clip(back, -HIDDEN_MAX, HIDDEN_MAX, out=back)
        # Rows of weights that positions read: (P / B, J + contexts, B).
        inputs = np.matmul(back[:, None], self.matrix_codes.swapaxes(1, 2))  # (P / B, J, B, D)
        inputs *= np.float32(ERROR / (HIDDEN * CODE))
        np.rint(inputs, out=inputs)
        read = np.concatenate([self.past, self.context], 1)
        read = read.reshape(-1, BLOCK, read.shape[1]).swapaxes(1, 2)
        context = back[:, None] * np.float32(ERROR / HIDDEN)
        values = np.concatenate([inputs] + [context] * self.context.shape[1], 1)
        cells = read.reshape(-1, 1) * WIDTH + np.arange(WIDTH)
        sums = np.bincount(cells.reshape(-1), values.reshape(-1), self.first[-1] * WIDTH)
        gradient = sums.astype(np.float32).reshape(-1, WIDTH)
        coarse = np.clip(np.rint(self.hidden * np.float32(COARSE / HIDDEN)), -COARSE_MAX, COARSE_MAX)
        outputs = _in_order(np.matmul(blocks.swapaxes(2, 3), coarse[:, None])).reshape(-1, WIDTH)  # (V, D)
        outputs *= np.float32(1 / COARSE)
        gradient[: self.vocabulary] += outputs
        gradient[self.vocabulary] = 0
        matrix = _in_order(np.matmul(self.input.transpose(0, 2, 3, 1), back[:, None]))  # (J, D, D)
        matrix *= np.float32(ERROR / (CODE * HIDDEN))
        gradient[self.first[1] : self.first[2]] = matrix.reshape(-1, WIDTH)
        self.rows.step(gradient)
        picked = (error[self.row, self.copies] * self.known)[: self.count]  # (P, N)
        single = np.bincount(self.gates.reshape(-1), np.stack([picked, picked], 1).reshape(-1), self.first_single[-1])
        single[: self.vocabulary] += error.reshape(-1, BLOCK, self.vocabulary).sum(1).sum(0, dtype=np.float64)
        self.singles.step(single.astype(np.float32)[:, None])
