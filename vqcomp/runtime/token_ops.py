"""What a TokenGPT needs of NumPy and torch beyond exact.py: integers of 64 bits, look-ups, a running maximum.

All are exact or correctly rounded. Arrays know whose they are.
"""

from __future__ import annotations

import numpy as np

from .exact import Array


def as_int64(x: Array) -> Array:
    """Integers in floats, or booleans -> int64."""
    return x.astype(np.int64) if isinstance(x, np.ndarray) else x.long()


def as_float32(x: Array) -> Array:
    """To the nearest float32, ties to even."""
    return x.astype(np.float32) if isinstance(x, np.ndarray) else x.float()


def look_up(table: Array, index: Array) -> Array:
    """table (n,) at each of the integers `index`, which are held in float32 -> of index's shape."""
    flat = as_int64(index.reshape(-1))
    values = np.take(table, flat) if isinstance(table, np.ndarray) else table.index_select(0, flat)
    return values.reshape(index.shape)


def running_max(x: Array) -> Array:
    """The maximum of each row up to each column."""
    return np.maximum.accumulate(x, axis=-1) if isinstance(x, np.ndarray) else x.cummax(-1).values


def root(x: Array) -> Array:
    """floor(sqrt(x)) of int64, 0 <= x < 2^62: a float64 root, whatever a machine gives, corrected by comparison."""
    near = np.sqrt(x.astype(np.float64)) if isinstance(x, np.ndarray) else x.double().sqrt()
    r = as_int64(near)
    r = r - as_int64(r * r > x)
    return r + as_int64((r + 1) * (r + 1) <= x)
