"""Other kinds of matrix products than exact.py's, and which of all to use for a network on this machine.

For each shape of the network's products, each kind is proven exact and timed.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .arithmetic import ACTIVATION_MAX, WEIGHT_MAX
from .config import ModelConfig
from .engine import multipliers
from .exact import Array, NumpyOps, TorchOps, Weight

PRODUCTS = {"qkv", "proj", "up", "down", "head", "embed", "flags"}
"""Parts of the names of tensors that are multiplied by."""
FRAMES = {True: (1, 4), False: (64, 256)}
"""Frames in a trial: a few, as where one segment is decoded, and many."""
REPEATS = 3
LIMITS = (1.25, 0.7)
"""Of the time of float32, what another kind may take for the few and for the many frames to be used in its place."""
Shapes = Counter[tuple[int, int]]
"""(N, K) -> how many weights have this shape."""


class PackedOps(TorchOps):
    """int8 by oneDNN on a CPU: weights in an order of its own; it multiplies, and rounds, as it goes."""

    def __init__(self, device: str = "cpu", threads: int | None = None) -> None:
        super().__init__(device, "int8_packed", threads)

    def weight(self, codes: np.ndarray, scales: np.ndarray | None = None) -> Weight:
        torch, ones = self.torch, np.ones(len(codes), np.float32)
        packed = torch.ops.onednn.qlinear_prepack(torch.from_numpy(codes.astype(np.int8)), None)
        return (packed, torch.zeros(len(codes), dtype=torch.int32)), self.load(ones if scales is None else scales)

    def linear(self, x: Array, weight: Weight) -> Array:
        return self._run(x, weight, self.torch.float32)

    def codes(self, x: Array, weight: Weight) -> Array:
        return self._run(x, weight, self.torch.int8).clamp_(min=-ACTIVATION_MAX)  # from -128

    def empty_codes(self, *shape: int) -> Array:
        return self.torch.empty(shape, dtype=self.torch.int8)

    def _run(self, x: Array, weight: Weight, dtype: Any) -> Array:
        """`linear`, to float32, or to int8: rounded, halves to even, and clipped."""
        (packed, zeros), scale = weight
        x = x.to(self.torch.int8)
        return self.torch.ops.onednn.qlinear_pointwise(
            x, 1.0, 0, packed, scale, zeros, None, 1.0, 0, dtype, "none", [], ""
        )


class Int8Ops(TorchOps):
    """int8 by torch's own product, on a CPU or a GPU."""

    def __init__(self, device: str = "cpu", threads: int | None = None) -> None:
        super().__init__(device, "int8", threads)

    def _product(self, x: Array, matrix: Array) -> Array:
        rows, (depth, columns) = len(x), matrix.shape
        if not self.on_host:  # CUDA wants more than 16 rows, and columns in multiples of 8
            pad = self.torch.nn.functional.pad
            x, matrix = pad(x, (0, -depth % 8, 0, max(0, 17 - rows))), pad(matrix, (0, -columns % 8, 0, -depth % 8))
        return self.torch._int_mm(x, matrix)[:rows, :columns]


class BfloatOps(TorchOps):
    """bfloat16 into float32 on a GPU; codes are below 2^8, so bfloat16 holds them."""

    def __init__(self, device: str = "cuda", threads: int | None = None) -> None:
        super().__init__(device, "bfloat16", threads)

    def _product(self, x: Array, matrix: Array) -> Array:
        return self.torch.mm(x, matrix, out_dtype=self.torch.float32)


def kinds(ops: TorchOps) -> list[Callable[[], TorchOps]]:
    """The same operations with other kinds of products, where this torch has them."""
    others = (PackedOps if ops.on_host else BfloatOps, Int8Ops)
    return [partial(other, str(ops.device), ops.threads) for other in others]


def fastest(ops: NumpyOps | TorchOps, config: ModelConfig) -> NumpyOps | TorchOps:
    """The same operations, with the fastest kind of products for a network; `ops` have those in float32.

    Only speed depends on the choice. A kind whose results differ from those of float32 is not used, with a warning.
    NumPy has float32 alone.
    """
    if isinstance(ops, NumpyOps):
        return ops
    log, chosen, least = logging.getLogger("vqcomp"), ops, 1.0
    shapes = shapes_of(config)
    counts = [frames * config.positions for frames in FRAMES[ops.on_host]]
    with ops.settings():
        plain = [trial(ops, shapes, rows) for rows in counts]
        for kind in kinds(ops):
            try:
                other = kind()
                found = [trial(other, shapes, rows) for rows in counts]
            except (RuntimeError, AttributeError, TypeError):
                continue  # this torch or this machine has none
            if not all(np.array_equal(a, b) for (x, _), (y, _) in zip(plain, found) for a, b in zip(x, y)):
                log.warning("note: %s: %s products are not exact here, and are not used", ops.name, other.gemm)
                continue
            shares = [seconds / known for (_, known), (_, seconds) in zip(plain, found)]
            if all(share <= limit for share, limit in zip(shares, LIMITS)) and shares[-1] < least:
                chosen, least = other, shares[-1]
    log.info("%s: matrix products in %s, %.1f times as fast as in float32", ops.name, chosen.gemm, 1 / least)
    return chosen


def shapes_of(config: ModelConfig) -> Shapes:
    """The shapes of a network's products."""
    shapes = Shapes()
    for name, ((n, k), _) in config.tensor_shapes().items():
        if not PRODUCTS.isdisjoint(name.split(".")):
            shapes[n - name.startswith("embed"), k] += 1  # its last row is no token's
    return shapes


def trial(ops: TorchOps, shapes: Shapes, rows: int) -> tuple[list[np.ndarray], float]:
    """Products of so many rows for each shape, rounded and not, of vectors up to the bounds; seconds for all."""
    random, results, total = np.random.RandomState(0), [], 0.0
    # Patterns of prime length, repeated: cheaper than as many random numbers.
    inputs = random.randint(-ACTIVATION_MAX, ACTIVATION_MAX + 1, 1009).astype(np.float32)
    weights = random.randint(-WEIGHT_MAX, WEIGHT_MAX + 1, 997).astype(np.int8)
    for (n, k), count in shapes.items():
        x, codes = np.resize(inputs, (rows, k)), np.resize(weights, (n, k))
        x[0], x[-1], codes[0], codes[-1] = ACTIVATION_MAX, -ACTIVATION_MAX, WEIGHT_MAX, -WEIGHT_MAX
        # As in a network; so that some results are not clipped, and some are halfway between two integers.
        scales = multipliers(-(np.arange(n) % 40))
        weight, y = ops.weight(codes, scales), ops.load(x)
        results += [ops.host(ops.linear(y, weight)), ops.host(ops.codes(y, weight)).astype(np.float32)]
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            ops.host(ops.linear(y, weight)[:1])  # waits for it
            times.append(time.perf_counter() - start)
        total += count * min(times)
    return results, total
