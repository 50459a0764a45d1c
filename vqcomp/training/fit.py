"""From segments to a .vqm file and the card beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..presets import DEFAULT, PRESETS
from ..runtime.config import ModelConfig
from ..runtime.engine import Engine
from ..runtime.errors import InputError
from ..runtime.exact import make_ops
from ..runtime.gpt import self_test
from ..runtime.main import replacing
from ..runtime.spec import TokenSpec
from ..runtime.weights import read_model, write_model
from ..tokens import Segment
from ..train import Moment, TrainConfig, train
from .card import describe
from .config import parse_settings
from .data import stored


@dataclass(frozen=True)
class Trained:
    """What a training came to: bytes of the .vqm, bits/token on the held-out frames, the step that was best."""

    size: int
    bits_per_token: float
    step: int


@dataclass(frozen=True)
class Start:
    """A model to start from: its name and the bytes of its .vqm."""

    name: str
    data: bytes


def fit(
    segments: Sequence[Segment],
    spec: TokenSpec,
    out: Path,
    settings: Mapping[str, Any],
    *,
    preset: str | None = None,
    init: Start | None = None,
    resume: bool = False,
    device: str = "auto",
    command: str = "",
    report: Callable[[str], None] | None = None,
    watch: Callable[[Moment], None] | None = None,
) -> Trained:
    """Train on segments of one spec; write `out` and, beside it, a card (.md), a log (.csv) and a checkpoint (.ckpt).

    settings: fields of TrainConfig that differ from the preset's. preset: the default, or with `init` the one of its
    network. Raises InputError, ModelError.
    """
    if preset is not None and preset not in PRESETS:
        raise InputError(f"no preset {preset!r}: expected one of {', '.join(PRESETS)}")
    network, tensors = None, None
    if init:
        network, tensors, _ = read_model(init.data)
        _require_fit(init.name, network, spec, preset)
        same = (name for name, p in PRESETS.items() if p.network(spec) == network)
        preset = preset or next(same, DEFAULT)
    chosen = PRESETS[preset or DEFAULT]
    config = TrainConfig(**{**chosen.settings, **parse_settings(settings)})
    with stored(segments, spec, out.parent) as frames:
        result = train(
            frames, network or chosen.network(spec), config, init=tensors, out=out, resume=resume, device=device,
            progress=report, watch=watch,
        )  # fmt: skip
        network, tensors = result.model.export()
        data = write_model(network, tensors, self_test(Engine(network, tensors, make_ops("numpy"))))
        if result.is_first:
            card = describe(out.stem, data, result, config, [s.name for s in segments], command)
            with replacing(out.with_suffix(".md")) as temporary:
                temporary.write_text(card, encoding="utf-8")
            with replacing(out) as temporary:
                temporary.write_bytes(data)
    return Trained(len(data), result.bits_per_token, result.step)


def _require_fit(name: str, network: ModelConfig, spec: TokenSpec, preset: str | None) -> None:
    if network.spec != spec:
        raise InputError(
            f"{name}: it predicts frames of {_describe(network.spec)}, the data have {_describe(spec)}; "
            "start from another model, or from none"
        )
    if preset is not None and PRESETS[preset].network(spec) != network:
        raise InputError(
            f"{name}: its network of {network.parameters():,} weights is not that of the preset {preset}, of "
            f"{PRESETS[preset].network(spec).parameters():,}; leave --preset out, or start from another model"
        )


def _describe(spec: TokenSpec) -> str:
    return f"{spec.height} x {spec.width} tokens of {spec.vocabulary:,} ids"
