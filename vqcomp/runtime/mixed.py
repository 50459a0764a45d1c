"""The codec that learns while it codes, with a trained network's opinion mixed in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

import numpy as np

from .adapt import AdaptiveCodec, Frame, frame_of
from .background import Background
from .codec import lockstep
from .compute import Compute, cpus
from .engine import Engine
from .given import GivenMixer
from .loading import load_engine
from .mixing import Given, TreeMixer
from .spec import TokenSpec
from .tables import weights

Item = TypeVar("Item")

SHARED_ROWS = 512
"""Rows from which on it pays to share an operation among threads: a small one waits longer for a second thread, which
learns meanwhile, than it saves."""
ROWS = 1024
"""Positions that the network predicts at once while encoding, of one frame at least: enough for the full rate of its
products."""


def make(spec: TokenSpec, model: bytes, compute: Compute) -> MixedCodec:
    """The codec for tokens of `spec` by the network in a .vqm and by learning; raises as `load_engine` does."""
    # What learns keeps one thread busy; a network that shares all others' CPUs with it waits for it.
    threads = max(1, (compute.threads or cpus()) - 1)
    return MixedCodec(spec, FramePredictor(load_engine(spec, model, compute._replace(threads=threads))))


def mixers_beside(engine: Engine, segments: int) -> list[GivenMixer]:
    """One for each factor, before the first frame of so many segments."""
    return [GivenMixer(engine.config.spec, f, segments, codes) for f, codes in enumerate(engine.embeddings)]


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Each item, once the next one has been made."""
    made: list[Item] = []
    for item in items:
        yield from made
        made = [item]
    yield from made


class MixedCodec(AdaptiveCodec):
    """It owns a thread, in which the network predicts while the mixers learn, until `close`."""

    def __init__(self, spec: TokenSpec, network: FramePredictor):
        super().__init__(spec)
        self.network, self.background = network, Background()

    def close(self) -> None:
        self.background.close()

    def _mixers(self, segments: int) -> Sequence[TreeMixer]:
        started = self.background.submit(self.network.start, segments)
        mixers = mixers_beside(self.network.engine, segments)
        started.result()  # an error must be heard: the network would go on from another group's state
        return mixers

    def _given(self, before: np.ndarray) -> list[Given | None]:
        return self._parts(self.background.submit(self.network.predict, before[:, None]), 0)

    def _parts(self, prediction: Future[list[np.ndarray]], step: int) -> list[Given | None]:
        """Of each factor, what waits for the weights (G, S, V) of one of the steps that are predicted."""

        def part(factor: int) -> np.ndarray:
            return prediction.result()[factor][:, step]

        return [partial(part, f) for f in range(len(self.spec.factors))]

    def _known_frames(self, segments: list[np.ndarray]) -> Iterator[Frame]:
        before = [np.concatenate([np.full_like(segment[:1], -1), segment[:-1]]) for segment in segments]
        at_once = max(1, ROWS // (len(segments) * self.spec.positions))

        def predictions() -> Iterator[tuple[list[int], int, int, Future[list[np.ndarray]]]]:
            for members, first, steps in lockstep([len(segment) for segment in segments], at_once):
                frames = np.stack([before[i][first : first + steps] for i in members])  # (G, C, S, F)
                yield members, first, steps, self.background.submit(self.network.predict, frames)

        for members, first, steps, prediction in ahead(predictions()):
            for step in range(steps):
                tokens = frame_of(segments, members, first + step)
                yield Frame(members, first + step, tokens, self._parts(prediction, step))


class FramePredictor:
    """A FrameGPT that predicts the next frames of all segments."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def start(self, segments: int) -> None:
        """Go to before the first frame of so many segments."""
        self.state = self.engine.start(segments)

    def predict(self, before: np.ndarray) -> list[np.ndarray]:
        """Each factor's weights (G, C, S, V) of C frames of the first G segments.

        before (G, C, S, F): the frame before each of them, -1 for none.
        """
        ops, shape = self.engine.ops, before.shape[:3]
        self.state.keep(len(before))
        with ops.settings(before[..., 0].size >= SHARED_ROWS):
            return [ops.host(weights(x, ops)).reshape(*shape, -1) for x in self.engine.forward(self.state, before)]
