"""Which kind of matrix products to use: on this machine, for the shapes of a network, each proven exact, then timed."""

from __future__ import annotations

import logging
import time
from collections import Counter

import numpy as np

from .arithmetic import ACTIVATION_MAX, WEIGHT_MAX
from .config import ModelConfig
from .exact import TorchOps

PRODUCTS = {"qkv", "proj", "up", "down", "head", "embed", "flags"}
"""Parts of the names of tensors that are multiplied by."""
KINDS = {True: ("packed", "int8"), False: ("bfloat16", "int8")}
"""What is tried on a CPU, or not on one, beside float32; see `exact.GEMMS`."""
FRAMES = {True: (1, 4), False: (64, 256)}
"""Frames in a trial: what is used in place of float32 must not be slower for either number."""
REPEATS = 2
CLEARLY = 0.8
"""And on the mean of the two it may take no more than this of the time of float32."""
WORTH = 1 << 18
"""A network of fewer weights is not worth a trial: to call for a product takes as long as to compute it."""
Shapes = Counter[tuple[int, int]]
"""(N, K) -> how many weights have this shape."""


def fastest(ops: TorchOps, config: ModelConfig) -> TorchOps:
    """The same operations, with the fastest kind of products for a network; `ops` have those in float32.

    Only speed depends on the choice. A kind whose results differ from those of float32 is not used, with a warning.
    """
    log, chosen, least = logging.getLogger("vqcomp"), ops, CLEARLY
    shapes = shapes_of(config)
    counts = [frames * config.positions for frames in FRAMES[ops.on_host]]
    if config.parameters() < WORTH:
        return ops
    with ops.settings():
        plain = [trial(ops, shapes, rows) for rows in counts]
        for kind in KINDS[ops.on_host]:
            try:
                other = TorchOps(str(ops.device), kind, ops.threads)
                found = [trial(other, shapes, rows) for rows in counts]
            except (RuntimeError, AttributeError, TypeError):
                continue  # this torch or this machine has none
            if not all(np.array_equal(a, b) for (x, _), (y, _) in zip(plain, found) for a, b in zip(x, y)):
                log.warning("note: %s products of %s are not exact on this machine; they are not used", kind, ops.name)
                continue
            shares = [seconds / known for (_, known), (_, seconds) in zip(plain, found)]
            if max(shares) <= 1 and sum(shares) / len(shares) < least:
                chosen, least = other, sum(shares) / len(shares)
    log.info(
        "products of the network: %s%s", chosen.gemm, f", {1 / least:.1f} times as fast" if chosen is not ops else ""
    )
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
        x[:2], codes[:2] = [[ACTIVATION_MAX], [-ACTIVATION_MAX]], [[WEIGHT_MAX], [-WEIGHT_MAX]]
        # So that results are about as large as codes; every other one a power of two, so that there are ties.
        scale = np.float32(2.0 ** -round(6 + np.log2(k) / 2))
        scales = np.where(np.arange(n) % 2, scale, scale * np.float32(1.1892071))
        weight, y = ops.weight(codes, scales), ops.load(x)
        results += [ops.host(ops.linear(y, weight)), ops.host(ops.codes(y, weight)).astype(np.float32)]
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            ops.host(ops.linear(y, weight)[:1])  # waits for it
            times.append(time.perf_counter() - start)
        total += count * min(times)
    return results, total
