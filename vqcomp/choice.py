"""Which model codes which tokens: the shipped models, and the choice of what makes the whole zip smallest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from pathlib import Path

from .archive.writer import runtime_archive
from .data import hub
from .data.segments import SegmentSource
from .runtime.codec import make_codec
from .runtime.errors import InputError, ModelError, VqcompError
from .runtime.main import Reporter
from .runtime.spec import TokenSpec
from .runtime.weights import read_config

SAMPLE_SHARE = 16
SAMPLE_TOKENS = (1 << 16, 1 << 20)
"""A sample is a 16th of the data, within these bounds: what learns as it codes looks worse on short samples."""


@dataclass(frozen=True)
class Model:
    """A model file: its name, its bytes (.vqm), and the tokens that it predicts."""

    name: str
    data: bytes = field(repr=False)
    spec: TokenSpec


@dataclass(frozen=True)
class Estimate:
    """What a zip would take with one way of coding, in bytes; extrapolated from a sample."""

    model: str
    payload: int
    weights: int
    runtime: int

    @property
    def total(self) -> int:
        return self.payload + self.weights + self.runtime


def models_folder() -> Path:
    """Where the shipped models lie: in the package if installed from a wheel, else at the top of the checkout."""
    inside = Path(__file__).parent / "models"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "models"


@lru_cache
def shipped_models() -> Mapping[str, Model]:
    """Every shipped model by name."""
    return {path.stem: read_model_file(path) for path in sorted(models_folder().glob("*.vqm"))}


def read_model_file(path: Path) -> Model:
    """Raises ModelError, naming the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return Model(path.stem, data, read_config(data)[0].spec)
    except VqcompError as error:
        raise ModelError(f"{path}: {error}") from error


def find_models(choice: str | os.PathLike[str]) -> list[Model]:
    """The candidates for "auto" (all that ship), "none", the name of a shipped model, the path of a .vqm or hf://...

    Raises ModelError.
    """
    name = os.fspath(choice)
    if name == "none":
        return []
    if name == "auto":
        return list(shipped_models().values())
    if name in shipped_models():
        return [shipped_models()[name]]
    if name.startswith(hub.SCHEME):
        return [read_model_file(hub.local(name, "model"))]
    if not Path(name).is_file():
        names = ", ".join(["auto", "none", *shipped_models()])
        raise ModelError(f"no model {name!r}: expected one of {names}, the path of a .vqm file or hf://...")
    return [read_model_file(Path(name))]


def model_name(sha256: str) -> str | None:
    """Name of the shipped model with this hash, if there is one."""
    return next((m.name for m in shipped_models().values() if hashlib.sha256(m.data).hexdigest() == sha256), None)


def choose(
    models: Sequence[Model],
    segments: Mapping[TokenSpec, Sequence[SegmentSource]],
    *,
    adapt: bool,
    device: str,
    threads: int | None,
    progress: Reporter,
) -> tuple[Model | None, list[Estimate]]:
    """The model that makes the whole zip smallest, or None for no network, and the estimates behind it.

    Codes a sample of the segments of each spec that a model fits, by the model and by the adaptive codec, and
    extrapolates; weights and runtime are counted. An archive holds one model, since a model fits one spec.
    """
    best, gain, estimates = None, 0, []
    # Where the weights alone take more than the raw tokens there is nothing to weigh.
    models = [m for m in models if m.spec in segments and len(m.data) < _raw_bytes(segments[m.spec], m.spec)]
    for spec in dict.fromkeys(m.spec for m in models):
        # What else the archive needs: the adaptive codec, if some tokens are coded by it whatever the model.
        others = {"adaptive"} if len(segments) > 1 else set()
        plain = Estimate("none", *_cost(segments[spec], spec, None, adapt, others, device, threads, progress))
        estimates.append(plain)
        for model in (m for m in models if m.spec == spec):
            coded = Estimate(model.name, *_cost(segments[spec], spec, model, adapt, others, device, threads, progress))
            estimates.append(coded)
            if plain.total - coded.total > gain:
                best, gain = model, plain.total - coded.total
    return best, estimates


def _raw_bytes(segments: Sequence[SegmentSource], spec: TokenSpec) -> int:
    return sum(s.tokens for s in segments) * (spec.vocabulary - 1).bit_length() // 8


def _cost(
    segments: Sequence[SegmentSource],
    spec: TokenSpec,
    model: Model | None,
    adapt: bool,
    others: set[str],
    device: str,
    threads: int | None,
    progress: Reporter,
) -> tuple[int, int, int]:
    """(payload, weights, runtime) in bytes."""
    data = model.data if model else None
    codec = make_codec(spec, data, adapt=adapt, device=device, threads=threads)
    # From all over the data, as many segments as the adaptive codec codes together: it learns as much as it would.
    count = min(len(segments), 8)
    chosen = [segments[i * len(segments) // count] for i in range(count)]
    least, most = SAMPLE_TOKENS
    budget = min(max(least, sum(s.tokens for s in segments) // SAMPLE_SHARE), most)
    frames = -(-budget // (count * spec.positions))
    sample = [segment.tokens_of(spec)[:frames] for segment in chosen]
    groups = [sample[i : i + codec.group_size] for i in range(0, count, codec.group_size)]
    tokens = sum(prod(array.shape[:2]) for array in sample)
    progress.begin(f"trying {model.name if model else 'none'}", count, tokens)
    coded = sum(len(s) for s in codec.encode(groups, lambda n: progress.advance(0, n // len(spec.factors))))
    progress.end()
    payload = coded * sum(s.tokens for s in segments) // tokens
    return payload, len(data or b""), len(runtime_archive(frozenset(others | {codec.name})))


def require_fit(model: Model, segments: Mapping[TokenSpec, Sequence[SegmentSource]]) -> None:
    """Raise InputError if no segment has tokens that the model predicts."""
    if model.spec not in segments:
        found = ", ".join(f"{s.height}x{s.width} of {s.vocabulary} ids" for s in segments)
        want = f"{model.spec.height}x{model.spec.width} of {model.spec.vocabulary} ids"
        raise InputError(f"model {model.name}: it predicts frames of {want}, the data have {found}; use --model auto")
