"""The networks that `vqcomp train` makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

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
        rank=48,
        window=8,
        stack=2,
        flags=tuple(pair for pair in default_flags(PAST) if all(inside(offset) for offset in pair)),
        copies=tuple(offset for offset in default_copies(PAST) if inside(offset)),
    )
    config.check()
    return config


def nano(spec: TokenSpec) -> ModelConfig:
    """A FrameGPT of about 0.2 million weights (commaVQ), as the shipped one."""
    return replace(small(spec), dim=64, spatial_heads=1, temporal_heads=1, hidden=256, rank=32)


def mini(spec: TokenSpec) -> ModelConfig:
    """A FrameGPT of about 0.3 million weights (commaVQ), as the shipped one."""
    return replace(small(spec), dim=80, blocks=4, spatial_heads=1, temporal_heads=1, hidden=256)


def world_model(spec: TokenSpec) -> ModelConfig:
    """The same for 1X's metric: it sees all of a window of 16 frames. Raises ModelError for grids too large."""
    return replace(small(spec), window=16)


@dataclass(frozen=True)
class Preset:
    """What to train, and how."""

    network: Callable[[TokenSpec], ModelConfig]
    settings: Mapping[str, int | float] = field(default_factory=dict)
    """Fields of train.TrainConfig that differ from its defaults."""
    every: int = 1
    """Train on every so many frames, from each of the first ones on."""
    drops_short: bool = False
    """Whether segments that are shorter than a window are left out, or refused."""


PRESETS = {
    "nano": Preset(
        nano,
        {
            "steps": 1800,
            "evaluate_every": 200,
            "muon_rate": 0.02,
            "weight_decay": 0.2,
            "decay": 0.85,
            "average": 0.995,
            "dropout": 0.1,
            "token_dropout": 0.05,
            "code_dropout": 0.03,
        },
    ),
    "mini": Preset(
        mini,
        {
            "steps": 2400,
            "evaluate_every": 200,
            "muon_rate": 0.02,
            "weight_decay": 0.3,
            "decay": 0.85,
            "average": 0.997,
            "dropout": 0.15,
        },
    ),
    "small": Preset(small),
    "1x": Preset(world_model, {"frames": 16, "held_out": 8}, every=15, drops_short=True),
}
"""1x: frames at 2 Hz, as in the metric of 1X's challenge; held-out frames are the last four seconds of each clip."""
