"""The networks that `vqcomp train` makes."""

from __future__ import annotations

from .model import default_copies, default_flags
from .runtime.config import ModelConfig, Offset
from .runtime.spec import TokenSpec

PAST = 8
"""Past frames that flags and copies look at."""


def small(spec: TokenSpec) -> ModelConfig:
    """A FrameGPT of about 0.7 million weights (commaVQ), as the shipped one. Raises ModelError for grids too large."""

    def inside(offset: Offset) -> bool:
        return abs(offset[1]) < spec.height and abs(offset[2]) < spec.width

    config = ModelConfig(
        height=spec.height,
        width=spec.width,
        factors=spec.factors,
        dim=128,
        blocks=3,
        spatial_heads=2,
        temporal_heads=2,
        head_dim=32,
        hidden=512,
        rank=32,
        window=8,
        stack=2,
        flags=tuple(pair for pair in default_flags(PAST) if all(inside(offset) for offset in pair)),
        copies=tuple(offset for offset in default_copies(PAST) if inside(offset)),
    )
    config.check()
    return config
