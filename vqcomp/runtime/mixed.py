"""The codec that learns while it codes, with a trained network's opinion mixed in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import partial

import numpy as np

from .adapt import AdaptiveCodec, Frame, frame_of
from .background import Background, ahead
from .codec import lockstep
from .compute import Compute
from .engine import Engine
from .loading import load_engine
from .mixing import OPINIONS, Given, TreeMixer
from .online import WIDTH
from .opinions import BLOCK, Masses
from .spec import TokenSpec
from .tables import weights

SHARED_ROWS = 512
"""Rows from which on it pays to share an operation among threads: a small one waits longer for a second thread, which
learns meanwhile, than it saves."""


KNOWN = 1024.0
"""Steps of the online network's weights for each of a trained network's codes."""
KNOWN_SQUARES = float(1 << 22)
"""Rows that start from such codes take smaller steps at first."""
ROWS = 1024
"""Positions that the network predicts at once while encoding, of one frame at least: enough for the full rate of its
products."""


def make(spec: TokenSpec, model: bytes, compute: Compute) -> MixedCodec:
    """The codec for tokens of `spec` by the network in a .vqm and by learning; raises as `load_engine` does."""
    return MixedCodec(spec, FramePredictor(load_engine(spec, model, compute)))


class GivenMixer(TreeMixer):
    """A mixer beside a trained network, whose weights of the tokens each `begin` is given."""

    def __init__(self, spec: TokenSpec, factor: int, segments: int, codes: np.ndarray):
        """codes: what the network has learned of the tokens, integers (V, any number) within a byte: the online network
        starts from them."""
        super().__init__(spec, factor, segments)
        self.given = Masses(self.past.size)
        if self.online:
            tokens = self.online.order[:-1]
            self.online.rows[tokens, : codes.shape[1]] = codes[:, :WIDTH] * KNOWN
            self.online.squares[tokens] = KNOWN_SQUARES
        self.weigh([opinion.beside_network for opinion in OPINIONS])

    def begin(self, coded: np.ndarray, given: Given | None = None) -> None:
        super().begin(coded)
        if self.given and given:
            fill(self.given, given()[: coded.shape[0] * coded.shape[1]])


def fill(masses: Masses, weights: np.ndarray) -> None:
    """weights (P, V) of the tokens, float32."""
    masses.fit(len(weights))
    for i, tree in enumerate(masses.tree):
        part = weights[i * BLOCK : (i + 1) * BLOCK].T
        tree[masses.place[masses.size :][: len(part)] // BLOCK, : part.shape[1]] = part
        masses.sum_up(masses.tree[i : i + 1])


def mixers_beside(engine: Engine, segments: int) -> list[GivenMixer]:
    """One for each factor, before the first frame of so many segments."""
    codes = [engine.ops.host(weight).T for weight, _ in engine.output]  # of each factor's tokens, (V, rank)
    return [GivenMixer(engine.config.spec, f, segments, code) for f, code in enumerate(codes)]


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
        return self._parts(self.background.submit(self.network.predict_steps, before[:, None]), 0)

    def _parts(self, prediction: Future[list[np.ndarray]], step: int) -> list[Given | None]:
        """Of each factor, what waits for the weights (P, V) of one of the steps that are predicted."""

        def part(factor: int) -> np.ndarray:
            weights: np.ndarray = prediction.result()[factor][:, step]
            return weights.reshape(-1, weights.shape[2])

        return [partial(part, f) for f in range(len(self.spec.factors))]

    def _known_frames(self, segments: list[np.ndarray]) -> Iterator[Frame]:
        before = [np.concatenate([np.full_like(segment[:1], -1), segment[:-1]]) for segment in segments]
        at_once = max(1, ROWS // (len(segments) * self.spec.positions))

        def predictions() -> Iterator[tuple[list[int], int, int, Future[list[np.ndarray]]]]:
            for members, first, steps in lockstep([len(segment) for segment in segments], at_once):
                frames = np.stack([before[i][first : first + steps] for i in members])  # (G, C, S, F)
                yield members, first, steps, self.background.submit(self.network.predict_steps, frames)

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
        """The frame before (G, S, F), -1 for none, of the first G segments -> each factor's weights (G * S, V)."""
        return [weights.reshape(-1, weights.shape[-1]) for weights in self.predict_steps(before[:, None])]

    def predict_steps(self, before: np.ndarray) -> list[np.ndarray]:
        """The frames before C frames (G, C, S, F), -1 for none -> each factor's weights (G, C, S, V)."""
        ops, shape = self.engine.ops, before.shape[:3]
        self.state.keep(len(before))
        with ops.settings(before[..., 0].size >= SHARED_ROWS):
            return [ops.host(weights(x, ops)).reshape(*shape, -1) for x in self.engine.forward(self.state, before)]
