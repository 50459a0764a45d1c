"""How a model is trained: every choice that changes the result, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..runtime.errors import InputError

MANY_SEGMENTS = 20
"""From so many segments on, whole ones are held out."""
HELD_OUT_LIMIT = 32
"""Segments that are held out at most."""


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. The defaults are for one segment: they learn fast, then stop before they overfit."""

    steps: int = 1500
    """Optimiser steps; with a time budget it is the clock that ends the training."""
    time: float = 0.0
    """Seconds that training takes, evaluations included; the step size then falls with the clock. 0 to count steps."""
    batch: int = 1
    """Windows in a micro-batch."""
    accumulate: int = 1
    """Micro-batches in a step, whose gradients are averaged; several processes share them among themselves."""
    frames: int = 16
    """Frames in a window."""
    every: int = 1
    """Only every so many frames are seen, counted from any of them."""
    drops_short: bool = False
    """Whether segments that are too short are left out, or refused."""
    held_out: int = 300
    """Frames at the end of every segment that choose the weights and are not trained on; 0 trains on all of them."""
    held_out_share: float = 0.05
    """Share of the segments, if there are 20 or more, that are not trained on at all, up to 32; then it is their last
    `held_out` frames alone that choose the weights. 0 never holds out a whole segment."""
    evaluate_every: int = 150
    """Steps between evaluations on the held-out frames; a tenth of a time budget, where there is one."""
    patience: int = 0
    """Evaluations in a row without a better result that end the training; 0 for no such end."""
    for_segments: float = 0.0
    """Segments, as long as these are on average, that the model will serve: the coded size of the weights is added to
    the loss by what it costs each of their tokens, and the smallest zip is chosen. 0 to look at the tokens alone."""
    learning_rate: float = 0.03
    """Peak step size of AdamW, for everything that Muon does not train."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay of its two averages."""
    weight_decay: float = 0.25
    """Decoupled weight decay of all tensors but the biases."""
    muon_rate: float = 0.01
    """Peak step size of Muon for the matrices of the blocks, 0 to leave them to AdamW."""
    warmup: int = 40
    """Steps in which the step size rises from 0."""
    decay: float = 0.9
    """Last share of the training, in which the step size falls to 0."""
    average: float = 0.99
    """Decay of the moving average of the weights; the average is what is evaluated and returned."""
    clip: float = 1.0
    """Largest norm of a gradient."""
    dropout: float = 0.17
    """Share of the residual updates that are dropped."""
    token_dropout: float = 0.08
    """Share of input tokens whose identity is hidden."""
    code_dropout: float = 0.05
    """Share of codes whose identity is hidden wherever they are in a window."""
    reverse: float = 0.1
    """Share of windows that run backwards."""
    mirror: float = 0.2
    """Share of windows that are flipped left to right, codes kept."""
    stride: float = 0.25
    """Share of windows that take every second frame."""
    quantised: bool = True
    """Train with the integer arithmetic that is shipped; False only to measure what it costs."""
    compile: bool = False
    """Whether torch.compile makes kernels of the network; worth its start-up of minutes on GPUs only."""
    seed: int = 0
    """Seed of everything that is random: initial weights, windows, dropout."""

    def check(self) -> None:
        """Raise InputError unless every value can be worked with."""
        for name in ("steps", "batch", "accumulate", "frames", "every", "evaluate_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("time", "held_out", "patience", "for_segments", "warmup", "seed", "weight_decay", "muon_rate"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("held_out_share", "average", "dropout", "token_dropout", "code_dropout"):
            self._require(name, 0 <= getattr(self, name) < 1, "from 0 to below 1")
        for name in ("reverse", "mirror", "stride", "decay"):
            self._require(name, 0 <= getattr(self, name) <= 1, "from 0 to 1")
        for name in ("learning_rate", "clip"):
            self._require(name, getattr(self, name) > 0, "above 0")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InputError(f"training: {name} must be {expected}, found {getattr(self, name)}")

    @property
    def windows(self) -> int:
        """Windows in a step."""
        return self.batch * self.accumulate

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field, for JSON and for checkpoints."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    def changes(self) -> dict[str, Any]:
        """The fields that differ from the defaults."""
        usual = TrainConfig().to_dict()
        return {name: value for name, value in self.to_dict().items() if value != usual[name]}


def parse_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of TrainConfig, from texts too, as in {"dropout": "0.1", "betas": "0.9,0.95"}. Raises InputError."""
    usual = {f.name: getattr(TrainConfig(), f.name) for f in fields(TrainConfig)}
    settings: dict[str, Any] = {}
    for name, text in values.items():
        if name not in usual:
            raise InputError(f"training: no setting {name!r}: expected one of {', '.join(usual)}")
        if not isinstance(text, str):
            settings[name] = text
            continue
        kind = type(usual[name])
        try:
            if kind is bool:
                settings[name] = {"true": True, "false": False}[text.lower()]
            elif kind is tuple:
                settings[name] = tuple(float(part) for part in text.split(","))
                if len(settings[name]) != 2:
                    raise ValueError
            else:
                settings[name] = kind(text)
        except (ValueError, KeyError) as error:
            raise InputError(f"training: {name}={text}: expected a value like {usual[name]}") from error
    return settings
