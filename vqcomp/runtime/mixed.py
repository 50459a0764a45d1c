"""The codec that learns while it codes, with a trained network's opinion mixed in."""

from __future__ import annotations

import numpy as np

from .adapt import AdaptiveCodec
from .background import Background
from .compute import Compute
from .engine import Engine
from .loading import load_engine
from .spec import TokenSpec
from .tables import weights

SHARED_ROWS = 512
"""Rows from which on it pays to share an operation among threads: a small one waits longer for a second thread, which
learns meanwhile, than it saves."""


def make(spec: TokenSpec, model: bytes, compute: Compute) -> AdaptiveCodec:
    """The codec for tokens of `spec` by the network in a .vqm and by learning; raises as `load_engine` does."""
    return AdaptiveCodec(spec, FramePredictor(load_engine(spec, model, compute)))


class FramePredictor:
    """A FrameGPT that predicts one frame of all segments at a time."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.background = engine, Background()

    def start(self, segments: int) -> None:
        """Go to before the first frame of so many segments."""
        self.state = self.engine.start(segments)

    def predict(self, before: np.ndarray) -> list[np.ndarray]:
        """The frame before (G, S, F), -1 for none, of the first G segments -> each factor's weights (G * S, V)."""
        ops = self.engine.ops
        self.state.keep(len(before))
        with ops.settings(len(before) * self.engine.config.positions >= SHARED_ROWS):
            return [ops.host(weights(x, ops)) for x in self.engine.forward(self.state, before[:, None])]
