"""The networks that `vqcomp train` makes, and how each is trained. The counts of weights are for commaVQ's tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .runtime.config import ModelConfig, Offset
from .runtime.spec import TokenSpec

PAST = 8
"""Past frames that flags and copies look at."""


def small(spec: TokenSpec) -> ModelConfig:
    """A FrameGPT of about 0.7 million weights, as the shipped one. Raises ModelError for grids too large."""
    from .model import default_copies, default_flags  # imports torch, for which --help does not wait

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
    """A FrameGPT of about 0.2 million weights, as the shipped one."""
    return replace(small(spec), dim=64, spatial_heads=1, temporal_heads=1, hidden=256, rank=32)


def mini(spec: TokenSpec) -> ModelConfig:
    """A FrameGPT of about 0.3 million weights, as the shipped one."""
    return replace(small(spec), dim=80, blocks=4, spatial_heads=1, temporal_heads=1, hidden=256)


def base(spec: TokenSpec) -> ModelConfig:
    """A FrameGPT of about 9.4 million weights, for thousands of segments. Raises ModelError for grids too large."""
    config = replace(
        small(spec), dim=384, blocks=5, spatial_heads=3, temporal_heads=3, head_dim=64, hidden=1600, rank=96, window=16
    )
    config.check()
    return config


def large(spec: TokenSpec) -> ModelConfig:
    """A FrameGPT of about 33 million weights, for all of commaVQ. Raises ModelError for grids too large."""
    config = replace(
        small(spec), dim=576, blocks=9, spatial_heads=4, temporal_heads=5, head_dim=64, hidden=2000, rank=128, window=16
    )
    config.check()
    return config


def world_model(spec: TokenSpec) -> ModelConfig:
    """`small` for 1X's metric: it sees all of a window of 16 frames. Raises ModelError for grids too large."""
    return replace(small(spec), window=16)


@dataclass(frozen=True)
class Preset:
    """What to train, and how."""

    about: str
    """What it is for."""
    network: Callable[[TokenSpec], ModelConfig]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of TrainConfig that differ from its defaults."""


_MANY = {
    "frames": 32,
    "held_out": 300,
    "evaluate_every": 1000,
    "patience": 20,
    "learning_rate": 0.02,
    "weight_decay": 0.1,
    "warmup": 500,
    "decay": 0.6,
    "average": 0.999,
    "dropout": 0.0,
    "token_dropout": 0.0,
    "code_dropout": 0.0,
    "reverse": 0.0,
    "mirror": 0.1,
    "stride": 0.1,
}
"""Where data are plenty there is little to fear from learning them by heart. Never run at that scale: a first guess."""

PRESETS = {
    "nano": Preset(
        "0.2 M weights, the shipped commavq-nano",
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
        "0.3 M weights, the shipped commavq-mini",
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
    "small": Preset("0.7 M weights, the shipped commavq-small", small),
    "base": Preset(
        "9.4 M weights, for thousands of segments; untested at scale",
        base,
        {**_MANY, "steps": 40_000, "batch": 16, "accumulate": 8, "muon_rate": 0.01},
    ),
    "large": Preset(
        "33 M weights, for 100,000 segments; untested at scale",
        large,
        {**_MANY, "steps": 100_000, "batch": 16, "accumulate": 16, "muon_rate": 0.007},
    ),
    "1x": Preset(
        "small for 1X's metric, on frames at 2 Hz",
        world_model,
        # The last four seconds of a clip are held out; with many clips, those of some whole clips.
        {"frames": 16, "held_out": 8, "every": 15, "drops_short": True},
    ),
}
DEFAULT = "small"


def preset_for(tokens: int) -> str:
    """The preset whose network so many tokens of commaVQ pay for.

    A megabyte of weights must earn 0.01 bits/token over 5,000 segments of 153,600 tokens. The bounds are guesses from
    that and from what was seen on one segment.
    """
    for name, limit in (("nano", 3_000_000), ("mini", 15_000_000), ("small", 150_000_000), ("base", 3_000_000_000)):
        if tokens < limit:
            return name
    return "large"
