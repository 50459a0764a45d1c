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
from functools import cached_property
from math import prod, sqrt

import numpy as np

from .archive.packing import roots, runtime_archive
from .data.segments import SegmentSource
from .model_files import ModelFile
from .runtime.codec import Codec
from .runtime.compute import Compute
from .runtime.kinds import ADAPTIVE, kind_of, make_codec
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
    """Where the groups are whole, which they are; None where they are the first frames of segments from all over."""
    scale: float
    """What all tokens take, if the sample takes 1."""
    growth: float
    """How many times as long all segments are."""

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

    @cached_property
    def sample(self) -> Sample:
        whole = self.tokens <= WHOLE_TOKENS
        return self._whole_groups() if whole else self._first_frames()

    @cached_property
    def plain(self) -> Estimate:
        """Of the learner alone."""
        codec = make_codec(self.spec, None, compute=self.compute)
        if self.sample.numbers is not None:
            return self._estimate(None, self._coded(codec, None), self._about)
        quarter = self._coded(codec, None, 4)
        return self._estimate(None, self._grown(quarter, self._coded(codec, None)), self._about)

    def by_itself(self, model: ModelFile) -> Estimate:
        """Of a network, from what it takes by itself."""
        sample, windows = self.sample, self.sample.windows
        codec = make_codec(self.spec, model.data, compute=self._light)
        self.progress.begin(f"trying {model.name}", len(windows), sum(prod(w.shape[:2]) for w in windows))
        coded, step = 0, self.compute.batch_size
        for i in range(0, len(windows), step):
            streams = codec.encode([[w] for w in windows[i : i + step]], lambda n: self.progress.advance(0, n))
            coded += sum(map(len, streams))
        self.progress.end()
        codec.close()
        # Frames differ in how much moves, and what moves is what costs.
        alone = coded * _changes(sample.segments) / _changes(windows) * sample.scale
        if not self.adapt:
            return self._estimate(model, alone, "a part of the tokens")
        less, more = sorted((alone, self.plain.payload))
        gain = GAIN / (1 + NARROW * (more / less - 1))
        return self._estimate(model, less * (1 - gain), "the network by itself")

    def in_full(self, models: Sequence[ModelFile]) -> Estimate:
        """Of the best of these networks with learning on top: the others stop after a quarter of the sample."""
        codecs = {m: make_codec(self.spec, m.data, adapt=True, compute=self.compute) for m in models}
        try:
            if self.sample.numbers is not None:
                (model,) = models
                return self._estimate(model, self._coded(codecs[model], model), self._about)
            quarters = {m: self._coded(codecs[m], m, 4) for m in models}
            model = min(models, key=lambda m: quarters[m] + len(m.data))
            return self._estimate(model, self._grown(quarters[model], self._coded(codecs[model], model)), self._about)
        finally:
            for codec in codecs.values():
                codec.close()

    def decoder(self, model: ModelFile | None) -> int:
        """Bytes of the decoder; it needs the learner, too, if other tokens are coded by it whatever the model."""
        kinds = {kind_of(model is not None, self.adapt), *({ADAPTIVE} if self.mixed_specs else ())}
        return len(runtime_archive(roots(kinds, files=False, workers=False)))

    def _whole_groups(self) -> Sample:
        size = self._group_size
        count = -(-len(self.segments) // size)
        numbers = list(range(count))[:: min(WHOLE_SHARE, count)]
        tokens = [s.tokens_of(self.spec) for s in self.segments]
        groups = [tokens[n * size : (n + 1) * size] for n in numbers]
        return Sample(groups, numbers, _changes(tokens) / _changes([s for group in groups for s in group]), 1.0)

    def _first_frames(self) -> Sample:
        # From all over the data, as many segments as the learner codes together: it learns as much as it would.
        least, most = TOKENS
        budget = min(max(least, self.tokens // SHARE), most)
        size = self._group_size
        count = max(1, min(len(self.segments), max(size, 8), budget // self.spec.positions))
        chosen = [self.segments[i * len(self.segments) // count] for i in range(count)]
        frames = -(-budget // (count * self.spec.positions))
        sample = [segment.tokens_of(self.spec)[:frames].copy() for segment in chosen]
        tokens = sum(prod(array.shape[:2]) for array in sample)
        scale = self.tokens / tokens
        growth = scale * count / len(self.segments)
        return Sample([sample[i : i + size] for i in range(0, count, size)], None, scale, max(1.0, growth))

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
        streams = codec.encode(groups, lambda n: self.progress.advance(0, n))
        self.progress.end()
        if self.sample.numbers is not None:
            self.streams[name] = dict(zip(self.sample.numbers, streams, strict=True))
        whole = sum(prod(s.shape[:2]) for s in self.sample.segments)
        return sum(map(len, streams)) * whole / sum(tokens) * self.sample.scale

    def _grown(self, quarter: float, whole: float) -> float:
        """What learns takes a + b / sqrt(n) of each of n tokens, as told from a quarter of the sample and from all."""
        return whole - max(0.0, quarter - whole) * (1 - 1 / sqrt(self.sample.growth))

    def _estimate(self, model: ModelFile | None, payload: float, how: str) -> Estimate:
        return Estimate(_name(model), round(payload), len(model.data) if model else 0, self.decoder(model), how)


def _name(model: ModelFile | None) -> str:
    return model.name if model else "none"


def _changes(segments: Sequence[np.ndarray]) -> int:
    """How many tokens (T, S, F) are not what their position had before."""
    return sum(s.shape[1] + int((s[1:] != s[:-1]).any(-1).sum()) for s in segments)
