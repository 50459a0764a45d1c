"""Philox4x32-10, a counter-based generator: a random number is a function of its seed and of what it is for.

So no order of computing, batch or machine changes a draw. (Salmon et al., Parallel random numbers: as easy as 1, 2, 3,
SC 2011)
"""

from __future__ import annotations

import numpy as np

ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(seed: int, counters: np.ndarray) -> np.ndarray:
    """Counters, integers (4, n) below 2^32, and a seed below 2^64 -> random words uint64 (4, n) below 2^32."""
    a, b, c, d = counters.astype(np.uint64)
    keys = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(ROUNDS):
        first, second = a * np.uint64(_MULTIPLIERS[0]), c * np.uint64(_MULTIPLIERS[1])
        a, b = (second >> _HALF) ^ b ^ np.uint64(keys[0]), second & _LOW
        c, d = (first >> _HALF) ^ d ^ np.uint64(keys[1]), first & _LOW
        keys = [(key + step) & 0xFFFFFFFF for key, step in zip(keys, _WEYL)]
    return np.stack([a, b, c, d])
