"""The networks that `vqcomp train` makes, and how each is trained. The counts of weights are for commaVQ's tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ..runtime.config import ModelConfig, Offset
from ..runtime.spec import TokenSpec
from .offsets import default_copies, default_flags

PAST = 8
"""Past frames that flags and copies look at."""


def network(spec: TokenSpec, /, **sizes: int) -> ModelConfig:
    """A FrameGPT of about 0.7 million weights, but for the fields given. Raises ModelError for grids too large."""

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
    config = replace(config, **sizes)  # type: ignore[arg-type]
    config.check()
    return config


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

_ONE_SEGMENT = {"evaluate_every": 200, "muon_rate": 0.02, "decay": 0.85}
_THINNEST = {
    **_ONE_SEGMENT,
    "steps": 1800,
    "weight_decay": 0.2,
    "average": 0.995,
    "dropout": 0.1,
    "token_dropout": 0.05,
    "code_dropout": 0.03,
}
_DEEPER = {**_ONE_SEGMENT, "steps": 2400, "weight_decay": 0.3, "average": 0.997, "dropout": 0.15}
_THIN = {"spatial_heads": 1, "temporal_heads": 1}

PRESETS = {
    "pico": Preset(
        "0.06 M weights, the shipped commavq-pico",
        partial(network, **_THIN, dim=32, blocks=2, hidden=128, rank=16),
        _THINNEST,
    ),
    "nano": Preset(
        "0.2 M weights, the shipped commavq-nano",
        partial(network, **_THIN, dim=64, hidden=256, rank=32),
        _THINNEST,
    ),
    "mini": Preset(
        "0.3 M weights, the shipped commavq-mini",
        partial(network, **_THIN, dim=80, blocks=4, hidden=256),
        _DEEPER,
    ),
    "small": Preset(
        "0.9 M weights, the shipped commavq-small",
        partial(network, **_THIN, dim=96, blocks=8, hidden=384),
        _DEEPER,
    ),
    "base": Preset(
        "9.4 M weights, for thousands of segments; untested at scale",
        partial(
            network, dim=384, blocks=5, spatial_heads=3, temporal_heads=3, head_dim=64, hidden=1600, rank=96, window=16
        ),
        {**_MANY, "steps": 40_000, "batch": 16, "accumulate": 8, "muon_rate": 0.01},
    ),
    "large": Preset(
        "33 M weights, for 100,000 segments; untested at scale",
        partial(
            network, dim=576, blocks=9, spatial_heads=4, temporal_heads=5, head_dim=64, hidden=2000, rank=128, window=16
        ),
        {**_MANY, "steps": 100_000, "batch": 16, "accumulate": 16, "muon_rate": 0.007},
    ),
    "1x": Preset(
        "0.7 M weights for 1X's metric, on frames at 2 Hz",
        # It sees all of a window of 16 frames.
        partial(network, window=16),
        # The last four seconds of a clip are held out; with many clips, those of some whole clips.
        {"frames": 16, "held_out": 8, "every": 15, "drops_short": True},
    ),
}
DEFAULT = "mini"


def preset_for(tokens: int) -> str:
    """The preset whose network so many tokens of commaVQ pay for.

    A megabyte of weights must earn 0.01 bits/token over 5,000 segments of 153,600 tokens. The bounds are guesses from
    that and from what was seen on one segment.
    """
    limits = {"pico": 3e6, "nano": 15e6, "mini": 150e6, "small": 600e6, "base": 3e9}
    for name, limit in limits.items():
        if tokens < limit:
            return name
    return "large"
