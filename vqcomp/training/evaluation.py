"""How well a network predicts: bits/token on frames whose past it sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from ..runtime.config import ModelConfig
from .frames import Frames
from .model import FrameGPT


class Span(NamedTuple):
    """Frames of a segment that are evaluated at once."""

    segment: Frames
    first: int
    last: int
    """The frame after the last one."""


def spans_of(segments: Sequence[Frames], frames: int, length: int = 64) -> list[Span]:
    """The last `frames` frames of every segment, in spans of at most `length`."""
    return [
        Span(segment, first, min(first + length, len(segment)))
        for segment in segments
        for first in range(max(len(segment) - frames, 0), len(segment), length)
    ]


def count_frames(spans: Sequence[Span]) -> int:
    """How many frames are evaluated."""
    return sum(span.last - span.first for span in spans)


def cost(span: Span, network: ModelConfig) -> int:
    """Frames that a network computes to evaluate a span: its past is computed, too."""
    return span.last - _start(span, network)


@torch.no_grad()
def evaluate(model: FrameGPT, spans: Sequence[Span], watch: Callable[[int], None] | None = None) -> float:
    """Bits/token of the frames of all spans, each given all the past that is seen; 0 for no spans.

    watch is told after each span how many are done.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    total = 0.0
    for done, span in enumerate(spans, 1):
        start = _start(span, model.config)
        tokens = torch.from_numpy(np.array(span.segment[start : span.last], np.int64)).to(device)
        total += float(model.loss(tokens[None], skip=span.first - start)) * (span.last - span.first)
        if watch:
            watch(done)
    model.train(training)
    return total / max(count_frames(spans), 1)


def _start(span: Span, network: ModelConfig) -> int:
    """The first frame that has a part in the predictions."""
    return max(span.first - network.history - network.blocks * (network.window - 1), 0)
