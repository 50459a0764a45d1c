"""Which model codes which data: all of the choosing.

What the whole zip would take, payload, weights and decoder, is told from a sample of the data: see estimates.py.
A model that can no longer win is not weighed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .data.segments import SegmentSource
from .estimates import Estimate, Estimator
from .model_files import ModelFile, find_models
from .runtime.compute import Compute
from .runtime.errors import DependencyError, InputError, ModelError
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
FLOOR = 2
"""No network is hoped to take less than half of the best payload."""
MARGIN = 1.05
"""Estimates of networks by themselves may be wrong by so much."""
Segments = Mapping[TokenSpec, Sequence[SegmentSource]]
Report = Callable[[str], None]


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
    _estimators: dict[TokenSpec, Estimator] = field(default_factory=dict, init=False, repr=False)

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

    def ready(self, chosen: ModelFile | None) -> dict[TokenSpec, dict[int, bytes]]:
        """Groups of each spec that were coded, when weighing, just as the zip will have them: number -> stream."""
        names = {spec: chosen.name if chosen and chosen.spec == spec else "none" for spec in self._estimators}
        return {spec: estimator.streams.get(names[spec], {}) for spec, estimator in self._estimators.items()}

    def _candidates(self, level: int) -> list[ModelFile]:
        """The shipped models that this level weighs."""
        models, count = sorted(find_models("auto"), key=lambda m: len(m.data)), LEVELS[level].models
        chosen = []
        for spec in self.segments:
            chosen += [m for m in models if m.spec == spec][:count]
        return chosen

    def _smallest(self, models: Sequence[ModelFile], train: float | None, folder: Path) -> ModelFile | None:
        chosen, estimates = self.weigh(models)
        if train is not None:
            totals = {e.model: e.total for e in estimates}
            own = self._train(chosen, [m for m in models if m.name in totals], totals, train, folder)
            mine, more = self.weigh(own)
            estimates += [e for e in more if e.model not in totals]
            if mine and (not chosen or more[-1].total < totals[chosen.name]):
                chosen = mine
        for line in _table(estimates):
            self.report(line)
        if not any(m.spec in self.segments for m in find_models("auto")):
            self.report("no shipped model fits these tokens")
        return chosen

    def weigh(self, models: Sequence[ModelFile]) -> tuple[ModelFile | None, list[Estimate]]:
        """The model that makes the whole zip smallest, or None for no network, and the estimates behind it.

        An archive holds one model, since a model fits one spec.
        """
        best, gain, estimates = None, 0, []
        for spec in dict.fromkeys(m.spec for m in models if m.spec in self.segments):
            fitting = sorted((m for m in models if m.spec == spec), key=lambda m: len(m.data))
            # Where the weights alone take more than the raw tokens there is nothing to weigh, not even the learner.
            light = [m for m in fitting if len(m.data) < self._raw_bytes(spec)]
            for model in fitting[len(light) :]:
                self.report(f"{model.name} was not weighed: its weights alone take more than the raw tokens")
            if light:
                winner, found = self._race(self._estimator(spec), light)
                estimates += found
                totals = {e.model: e.total for e in found}
                if winner and totals["none"] - totals[winner.name] > gain:
                    best, gain = winner, totals["none"] - totals[winner.name]
        return best, estimates

    def _race(self, estimator: Estimator, models: Sequence[ModelFile]) -> tuple[ModelFile | None, list[Estimate]]:
        """The best of the models for one spec, smallest first, or None; and the estimates, the learner's first."""
        plain = best = estimator.plain
        found: dict[ModelFile, Estimate] = {}
        for model in models:
            if len(model.data) + estimator.decoder(model) + best.payload // FLOOR >= best.total:
                self.report(f"{model.name} was not weighed: to pay for its weights it would have to halve the payload")
                continue
            found[model] = estimator.by_itself(model)
            best = min(best, found[model], key=lambda e: e.total)
        if self.adapt and found:
            # Those by themselves near the best: what learning saves on top of them is measured, not assumed.
            if estimator.sample.numbers is not None:
                near = [m for m, e in found.items() if e is best]
            else:
                near = [m for m, e in found.items() if e.total <= MARGIN * best.total]
            if near:
                final = estimator.in_full(near)
                found.update({m: final for m in near if m.name == final.model})
                near = [m for m in near if m.name == final.model]
        else:
            near = list(found)
        winner = min(near, key=lambda m: found[m].total, default=None)
        if winner and found[winner].total >= plain.total:
            winner = None
        return winner, [plain, *found.values()]

    def _estimator(self, spec: TokenSpec) -> Estimator:
        if spec not in self._estimators:
            self._estimators[spec] = Estimator(
                self.segments[spec],
                spec,
                adapt=self.adapt,
                group_size=self.group_size,
                mixed_specs=len(self.segments) > 1,
                compute=self.compute,
                progress=self.progress,
            )
        return self._estimators[spec]

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
        yield f"{'model':24}{'payload':>15}{'weights':>13}{'runtime':>10}{'zip, estimated':>18}  from"
    for e in estimates:
        yield f"{e.model:24}{e.payload:15,}{e.weights:13,}{e.runtime:10,}{e.total:18,}  {e.how}"
