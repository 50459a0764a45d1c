"""From segments to a .vqm file and the card beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.segments import SegmentSource
from ..runtime.config import ModelConfig
from ..runtime.disk import replacing
from ..runtime.engine import Engine, Tensors
from ..runtime.errors import InputError
from ..runtime.exact import make_ops
from ..runtime.loading import self_test
from ..runtime.spec import TokenSpec
from ..runtime.weights import read_config, read_model, write_model
from .card import describe
from .config import TrainConfig, parse_settings
from .distributed import find_device
from .feed import usual_held_out
from .frames import stored
from .model import FrameGPT
from .presets import DEFAULT, PRESETS, preset_for
from .record import Moment
from .trainer import train

BY_HEART = {
    "held_out": 0,
    "drops_short": True,
    **dict.fromkeys(("dropout", "token_dropout", "code_dropout", "reverse", "mirror", "stride"), 0.0),
}
"""Settings for a network that will code its own training data: what it knows by heart need not be coded, and is paid
for by its weights."""
CPU_TOKENS = 100_000_000
"""On a CPU the network is chosen for at most so many tokens."""
FINE_TUNING = 0.3
"""Share of a preset's step sizes for a network that has been trained before. Measured: 250 steps from commavq-nano on
the segment that it knows most of took it from 4.248 to 4.048 bits/token, with all of them to 4.184."""


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    size: int
    """Bytes of the .vqm."""
    bits_per_token: float
    """On the held-out frames; in training if none were held out."""
    step: int
    """The step whose weights were the best."""


@dataclass(frozen=True)
class Start:
    """A model to start from: its name and the bytes of its .vqm."""

    name: str
    data: bytes


def fit(
    segments: Sequence[SegmentSource],
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

    settings: fields of TrainConfig that differ from the preset's, see `parse_settings`; without `held_out`, it is what
    the preset says, or less where segments are short. preset: one of PRESETS; by default DEFAULT, or with `init` the
    one of its network, whose step sizes are then taken times FINE_TUNING. Raises InputError, ModelError,
    DependencyError.
    """
    network, config, tensors = _prepare(settings, spec, preset, init)
    config.check()
    if "held_out" not in settings:
        config = replace(config, held_out=usual_held_out([s.frames for s in segments], config))
    with stored(segments, spec, out.parent) as frames:
        result = train(
            frames, network, config, init=tensors, out=out, resume=resume, device=device, progress=report, watch=watch
        )
        data = _coded(result.model)
        if result.is_first:
            card = describe(out.stem, data, result, config, [s.name for s in segments], command)
            with replacing(out.with_suffix(".md")) as temporary:
                temporary.write_text(card, encoding="utf-8")
            with replacing(out) as temporary:
                temporary.write_bytes(data)
    return Trained(len(data), result.bits_per_token, result.step)


def fit_to(
    segments: Sequence[SegmentSource],
    spec: TokenSpec,
    seconds: float,
    start: Start | None,
    folder: Path,
    *,
    device: str = "auto",
    report: Callable[[str], None] | None = None,
    watch: Callable[[Moment], None] | None = None,
) -> bytes:
    """The .vqm of a network that was trained for `seconds` on all of these segments, to code these alone.

    Its size goes by the number of tokens, but on a CPU, where a step of a larger one takes minutes, it is `small` at
    most. It starts from `start` unless that has less than half as many weights. Temporary files are in `folder`.
    Raises InputError, ModelError, DependencyError.
    """
    tokens = sum(s.tokens for s in segments)
    preset = preset_for(tokens if find_device(device).type == "cuda" else min(tokens, CPU_TOKENS))
    wanted = PRESETS[preset].network(spec).parameters()
    if start and 2 * read_config(start.data)[0].parameters() < wanted:
        start = None
    if report:
        report(f"training for {seconds:,.0f} s: {f'starting from {start.name}' if start else f'a new {preset}'}")
    settings = {"time": seconds, "for_segments": float(len(segments)), **BY_HEART}
    network, config, tensors = _prepare(settings, spec, None if start else preset, start)
    if max(s.frames for s in segments) < config.frames:
        raise InputError(f"training: expected a segment of {config.frames} frames or more, found none")
    with stored(segments, spec, folder) as frames:
        result = train(frames, network, config, init=tensors, device=device, progress=report, watch=watch)
    return _coded(result.model)


def _prepare(
    settings: Mapping[str, Any], spec: TokenSpec, preset: str | None, init: Start | None
) -> tuple[ModelConfig, TrainConfig, Tensors | None]:
    """The network, how to train it, and the weights to start from, if any. Raises InputError, ModelError."""
    if preset is not None and preset not in PRESETS:
        raise InputError(f"no preset {preset!r}: expected one of {', '.join(PRESETS)}")
    if init is None:
        chosen = PRESETS[preset or DEFAULT]
        config = TrainConfig(**{**chosen.settings, **parse_settings(settings)})
        return replace(chosen.network(spec), within_frame=config.within_frame), config, None
    network, tensors, _ = read_model(init.data)
    _require_fit(init.name, network, spec, preset)
    settings = {"within_frame": network.within_frame, **parse_settings(settings)}
    if settings["within_frame"] != network.within_frame:
        raise InputError(
            f"{init.name}: its network {'sees' if network.within_frame else 'does not see'} known tokens of the "
            "predicted frame, which no setting changes; leave within_frame out, or start from another model"
        )
    usual = TrainConfig(**PRESETS[preset or _preset_of(network)].settings)
    slower = {name: FINE_TUNING * getattr(usual, name) for name in ("learning_rate", "muon_rate")}
    return network, replace(usual, **{**slower, **parse_settings(settings)}), tensors


def _coded(model: FrameGPT) -> bytes:
    """The .vqm of a trained network."""
    network, tensors = model.export()
    return write_model(network, tensors, self_test(Engine(network, tensors, make_ops("numpy"))))


def _preset_of(network: ModelConfig) -> str:
    """The preset with this network, or the default."""
    network = replace(network, within_frame=False)
    return next((name for name, p in PRESETS.items() if p.network(network.spec) == network), DEFAULT)


def _require_fit(name: str, network: ModelConfig, spec: TokenSpec, preset: str | None) -> None:
    if network.spec != spec:
        raise InputError(
            f"{name}: it predicts frames of {_describe(network.spec)}, the data have {_describe(spec)}; "
            "start from another model, or from none"
        )
    if preset is not None and PRESETS[preset].network(spec) != replace(network, within_frame=False):
        raise InputError(
            f"{name}: its network of {network.parameters():,} weights is not that of the preset {preset}, of "
            f"{PRESETS[preset].network(spec).parameters():,}; leave --preset out, or start from another model"
        )


def _describe(spec: TokenSpec) -> str:
    return f"{spec.height} x {spec.width} tokens of {spec.vocabulary:,} ids"
