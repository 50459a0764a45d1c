"""Tiny networks and tokens for tests, the same everywhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vqcomp.runtime.config import ModelConfig
from vqcomp.runtime.engine import Tensors
from vqcomp.runtime.exact import NumpyOps
from vqcomp.runtime.spec import TokenSpec
from vqcomp.training.offsets import default_copies, default_flags


class Float64Ops(NumpyOps):
    """Products in float64: exact for far larger integers than those of the package."""

    def weight(self, codes, scales=None):
        return codes.T.astype(np.float64), scales

    def linear(self, x, weight):
        matrix, scale = weight
        y = np.matmul(x.astype(np.float64), matrix).astype(np.float32)
        return y if scale is None else y * scale


FLAGS = (((1, 0, 0), (2, 0, 0)), ((1, 0, 0), (3, 0, 0)), ((1, 0, 0), (2, 0, 1)), ((2, 0, 0), (1, -1, 0)))
COPIES = ((1, 0, 0), (2, 0, 0), (4, 0, 0), (1, 1, 0), (1, 0, -1))

# Scale codes that give activations of a trained network's size, by the end or the start of a tensor's name.
_SCALES = {"position": 12, "flags": 12, "stack": 0, "qkv": -24, "proj": -14, "up": -34, "down": -18, "head": -24,
           "embed": -16, "bias_s": 30, "bias_t": 30, "bias": 8}  # fmt: skip


def tiny_config(**changes: object) -> ModelConfig:
    """Under 10,000 weights; a grid of 3 x 4, a vocabulary that is no multiple of the coder's groups."""
    config = ModelConfig(
        height=3, width=4, factors=(70,), dim=16, blocks=2, spatial_heads=1, temporal_heads=2, head_dim=4, hidden=24,
        rank=8, window=3, stack=2, flags=FLAGS, copies=COPIES,
    )  # fmt: skip
    config = replace(config, **changes)
    config.check()
    return config


def random_tensors(config: ModelConfig, seed: int = 0, spread: int = 24) -> Tensors:
    """Codes between -spread and spread; RandomState's stream is frozen, so they never change."""
    random = np.random.RandomState(seed)
    tensors = {}
    for name, (shape, rows) in config.tensor_shapes().items():
        scale = next(v for k, v in _SCALES.items() if name.split(".")[-1] == k or name.split(".")[0] == k)
        codes = random.randint(-spread, spread + 1, shape).astype(np.int8)
        tensors[name] = codes, (scale + random.randint(-2, 3, rows)).astype(np.int8)
    return tensors


def ring_config(**changes: object) -> ModelConfig:
    """A network for `drifting`, small enough to be trained in a test."""
    config = ModelConfig(
        height=3, width=4, factors=(11,), dim=24, blocks=1, spatial_heads=1, temporal_heads=1, head_dim=8, hidden=32,
        rank=8, window=4, stack=2, flags=default_flags(4), copies=default_copies(3),
    )  # fmt: skip
    return replace(config, **changes)


def drifting(frames: int = 60, seed: int = 0) -> np.ndarray:
    """(T, 12, 1): a random picture that moves one column a frame around a ring, predictable from its past alone."""
    ring = np.random.default_rng(seed).integers(0, 11, (3, 32))
    return np.stack([ring[:, np.arange(t, t + 4) % 32].reshape(12, 1) for t in range(frames)])


def random_segment(spec: TokenSpec, frames: int, seed: int = 0) -> np.ndarray:
    """(T, S, F) int32 tokens of which most repeat the frame before."""
    random = np.random.RandomState(seed)
    shape = (frames, spec.positions)
    tokens = np.stack([random.randint(0, size, shape) for size in spec.factors], -1).astype(np.int32)
    stay = random.randint(0, 10, shape) < 7
    for t in range(1, frames):
        tokens[t][stay[t]] = tokens[t - 1][stay[t]]
    return tokens
