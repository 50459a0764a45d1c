"""A small network that is trained while it predicts, in exact arithmetic.

One linear layer over embeddings of past tokens, a softmax, and gates that point at past tokens (a log-bilinear language
model, Mnih and Hinton 2007, with a copy head). After each frame it takes one step of gradient descent on that frame, with
a step size for each row of a matrix (Adagrad, Duchi et al. 2011). It starts from pseudo-random embeddings: nothing is
shipped.

Arrays are float64 and hold integers, in units named at each step. A product of matrices is a sum of integers below 2^53,
so it is exact in any order, on any BLAS; quotients are IEEE divisions of two integers, rounded at once.

Shapes: P positions of a frame in all active segments, S positions of one, V vocabulary, D width, J features, N copies.
"""

from __future__ import annotations

import numpy as np

WIDTH = 64
RATE = 0.1
UNIT = 65536.0
"""Steps of a weight, a gate, a probability."""
BOUND = float((1 << 20) - 1)
"""Weights stay within 16."""
HIDDEN = 64.0
"""Weight steps in a step of the hidden layer: 2^-10."""
LOGIT = 256.0
"""Steps of a logit per nat."""
LOGITS = 16 * 256
GATE = 1.0
INIT = 4500
EPS = 16.0
DECAY = 1024.0
DIV = 4096.0


def _exponentials() -> np.ndarray:
    """exp(-i / LOGIT) in steps of 2^-24, at least 1, by a recurrence on integers."""
    decay, power, out = 18374827034086858296, 1 << 64, []  # floor(2^64 * exp(-1 / LOGIT))
    for _ in range(LOGITS):
        out.append(max(1, power >> 40))
        power = power * decay >> 64
    return np.array(out, np.float64)


EXP = _exponentials()


def _noise(rows: int, columns: int) -> np.ndarray:
    """Pseudo-random integers in +-INIT, float64 (rows, columns)."""
    x = np.arange(rows * columns, dtype=np.uint32).reshape(rows, columns)
    for multiplier in (0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F):
        x ^= x >> np.uint32(16)
        x = x * np.uint32(multiplier) + np.uint32(0x9E3779B9)
    x ^= x >> np.uint32(15)
    return (x % np.uint32(2 * INIT + 1)).astype(np.float64) - INIT


def _root(x: np.ndarray) -> np.ndarray:
    """Integer square root of integers below 2^52, whatever the machine's sqrt rounds to."""
    r = np.floor(np.sqrt(x))
    r -= r * r > x
    r += (r + 1) * (r + 1) <= x
    return r


class OnlineNetwork:
    """Probabilities of a frame's tokens from `features` past tokens at each position, and `copies` to point at."""

    def __init__(self, vocabulary: int, positions: int, sizes: list[int], copies: int):
        """sizes (J): number of values of each feature; the first is the token to compare the output with."""
        self.vocabulary, self.positions = vocabulary, positions
        self.output = _noise(vocabulary, WIDTH)
        # One table of embeddings for all features and, last, the positions.
        self.first_row = np.concatenate([[0], np.cumsum(sizes)])
        self.embed = np.zeros((self.first_row[-1] + positions, WIDTH))
        self.embed[:vocabulary] = self.output
        self.bias = np.zeros(vocabulary)
        self.gates = np.zeros((positions, copies))
        self.gates[:, 0] = GATE * UNIT
        self.v_output = np.zeros(vocabulary)
        self.v_embed = np.zeros(len(self.embed))
        self.v_bias = np.zeros(vocabulary)
        self.v_gates = np.zeros((positions, copies))

    def predict(self, features: np.ndarray, copies: np.ndarray) -> np.ndarray:
        """features (P, J) and copies (P, N) -> integer weights of each token, float64 (P, V), 1..2^24.

        A copy that is no token (V or more) is left out.
        """
        count = len(features)
        self.row = np.arange(count)
        place = np.tile(np.arange(self.positions), count // self.positions)
        self.rows = np.concatenate([features, place[:, None]], 1) + self.first_row  # (P, J + 1)
        self.copies = copies
        hidden = self.embed.take(self.rows, 0).sum(1)
        self.hidden = np.clip(np.rint(hidden / HIDDEN), -16384, 16384)  # (P, D)
        logits = self.hidden @ self.output.T  # (P, V), 2^-26
        logits /= UNIT * 1024 / LOGIT
        logits += self.bias / (UNIT / LOGIT)
        np.rint(logits, out=logits)
        gates = np.where(copies < self.vocabulary, np.rint(self.gates / (UNIT / LOGIT)).take(place, 0), 0)
        for n in range(copies.shape[1]):
            logits[self.row, np.minimum(copies[:, n], self.vocabulary - 1)] += gates[:, n]
        np.subtract(logits.max(1, keepdims=True), logits, out=logits)
        np.minimum(logits, LOGITS - 1, out=logits)
        self.weights = EXP.take(logits.astype(np.int64))
        return self.weights

    def update(self, tokens: np.ndarray) -> None:
        """tokens (P,): one step of gradient descent on what the last `predict` should have said."""
        error = self.weights * (-UNIT / self.weights.sum(1))[:, None]
        np.rint(error, out=error)
        error[self.row, tokens] += UNIT  # (P, V), 2^-16
        back = error @ self.output  # (P, D), 2^-32
        self._step(self.output, self.v_output, np.rint(error.T @ self.hidden / DIV), slice(None))
        back = np.rint(back / (DIV * 64))
        order = np.argsort(self.rows, axis=None, kind="stable")
        rows = self.rows.reshape(-1)[order]
        starts = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
        total = np.add.reduceat(back.take(order // self.rows.shape[1], 0), starts, 0)
        self._step(self.embed, self.v_embed, total, rows[starts])
        self._step1(self.bias, self.v_bias, error.sum(0))
        picked = np.where(self.copies < self.vocabulary, error[self.row[:, None], np.minimum(self.copies, self.vocabulary - 1)], 0)
        self._step1(self.gates, self.v_gates, picked.reshape(-1, *self.gates.shape).sum(0))

    def _step(self, weights, squares, gradient, rows):
        np.clip(gradient, -1048576, 1048576, out=gradient)  # 2^-14
        mean = np.rint(np.einsum("rd,rd->r", gradient, gradient) / WIDTH)
        v = squares[rows]
        v += mean - np.floor(v / DECAY)
        squares[rows] = v
        gradient *= (RATE * UNIT / (_root(v) + EPS))[:, None]
        np.rint(gradient, out=gradient)
        gradient += weights[rows]
        weights[rows] = np.clip(gradient, -BOUND, BOUND)

    def _step1(self, weights, squares, gradient):
        gradient = np.clip(np.rint(gradient / 4), -1048576, 1048576)
        squares += gradient * gradient - np.where(gradient != 0, np.floor(squares / DECAY), 0)
        weights += np.rint(gradient * (RATE * UNIT / (_root(squares) + EPS)))
        np.clip(weights, -BOUND, BOUND, out=weights)
