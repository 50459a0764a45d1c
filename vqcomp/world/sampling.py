"""Drawing tokens from integer logits, in integers alone: the same seed gives the same tokens on every machine.

Temperature and top-p are fractions of integers, rounding and ties are defined, and what is drawn depends on the seed
and on what it is drawn for (sample, frame, position, ...), never on the order of computing.

Shapes: N rows, V vocabulary, L levels of a code tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ..runtime.errors import InputError
from ..runtime.exact import NumpyOps
from ..runtime.opinions import LOGIT_MAX, SQUASH, STRETCH
from ..runtime.tables import LOGIT_BITS, WEIGHT_BITS, weights
from .philox import philox

FINEST = 1_000_000
"""The largest denominator of a temperature or a top-p: six decimals."""
HOTTEST = 1000
UNIFORM_BITS = 24
"""Of each of the two words that a token is drawn by."""
LEVELS_MAX = 16
CONFIDENCE_BITS = 24
"""A token's probability, where tokens are put in order by it."""
FACTORS_MAX = 15
"""Factors of a token that draws can be told apart by."""


@dataclass(frozen=True)
class Rows:
    """What the rows of a draw are for; int64 (N,) each."""

    sample: np.ndarray
    frame: np.ndarray
    position: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> Rows:
        return Rows(self.sample[rows], self.frame[rows], self.position[rows])


def rows_of(samples: np.ndarray, frame: int, positions: int) -> Rows:
    """The rows of one frame of several samples, sample by sample."""
    sample = np.repeat(samples.astype(np.int64), positions)
    return Rows(sample, np.full_like(sample, frame), np.tile(np.arange(positions), len(samples)))


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Raises InputError for values that are none.

    temperature: logits are divided by it, so 0 takes the likeliest token, of several the one with the lowest id.
    top_k: only the k likeliest tokens are drawn, of equal ones those with the lower ids.
    top_p: only the likeliest tokens that together have this probability, in the same order, are drawn; after top_k.
    A token is never drawn whose probability, after the temperature, is 2^-18 of the likeliest one's or less.
    """

    temperature: Fraction = Fraction(1)
    top_k: int | None = None
    top_p: Fraction | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("temperature", self.temperature, 0, HOTTEST),
            ("top-p", self.top_p, Fraction(1, FINEST), 1),
        ):
            if value is not None and not (low <= value <= high and value.denominator <= FINEST):
                raise InputError(
                    f"{name}: expected a number from {low} to {high} of at most six decimals, found {float(value):.9g}"
                )
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top-k: expected at least 1, found {self.top_k}")
        if not 0 <= self.seed < 1 << 64:
            raise InputError(f"seed: expected an integer from 0 to below 2^64, found {self.seed}")

    def weights(self, logits: np.ndarray) -> np.ndarray:
        """Integer logits (N, V) in 1/64 bit -> int64 weights (N, V) that the tokens are drawn by, each below 2^19."""
        x = logits.astype(np.int64)
        x -= x.max(1, keepdims=True)
        if not self.temperature:
            return (np.arange(x.shape[1]) == x.argmax(1)[:, None]).astype(np.int64)
        n, d = self.temperature.numerator, self.temperature.denominator
        x = -((-2 * d * x + n) // (2 * n))  # x d / n, to the nearest integer, halves away from 0
        lowest = -(WEIGHT_BITS << LOGIT_BITS)
        w = weights(np.maximum(x, lowest).astype(np.float32), NumpyOps()).astype(np.int64)  # as tokens are coded by
        w *= x > lowest
        if self.top_k is None and self.top_p is None:
            return w
        order = np.argsort(-x, 1, kind="stable")
        ranked = np.take_along_axis(w, order, 1)
        if self.top_k is not None:
            ranked[:, self.top_k :] = 0
        if self.top_p is not None:
            before = np.cumsum(ranked, 1) - ranked
            total = ranked.sum(1, keepdims=True)
            ranked *= before * self.top_p.denominator < total * self.top_p.numerator
        np.put_along_axis(w, order, ranked, 1)
        return w

    def draw(self, logits: np.ndarray, rows: Rows, purpose: int) -> tuple[np.ndarray, np.ndarray]:
        """Integer logits (N, V) -> tokens (N,), and the probability of each in 2^-24, at least 0, int64 (N,).

        purpose: tells draws for the same rows apart; below 2^32.
        """
        w = self.weights(logits)
        ends = np.cumsum(w, 1)
        total = ends[:, -1]
        first, second, *_ = philox(self.seed, self._counters(rows, purpose)).astype(np.int64) >> (32 - UNIFORM_BITS)
        # floor(u * total) for u of 48 bits: below 2^59, since no total reaches 2^35
        at = (first * total + (second * total >> UNIFORM_BITS)) >> UNIFORM_BITS
        tokens = (ends <= at[:, None]).sum(1)
        mine = np.take_along_axis(w, tokens[:, None], 1)[:, 0]
        return tokens, (mine << CONFIDENCE_BITS) // total

    def draw_bits(self, ones: np.ndarray, rows: Rows, purpose: int) -> np.ndarray:
        """Probabilities of a 1 (N,), integers in 1..65535 in 2^-16 -> bits int64 (N,), at this temperature.

        The logit of each bit is divided by the temperature; top_k and top_p, which are of tokens, do not apply.
        """
        if self.temperature != 1:
            logit = STRETCH.take(ones.astype(np.int64)).astype(np.int64)
            if not self.temperature:
                return (logit > 0).astype(np.int64)
            n, d = self.temperature.numerator, self.temperature.denominator
            size = np.minimum((2 * d * abs(logit) + n) // (2 * n), LOGIT_MAX)
            ones = SQUASH.take(np.sign(logit) * size + LOGIT_MAX)
        words = philox(self.seed, self._counters(rows, purpose))[0].astype(np.int64)
        return (words >> 16 < ones).astype(np.int64)

    def shuffle(self, rows: Rows, purpose: int) -> np.ndarray:
        """Random integers (N,) below 2^32, to put rows in an order by."""
        return philox(self.seed, self._counters(rows, purpose))[0].astype(np.int64)

    def _counters(self, rows: Rows, purpose: int) -> np.ndarray:
        return np.stack([rows.position, rows.frame, rows.sample, np.full_like(rows.frame, purpose)])
