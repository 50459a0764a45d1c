"""A small network that is trained while it predicts, in exact arithmetic.

A log-bilinear language model (Mnih and Hinton 2007) with a copy head: the embeddings of past tokens, each through the
matrix of its offset, are summed and compared with the embeddings of all tokens; gates point at past tokens. One table
embeds tokens on both sides (Press and Wolf 2017), which is worth most here, where there is little to learn from. After
each frame it takes one step of gradient descent on that frame, with a step size of its own for each row of a matrix
(Adagrad, Duchi et al. 2011). It starts from pseudo-random embeddings, so nothing is shipped.

Arrays are float64 and hold integers, in units named beside them. A product of matrices is a sum of integers below 2^53,
so it is exact in any order, on any BLAS; a quotient is one IEEE division of integers, or a product with such a
quotient, and rounded at once.

Shapes: P positions of a frame in all active segments, S positions of one, V vocabulary, D width, J past tokens,
N gates.
"""

from __future__ import annotations

import numpy as np

WIDTH = 64
RATE = 0.12
RATE_MATRIX = 0.01
RATE_CONTEXT = 0.02
UNIT = 65536.0
"""Steps of a weight: 2^-16. Probabilities and their errors have the same."""
BOUND = float((1 << 20) - 1)
"""Weights stay within 16."""
HIDDEN = 1024.0
"""Steps of an activation: 2^-10."""
HIDDEN_MAX = float(1 << 14)
GRADIENT = 16384.0
"""Steps of a gradient: 2^-14."""
GRADIENT_MAX = float(1 << 20)
LOGIT = 256.0
"""Steps of a logit per nat."""
LOGITS = 16 * 256
DECAY = 512.0
"""Updates after which a squared gradient has faded."""
FLOOR = 16.0
"""Keeps the first steps finite, in steps of a gradient."""
NOISE = 4500
RUNS = 16


def _exponentials() -> np.ndarray:
    """exp(-i / LOGIT) in steps of 2^-24, at least 1, by a recurrence on integers."""
    decay, power, out = 18374827034086858296, 1 << 64, []  # floor(2^64 * exp(-1 / LOGIT))
    for _ in range(LOGITS):
        out.append(max(1, power >> 40))
        power = power * decay >> 64
    return np.array(out, np.float64)


EXP = _exponentials()


def _noise(rows: int, columns: int) -> np.ndarray:
    """Pseudo-random integers within NOISE of 0, float64 (rows, columns)."""
    x = np.arange(rows * columns, dtype=np.uint32).reshape(rows, columns)
    for multiplier in (0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F):
        x ^= x >> np.uint32(16)
        x = x * np.uint32(multiplier) + np.uint32(0x9E3779B9)
    x ^= x >> np.uint32(15)
    return (x % np.uint32(2 * NOISE + 1)).astype(np.float64) - NOISE


def _root(x: np.ndarray) -> np.ndarray:
    """Integer square root of integers below 2^52, however the machine rounds its own."""
    r = np.floor(np.sqrt(x))
    r -= r * r > x
    r += (r + 1) * (r + 1) <= x
    return r


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b in blocks that are too small for OpenBLAS to start threads: the waiting costs more than these products."""
    out = np.zeros((len(a), b.shape[1]))
    for i in range(0, len(a), 128):
        for j in range(0, b.shape[1], 64):
            block = out[i : i + 128, j : j + 64]
            for k in range(0, len(b), 32):
                block += a[i : i + 128, k : k + 32] @ b[k : k + 32, j : j + 64]
    return out


class _Weights:
    """A matrix of weights (rows, columns) that learns by Adagrad, row by row."""

    def __init__(self, value: np.ndarray, rate: float):
        self.value, self.rate = value, rate * UNIT
        self.squares = np.zeros(len(value))

    def step(self, gradient: np.ndarray, rows: np.ndarray | slice = slice(None)) -> None:
        """Add a step up the gradient (rows, columns), in steps of GRADIENT, and overwrite it. No row twice."""
        np.clip(gradient, -GRADIENT_MAX, GRADIENT_MAX, out=gradient)
        squares = self.squares[rows]
        squares += np.rint(np.einsum("rc,rc->r", gradient, gradient) / gradient.shape[1]) - np.floor(squares / DECAY)
        self.squares[rows] = squares
        gradient *= (self.rate / (_root(squares) + FLOOR))[:, None]
        np.rint(gradient, out=gradient)
        gradient += self.value[rows]
        np.clip(gradient, -BOUND, BOUND, out=gradient)
        self.value[rows] = gradient


class OnlineNetwork:
    """Probabilities of the tokens of a frame."""

    def __init__(self, vocabulary: int, positions: int, past: int, gates: int, contexts: list[int]):
        """past (J) tokens to read, of which the first `gates` (N) can be pointed at; sizes of further contexts."""
        self.vocabulary, self.positions, self.gate_count = vocabulary, positions, gates
        table = _noise(vocabulary + 1, WIDTH)  # the last row is "no token", and stays 0
        table[-1] = 0
        self.tokens = _Weights(table, RATE)
        matrix = np.zeros((past, WIDTH, WIDTH))
        for j in range(gates):
            matrix[j] = np.eye(WIDTH) * (UNIT if j == 0 else UNIT / 2)
        self.matrix = _Weights(matrix.reshape(past * WIDTH, WIDTH), RATE_MATRIX)
        self.first_row = np.cumsum([0, positions, RUNS, *contexts])
        self.context = _Weights(np.zeros((self.first_row[-1], WIDTH)), RATE_CONTEXT)
        self.first_row = self.first_row[:-1]
        self.bias = _Weights(np.zeros((vocabulary, 1)), RATE)
        self.gates = _Weights(np.zeros((positions * gates, 1)), RATE)
        self.gates.value[::gates] = UNIT
        self.run_gates = _Weights(np.zeros((RUNS * gates, 1)), RATE_MATRIX)

    def predict(self, past: np.ndarray, run: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        """Integer weights of each token, float64 (P, V), 1..2^24.

        past (P, J) tokens, newest first, V for none; run (P,) frames that the newest has stayed; contexts (P, ...).
        """
        count, gates = len(past), self.gate_count
        self.row = np.arange(count)[:, None]
        place = np.tile(np.arange(self.positions), count // self.positions)
        run = np.minimum(run, RUNS - 1)
        self.past = past
        self.rows = np.concatenate([place[:, None], run[:, None], contexts], 1) + self.first_row
        self.gate_rows = place[:, None] * gates + np.arange(gates)  # (P, N)
        self.run_rows = run[:, None] * gates + np.arange(gates)
        table = self.tokens.value
        self.input = np.rint(table / (UNIT / HIDDEN)).take(past, 0).reshape(count, -1)  # (P, J * D)
        hidden = np.rint(_product(self.input, self.matrix.value) / UNIT)
        hidden += np.rint(self.context.value.take(self.rows, 0).sum(1) / (UNIT / HIDDEN))
        self.hidden = np.clip(hidden, -HIDDEN_MAX, HIDDEN_MAX)  # (P, D)
        logits = _product(self.hidden, table[:-1].T)  # (P, V)
        logits /= UNIT * HIDDEN / LOGIT
        logits += self.bias.value[:, 0] / (UNIT / LOGIT)
        np.rint(logits, out=logits)
        gate = self.gates.value.take(self.gate_rows) + self.run_gates.value.take(self.run_rows)
        gate = np.rint(gate / (UNIT / LOGIT))
        self.known = past[:, :gates] < self.vocabulary
        self.copies = np.minimum(past[:, :gates], self.vocabulary - 1)
        for n in range(gates):
            logits[self.row[:, 0], self.copies[:, n]] += np.where(self.known[:, n], gate[:, n], 0)
        np.subtract(logits.max(1, keepdims=True), logits, out=logits)
        np.minimum(logits, LOGITS - 1, out=logits)
        self.weights = EXP.take(logits.astype(np.int64))
        return self.weights

    def update(self, tokens: np.ndarray) -> None:
        """One step of gradient ascent on the probability of tokens (P,) under the last `predict`."""
        error = self.weights * (-UNIT / self.weights.sum(1))[:, None]
        np.rint(error, out=error)
        error[self.row[:, 0], tokens] += UNIT  # (P, V)
        table, matrix = self.tokens.value, self.matrix.value
        back = np.rint(_product(error, table[:-1]) / (UNIT * UNIT / GRADIENT))  # (P, D)
        gradient = np.zeros_like(table)  # (V + 1, D), as output and as input
        gradient[:-1] = np.rint(_product(error.T, self.hidden) / (UNIT * HIDDEN / GRADIENT))
        inputs = np.rint(_product(back, matrix.T) / UNIT).reshape(-1, WIDTH)  # (P * J, D)
        rows, total = _sum_rows(self.past.reshape(-1), inputs)
        gradient[rows] += total
        gradient[-1] = 0
        self.matrix.step(np.rint(_product(self.input.T, back) / HIDDEN))
        self.tokens.step(gradient)
        rows, total = _sum_rows(self.rows.reshape(-1), np.repeat(back, self.rows.shape[1], 0))
        self.context.step(total, rows)
        self.bias.step(np.rint(error.sum(0) / (UNIT / GRADIENT))[:, None])
        picked = np.where(self.known, np.rint(error[self.row, self.copies] / (UNIT / GRADIENT)), 0)
        for gates, rows in ((self.gates, self.gate_rows), (self.run_gates, self.run_rows)):
            rows, total = _sum_rows(rows.reshape(-1), picked.reshape(-1, 1))
            gates.step(total, rows)


def _sum_rows(rows: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n,) and values (n, columns) -> each row once, and the sum of its values."""
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    starts = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
    return rows[starts], np.add.reduceat(values[order], starts, 0)
