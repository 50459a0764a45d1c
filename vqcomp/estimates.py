"""What a zip would take with one model or another, told from a sample of its tokens.

The learner alone codes the sample. A network is judged by itself, on windows of the sample, which is many times cheaper
than learning on top of it; what learning saves on top is nearly the same for all networks. The rare network that comes
near the best then codes the sample as the zip would be coded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod, sqrt

import numpy as np

from .archive.packing import roots, runtime_archive
from .data.segments import SegmentSource
from .model_files import ModelFile
from .runtime.codec import Codec
from .runtime.compute import Compute
from .runtime.kinds import ADAPTIVE, choose_kind, make_codec
from .runtime.progress import Progress
from .runtime.spec import TokenSpec

WHOLE_TOKENS = 1 << 19
"""Of fewer tokens whole groups are the sample, since their streams can be kept, and since weights hardly ever pay."""
WHOLE_SHARE = 8
"""Of so many whole groups, one."""
SHARE = 32
TOKENS = (1 << 14, 1 << 19)
"""Of more tokens, a sample is a 32nd, within these bounds."""
WINDOW_FRAMES = 16
WINDOW_TOKENS = 1 << 14
"""A network is judged by itself on so many of the sample's tokens, in windows from all over it."""
GAIN, NARROW = 0.07, 13.0
"""What learning saves on top of a network: a share of what the better of the two takes by itself, which falls as the
other takes more. Fitted to 4 networks on 3 kinds of data, see docs/LOG.md."""


@dataclass(frozen=True)
class Estimate:
    """What a zip would take with one way of coding, in bytes."""

    model: str
    payload: int
    weights: int
    runtime: int
    how: str
    """What it is told from."""

    @property
    def total(self) -> int:
        return self.payload + self.weights + self.runtime


@dataclass(frozen=True)
class Sample:
    """Part of some segments' tokens, which stands for all of them."""

    groups: list[list[np.ndarray]]
    """Of segments (T, S, F) that share a stream."""
    numbers: list[int] | None
    """Where the groups are whole, which they are; None where they are stretches of segments from all over."""
    scale: float
    """What all tokens take, if the sample takes 1."""
    growth: float
    """How many times as long all segments are."""
    changes: float
    """How many of all tokens are not what their position had before, as `_changes`."""

    @property
    def segments(self) -> list[np.ndarray]:
        return [segment for group in self.groups for segment in group]

    @cached_property
    def windows(self) -> list[np.ndarray]:
        """Stretches of frames from all over the sample."""
        segments = self.segments
        positions = segments[0].shape[1]
        count = max(1, WINDOW_TOKENS // (WINDOW_FRAMES * positions))
        chosen = segments[:: -(-len(segments) // count)]
        each = max(1, count // len(chosen))
        windows = []
        for segment in chosen:
            room = max(0, len(segment) - WINDOW_FRAMES)
            starts = {room * (2 * i + 1) // (2 * each) for i in range(each)}
            windows += [segment[start : start + WINDOW_FRAMES] for start in sorted(starts)]
        return windows


class Estimator:
    """Estimates for segments whose tokens are of one spec.

    adapt: whether a model learns while it codes, too. group_size: segments that learn together. mixed_specs: whether
    the zip holds other tokens, too, which are coded by the learner whatever the model.
    """

    def __init__(
        self,
        segments: Sequence[SegmentSource],
        spec: TokenSpec,
        *,
        adapt: bool,
        group_size: int,
        mixed_specs: bool,
        compute: Compute,
        progress: Progress,
    ) -> None:
        self.segments, self.spec, self.adapt, self.mixed_specs = segments, spec, adapt, mixed_specs
        self.group_size, self.compute, self.progress = group_size, compute._replace(jobs=1), progress
        self.tokens = sum(s.tokens for s in segments)
        self.streams: dict[str, dict[int, bytes]] = {}
        """Groups that were coded just as the zip will have them: model -> the group's number -> its stream."""
        self._rates: dict[str, float] = {}

    @cached_property
    def sample(self) -> Sample:
        whole = self.tokens <= WHOLE_TOKENS
        return self._whole_groups() if whole else self._stretches()

    @cached_property
    def plain(self) -> Estimate:
        """Of the learner alone."""
        # First, as the writer does: once it has freed much, the C library's allocator keeps what is freed, which saves
        # a quarter of a million page faults.
        self.decoder(None)
        payload = self._learner
        if self.sample.numbers is None:
            # What learns takes a + b / sqrt(n) of each of n tokens, as told from a quarter of the sample and from all.
            codec = make_codec(self.spec, None, compute=self.compute)
            quarter = self._coded(codec, None, 4)
            payload -= max(0.0, quarter - payload) * (1 - 1 / sqrt(self.sample.growth))
        return self._estimate(None, payload, self._about)

    def by_itself(self, model: ModelFile) -> Estimate:
        """Of a network, from what it takes by itself."""
        alone = self._alone(model) * self.sample.changes
        if not self.adapt:
            return self._estimate(model, alone, "a part of the tokens")
        return self._estimate(model, _with_learning(alone, self.plain.payload), "the network by itself")

    def in_full(self, models: Sequence[ModelFile]) -> Estimate:
        """Of the best of these networks with learning on top: the others stop after a quarter of the sample."""
        sample, codecs = self.sample, {}
        try:
            codecs = {m: make_codec(self.spec, m.data, adapt=True, compute=self.compute) for m in models}
            model = models[0]
            if len(models) > 1:
                quarters = {m: self._coded(codecs[m], m, 4) for m in models}
                model = min(models, key=lambda m: quarters[m] + len(m.data))
            payload = self._coded(codecs[model], model)
            if sample.numbers is None:
                # How far longer segments change that is told by the network and the learner by themselves.
                alone = self._alone(model)
                here = _with_learning(alone * _changes(sample.segments) * sample.scale, self._learner)
                payload *= _with_learning(alone * sample.changes, self.plain.payload) / here
            return self._estimate(model, payload, self._about)
        finally:
            for codec in codecs.values():
                codec.close()

    def decoder(self, model: ModelFile | None) -> int:
        """Bytes of the decoder; it needs the learner, too, if other tokens are coded by it whatever the model."""
        kinds = {choose_kind(model.data if model else None, self.adapt), *({ADAPTIVE} if self.mixed_specs else ())}
        size = len(model.data) if model else 0
        return len(runtime_archive(roots(kinds, files=False, workers=False, model=size)))

    def _whole_groups(self) -> Sample:
        size = self._group_size
        count = -(-len(self.segments) // size)
        numbers = list(range(count))[:: min(WHOLE_SHARE, count)]
        tokens = [s.tokens_of(self.spec) for s in self.segments]
        groups = [tokens[n * size : (n + 1) * size] for n in numbers]
        changes = _changes(tokens)
        return Sample(groups, numbers, changes / _changes([s for group in groups for s in group]), 1.0, changes)

    def _stretches(self) -> Sample:
        # From all over the data, as many segments as the learner codes together: it learns as much as it would.
        least, most = TOKENS
        budget = min(max(least, self.tokens // SHARE), most)
        size, positions = self._group_size, self.spec.positions
        count = max(1, min(len(self.segments), max(size, 8), budget // positions))
        frames = -(-budget // (count * positions))
        sample = []
        for i in range(count):
            segment = self.segments[i * len(self.segments) // count]
            start = max(0, segment.frames - frames) * (2 * i + 1) // (2 * count)
            sample.append(segment.tokens_of(self.spec)[start : start + frames].copy())
        tokens = sum(prod(array.shape[:2]) for array in sample)
        growth = self.tokens / len(self.segments) * count / tokens
        first, first_here = positions * len(self.segments), positions * count
        changes = first + (_changes(sample) - first_here) * (self.tokens - first) / max(1, tokens - first_here)
        groups = [sample[i : i + size] for i in range(0, count, size)]
        return Sample(groups, None, self.tokens / tokens, max(1.0, growth), changes)

    @cached_property
    def _learner(self) -> float:
        """Bytes of all tokens by the learner alone, if it learned no more than in the sample."""
        return self._coded(make_codec(self.spec, None, compute=self.compute), None)

    def _alone(self, model: ModelFile) -> float:
        """Bytes that the network alone takes for each token that changes: frames differ most in how many do."""
        if model.name not in self._rates:
            windows, step = self.sample.windows, self.compute.batch_size
            codec = make_codec(self.spec, model.data, compute=self._light)
            self.progress.begin(f"trying {model.name}", len(windows), sum(prod(w.shape[:2]) for w in windows))
            batches = [[[w] for w in windows[i : i + step]] for i in range(0, len(windows), step)]
            streams = [s for batch in batches for s in codec.encode(batch, partial(self.progress.advance, 0))]
            self.progress.end()
            codec.close()
            self._rates[model.name] = sum(map(len, streams)) / _changes(windows)
        return self._rates[model.name]

    @property
    def _group_size(self) -> int:
        return min(self.group_size, make_codec(self.spec, None, compute=self.compute).group_limit)

    @property
    def _light(self) -> Compute:
        """Not worth starting torch for, where OpenBLAS has been told not to wait for threads."""
        light = "torch" not in sys.modules and os.environ.get("OPENBLAS_NUM_THREADS") == "1"
        return self.compute._replace(device="numpy") if light and self.compute.device == "auto" else self.compute

    @property
    def _about(self) -> str:
        share = 100 / self.sample.scale
        return f"{share:.0f} % of the tokens" if share < 99.5 else "all tokens"

    def _coded(self, codec: Codec, model: ModelFile | None, part: int = 1) -> float:
        """Bytes of all tokens, from the first 1 / part of the sample's frames."""
        groups = [[s[: -(-len(s) // part)] for s in group] for group in self.sample.groups]
        tokens = [prod(s.shape[:2]) for group in groups for s in group]
        name = _name(model)
        self.progress.begin(f"trying {name}", len(tokens), sum(tokens))
        streams = codec.encode(groups, partial(self.progress.advance, 0))
        self.progress.end()
        if self.sample.numbers is not None:
            self.streams[name] = dict(zip(self.sample.numbers, streams, strict=True))
        whole = sum(prod(s.shape[:2]) for s in self.sample.segments)
        return sum(map(len, streams)) * whole / sum(tokens) * self.sample.scale

    def _estimate(self, model: ModelFile | None, payload: float, how: str) -> Estimate:
        return Estimate(_name(model), round(payload), len(model.data) if model else 0, self.decoder(model), how)


def _name(model: ModelFile | None) -> str:
    return model.name if model else "none"


def _with_learning(network: float, learner: float) -> float:
    """What both together take, from what each takes by itself."""
    less, more = sorted((network, learner))
    return less * (1 - GAIN / (1 + NARROW * (more / less - 1)))


def _changes(segments: Sequence[np.ndarray]) -> int:
    """How many tokens (T, S, F) are not what their position had before."""
    return sum(s.shape[1] + int((s[1:] != s[:-1]).any(-1).sum()) for s in segments)
