"""How a model is trained: every choice that changes the result, and nothing else. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import inf
from textwrap import wrap
from typing import Any, TypeVar

from ..runtime.errors import InputError

MANY_SEGMENTS = 20
"""From so many segments on, whole ones are held out."""
HELD_OUT_LIMIT = 32
"""Segments that are held out at most."""
T = TypeVar("T")


def _setting(default: T, about: str) -> T:
    """A field with its meaning, which `vqcomp train --help` prints."""
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. The defaults are for one segment: they learn fast, then stop before they overfit."""

    steps: int = _setting(1500, "Optimiser steps; with a time budget the clock ends the training.")
    time: float = _setting(
        0.0,
        "Seconds that training takes, evaluations included; the step size then falls with the clock. 0 counts steps.",
    )
    batch: int = _setting(1, "Windows in a micro-batch.")
    accumulate: int = _setting(
        1, "Micro-batches in a step, whose gradients are averaged; several processes share them among themselves."
    )
    frames: int = _setting(16, "Frames in a window.")
    every: int = _setting(1, "See only every so many frames, counted from any of them.")
    drops_short: bool = _setting(False, "Leave out segments that are too short, instead of refusing them.")
    held_out: int = _setting(
        300,
        "Frames at the end of every segment that choose the weights and are not trained on; 0 trains on all. Unless it "
        "is given, at most a quarter of the shortest segment.",
    )
    held_out_share: float = _setting(
        0.05,
        f"Share of the segments, if there are {MANY_SEGMENTS} or more, that are not trained on at all, up to "
        f"{HELD_OUT_LIMIT}; their last held_out frames alone choose the weights then. 0 holds out no whole one.",
    )
    evaluate_every: int = _setting(150, "Steps between evaluations on the held-out frames; of a time budget, a tenth.")
    patience: int = _setting(0, "End after so many evaluations in a row without a better result; 0 never does.")
    for_segments: float = _setting(
        0.0,
        "Segments, as long as these are on average, that the model will serve: the loss counts what the coded weights "
        "cost each of their tokens, and the smallest zip is chosen. 0 looks at the tokens alone.",
    )
    learning_rate: float = _setting(0.03, "Peak step size of AdamW, for everything that Muon does not train.")
    betas: tuple[float, float] = _setting((0.9, 0.95), "AdamW's decay of its two averages.")
    weight_decay: float = _setting(0.25, "Decoupled weight decay of all tensors but the biases.")
    muon_rate: float = _setting(0.01, "Peak step size of Muon for the matrices of the blocks; 0 leaves them to AdamW.")
    warmup: int = _setting(40, "Steps in which the step size rises from 0.")
    decay: float = _setting(0.9, "Last share of the training, in which the step size falls to 0.")
    average: float = _setting(
        0.99, "Decay of the moving average of the weights; the average is what is evaluated and returned."
    )
    clip: float = _setting(1.0, "Largest norm of a gradient.")
    dropout: float = _setting(0.17, "Share of the residual updates that are dropped.")
    token_dropout: float = _setting(0.08, "Share of input tokens whose identity is hidden.")
    code_dropout: float = _setting(0.05, "Share of codes whose identity is hidden wherever they are in a window.")
    reverse: float = _setting(0.1, "Share of windows that run backwards.")
    mirror: float = _setting(0.2, "Share of windows that are flipped left to right, codes kept.")
    stride: float = _setting(0.25, "Share of windows that take every second frame.")
    within_frame: bool = _setting(
        False,
        "Train a network that also sees those tokens of the predicted frame that are known already, for `vqcomp "
        "imagine --steps`: a random part of them is shown.",
    )
    quantised: bool = _setting(
        True, "Train with the integer arithmetic that is shipped; false only measures what it costs."
    )
    compile: bool = _setting(
        False, "Let torch.compile make kernels of the network; worth its start-up of minutes on GPUs only."
    )
    seed: int = _setting(0, "Seed of everything that is random: initial weights, windows, dropout.")

    def check(self) -> None:
        """Raise InputError unless every value can be worked with."""
        for name in ("steps", "batch", "accumulate", "frames", "every", "evaluate_every"):
            self._require(name, 1 <= getattr(self, name) < inf, "at least 1")
        for name in ("time", "held_out", "patience", "for_segments", "warmup", "seed", "weight_decay", "muon_rate"):
            self._require(name, 0 <= getattr(self, name) < inf, "at least 0")
        for name in ("held_out_share", "average", "dropout", "token_dropout", "code_dropout"):
            self._require(name, 0 <= getattr(self, name) < 1, "from 0 to below 1")
        for name in ("reverse", "mirror", "stride", "decay"):
            self._require(name, 0 <= getattr(self, name) <= 1, "from 0 to 1")
        for name in ("learning_rate", "clip"):
            self._require(name, 0 < getattr(self, name) < inf, "above 0")
        self._require("betas", all(0 <= beta < 1 for beta in self.betas), "two numbers from 0 to below 1")
        self._require("seed", self.seed < 1 << 63, "below 2^63")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InputError(f"training: {name} must be {expected}, found {_text(getattr(self, name))}")

    @property
    def windows(self) -> int:
        """Windows in a step."""
        return self.batch * self.accumulate

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field, for JSON and for checkpoints."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        if not self.within_frame:
            del values["within_frame"]  # as checkpoints have it that were written before there was such
        return values


def describe_settings() -> str:
    """The fields of TrainConfig for `--help`: name=default, then what it means, in lines of at most 76 characters."""
    lines = []
    for f in fields(TrainConfig):
        about = wrap(f.metadata["about"], 74 - 24)
        head = f"{f.name}={_text(f.default)}"
        lines += [f"  {head:22}  {about[0]}", *(" " * 26 + line for line in about[1:])]
    return "\n".join(lines)


def parse_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of TrainConfig, from texts too, as in {"dropout": "0.1", "betas": "0.9,0.95"}. Raises InputError."""
    usual = {f.name: f.default for f in fields(TrainConfig)}
    settings: dict[str, Any] = {}
    for name, text in values.items():
        if name not in usual:
            raise InputError(f"training: no setting {name!r}: expected one of {', '.join(usual)}")
        settings[name] = _parsed(name, text, usual[name]) if isinstance(text, str) else text
    return settings


def _parsed(name: str, text: str, usual: Any) -> Any:
    """A value of the kind of the usual one. Raises InputError."""
    try:
        if isinstance(usual, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(usual, tuple):
            first, second = (float(part) for part in text.split(","))
            return first, second
        return type(usual)(text)
    except (ValueError, KeyError) as error:
        raise InputError(f"training: {name}={text}: expected a value like {_text(usual)}") from error


def _text(value: Any) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, tuple | list):
        return ",".join(_text(part) for part in value)
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
