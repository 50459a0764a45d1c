"""Which model codes which data: all of the choosing.

Each candidate codes a sample of the data, which tells what the whole zip would take: payload, weights and decoder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from .archive.packing import roots, runtime_archive
from .data.segments import SegmentSource
from .model_files import ModelFile, find_models
from .runtime.compute import Compute
from .runtime.errors import DependencyError, InputError, ModelError
from .runtime.kinds import ADAPTIVE, Kind, choose_kind, make_codec
from .runtime.progress import Progress
from .runtime.spec import TokenSpec
from .training import torch_ready

if TYPE_CHECKING:
    from .training.record import Moment


@dataclass(frozen=True)
class Level:
    """How much work --model auto does."""

    models: int | None
    """How many of the shipped models that fit are weighed, the smallest first; None for all."""
    group_size: int
    """Segments that learn together."""


LEVELS = {
    1: Level(0, 8),
    2: Level(0, 16),
    3: Level(0, 32),
    4: Level(2, 8),
    5: Level(3, 8),
    6: Level(None, 8),
    7: Level(None, 16),
    8: Level(None, 32),
    9: Level(None, 64),
}
"""From fast to small."""
LEVEL = 6
SAMPLE_SHARE = 16
SAMPLE_TOKENS = (1 << 16, 1 << 20)
"""A sample is a 16th of the data, within these bounds: what learns as it codes looks worse on short samples."""
SEGMENT_TOKENS = 1 << 13
"""Of a segment in the sample, at least: a large group of short pieces would look worse than it is, too."""
Segments = Mapping[TokenSpec, Sequence[SegmentSource]]
Report = Callable[[str], None]


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


@dataclass(frozen=True)
class Chooser:
    """Chooses among models for these segments, by spec.

    adapt: whether a model learns while it codes, too. group_size: segments that learn together.
    """

    segments: Segments
    adapt: bool
    group_size: int
    compute: Compute
    progress: Progress
    report: Report

    def choose(
        self,
        wanted: str | os.PathLike[str] | ModelFile,
        level: int = LEVEL,
        train: float | None = None,
        folder: Path = Path(),
    ) -> ModelFile | None:
        """The model that `wanted` names or, for "auto", the one that makes the zip smallest; None for no network.

        level: see LEVELS. train: with "auto", seconds in which a network is trained on these very data; it is weighed,
        too. Its temporary files are in `folder`. Raises InputError, ModelError.
        """
        if isinstance(wanted, ModelFile):
            chosen: ModelFile | None = wanted
            self._require_fit(wanted)
        elif os.fspath(wanted) == "auto":
            chosen = self._smallest(self._candidates(level), train, folder)
        else:
            chosen = next(iter(find_models(wanted)), None)
            if chosen:
                self._require_fit(chosen)
        self.report(f"model: {chosen.name if chosen else 'none'}")
        return chosen

    def _candidates(self, level: int) -> list[ModelFile]:
        """The shipped models that this level weighs."""
        models, count = sorted(find_models("auto"), key=lambda m: len(m.data)), LEVELS[level].models
        chosen = []
        for spec in self.segments:
            chosen += [m for m in models if m.spec == spec][:count]
        return chosen

    def _smallest(self, models: Sequence[ModelFile], train: float | None, folder: Path) -> ModelFile | None:
        chosen, estimates = self.weigh(models)
        weighed = list(models)
        if train is not None:
            totals = {e.model: e.total for e in estimates}
            own = self._train(chosen, [m for m in models if m.name in totals], totals, train, folder)
            mine, more = self.weigh(own)
            estimates += [e for e in more if e.model not in totals]
            weighed += own
            if mine and (not chosen or more[-1].total < totals[chosen.name]):
                chosen = mine
        for line in _table(estimates):
            self.report(line)
        for name in sorted({m.name for m in weighed if m.spec in self.segments} - {e.model for e in estimates}):
            self.report(f"{name} was not weighed: its weights alone take more than the raw tokens")
        if not any(m.spec in self.segments for m in find_models("auto")):
            self.report("no shipped model fits these tokens")
        return chosen

    def weigh(self, models: Sequence[ModelFile]) -> tuple[ModelFile | None, list[Estimate]]:
        """The model that makes the whole zip smallest, or None for no network, and the estimates behind it.

        An archive holds one model, since a model fits one spec.
        """
        best, gain, estimates = None, 0, []
        # Where the weights alone take more than the raw tokens there is nothing to weigh.
        models = [m for m in models if m.spec in self.segments and len(m.data) < self._raw_bytes(m.spec)]
        for spec in dict.fromkeys(m.spec for m in models):
            plain = self._estimate(spec, None)
            estimates.append(plain)
            for model in (m for m in models if m.spec == spec):
                coded = self._estimate(spec, model)
                estimates.append(coded)
                if plain.total - coded.total > gain:
                    best, gain = model, plain.total - coded.total
        return best, estimates

    def _estimate(self, spec: TokenSpec, model: ModelFile | None) -> Estimate:
        segments, name, data = self.segments[spec], model.name if model else "none", model.data if model else None
        codec = make_codec(spec, data, adapt=self.adapt, compute=self.compute._replace(jobs=1))
        # From all over the data, as many segments as the adaptive codec codes together: it learns as much as it would.
        size = min(self.group_size, codec.group_limit)
        count = min(len(segments), max(size, 8))
        chosen = [segments[i * len(segments) // count] for i in range(count)]
        least, most = SAMPLE_TOKENS
        budget = min(max(least, SEGMENT_TOKENS * count, sum(s.tokens for s in segments) // SAMPLE_SHARE), most)
        frames = -(-budget // (count * spec.positions))
        sample = [segment.tokens_of(spec)[:frames] for segment in chosen]
        groups = [sample[i : i + size] for i in range(0, count, size)]
        tokens = sum(prod(array.shape[:2]) for array in sample)
        self.progress.begin(f"trying {name}", count, tokens)
        coded = sum(len(s) for s in codec.encode(groups, lambda n: self.progress.advance(0, n)))
        self.progress.end()
        codec.close()
        payload = coded * sum(s.tokens for s in segments) // tokens
        return Estimate(name, payload, len(data or b""), self._runtime(choose_kind(data, self.adapt)))

    def _runtime(self, kind: Kind) -> int:
        """Bytes of the decoder; it needs the learner, too, if other tokens are coded by it whatever the model."""
        kinds = {kind, ADAPTIVE} if len(self.segments) > 1 else {kind}
        return len(runtime_archive(roots(kinds, files=False, workers=False)))

    def _raw_bytes(self, spec: TokenSpec) -> int:
        return sum(s.tokens for s in self.segments[spec]) * spec.bits // 8

    def _train(
        self,
        chosen: ModelFile | None,
        models: Sequence[ModelFile],
        totals: Mapping[str, int],
        seconds: float,
        folder: Path,
    ) -> list[ModelFile]:
        """A network that was trained on the data; none if that fails, which is no reason not to compress them.

        It starts from the model with the smallest estimate, unless the data pay for a much larger network.
        """
        by_tokens = {spec: sum(s.tokens for s in segments) for spec, segments in self.segments.items()}
        spec = chosen.spec if chosen else max(by_tokens, key=lambda spec: by_tokens[spec])
        start = min((m for m in models if m.spec == spec), key=lambda m: totals[m.name], default=None)
        tokens, done = by_tokens[spec], 0

        def watch(moment: Moment) -> None:
            nonlocal done
            self.progress.advance(0, int(moment.done * tokens) - done)
            done = int(moment.done * tokens)

        self.progress.begin("training", len(self.segments[spec]), tokens)
        try:
            with torch_ready(self.compute.threads):
                from .training.fit import Start, fit_to

                data = fit_to(
                    self.segments[spec],
                    spec,
                    seconds,
                    Start(start.name, start.data) if start else None,
                    folder,
                    device="cpu" if self.compute.device == "numpy" else self.compute.device,
                    report=self.report,
                    watch=watch,
                )
        except (InputError, ModelError, DependencyError) as error:
            self.report(f"no network was trained on the data: {error}")
            return []
        finally:
            self.progress.end()
        return [ModelFile("trained on the data", data, spec)]

    def _require_fit(self, model: ModelFile) -> None:
        """Raise InputError if no segment has tokens that the model predicts."""
        if model.spec not in self.segments:
            found = ", ".join(f"{s.height}x{s.width} of {s.vocabulary} ids" for s in self.segments)
            want = f"{model.spec.height}x{model.spec.width} of {model.spec.vocabulary} ids"
            raise InputError(
                f"model {model.name}: it predicts frames of {want}, the data have {found}; use --model auto"
            )


def _table(estimates: Sequence[Estimate]) -> Iterator[str]:
    if estimates:
        yield f"{'model':24}{'payload':>15}{'weights':>13}{'runtime':>10}{'zip, estimated':>18}"
    for e in estimates:
        yield f"{e.model:24}{e.payload:15,}{e.weights:13,}{e.runtime:10,}{e.total:18,}"
