"""Functions of a small integer as tables, made with Python's integers alone: the same on every machine."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_BITS = 80
"""Of the fraction that these computations carry."""
_ONE = 1 << _BITS
LN2 = 837963523372001241319907
"""floor(2^80 ln 2)"""
SQRT_8_PI = 1929166493252924854041779
"""floor(2^80 sqrt(8 / pi))"""

POWER_BITS = 12
"""A weight of a key is at most 2^12."""
POWER_STEP = 1 << 10
"""Scores are in 1/1024 bit."""
GELU_RANGE, GELU_STEP = 8, 1 << 12
"""GELU is tabulated up to 8, where it has become the identity, in steps of 2^-12."""


@lru_cache
def powers() -> np.ndarray:
    """float32 (n,): entry i is 2^(12 - i / 1024), rounded to an integer; the last one is 0."""
    entries = [_exp(LN2 * i // POWER_STEP) << POWER_BITS for i in range((POWER_BITS + 1) * POWER_STEP + 1)]
    return np.array([_rounded(entry, 0) for entry in [*entries, 0]], np.float32)


@lru_cache
def gelu(fraction: int) -> np.ndarray:
    """float32 (n,): entry i is GELU(x) - x at x = i / GELU_STEP >= 0, in 2^-fraction, rounded to an integer.

    GELU(x) = x / (1 + exp(-sqrt(8 / pi) (x + 0.044715 x^3))), and GELU(-x) = GELU(x) - x: one table serves both signs.
    """
    table = []
    for i in range(GELU_RANGE * GELU_STEP + 1):
        # 0.044715 x^3 = 44715 i^3 / (10^6 step^3)
        inner = (i * _ONE * 1_000_000 * GELU_STEP**2 + 44_715 * i**3 * _ONE) // (1_000_000 * GELU_STEP**3)
        e = _exp(SQRT_8_PI * inner >> _BITS)
        # GELU(x) - x = -x e / (1 + e)
        table.append(-_rounded(i * e * _ONE // (GELU_STEP * (_ONE + e)), fraction))
    return np.array(table, np.float32)


def _exp(x: int) -> int:
    """2^80 exp(-x / 2^80) for x >= 0, a few units in the last place too small or too large."""
    halvings = 8
    reduced = x >> halvings if x < 128 * _ONE else 128 * _ONE >> halvings
    total = term = _ONE
    for n in range(1, 25):
        term = -term * reduced // (n * _ONE)
        total += term
    for _ in range(halvings):
        total = total * total >> _BITS
    return total


def _rounded(x: int, fraction: int) -> int:
    """x / 2^80 in 2^-fraction, to the nearest integer."""
    return ((x << fraction) + (_ONE >> 1)) >> _BITS
