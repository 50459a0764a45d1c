"""How well a network predicts: bits/token on frames whose past it sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .frames import Frames
from .model import FrameGPT


@torch.no_grad()
def evaluate(model: FrameGPT, segments: Sequence[Frames], frames: int, chunk: int = 64) -> float:
    """Bits/token of the last `frames` frames of every segment (T, S, F), each given all the past that is seen."""
    config = model.config
    reach = config.history + config.blocks * (config.window - 1)
    training, device = model.training, next(model.parameters()).device
    model.eval()
    total, count = 0.0, 0
    for segment in segments:
        for first in range(max(len(segment) - frames, 0), len(segment), chunk):
            last = min(first + chunk, len(segment))
            start = max(first - reach, 0)
            tokens = torch.from_numpy(np.array(segment[start:last], np.int64)).to(device)
            total += float(model.loss(tokens[None], skip=first - start)) * (last - first)
            count += last - first
    model.train(training)
    return total / max(count, 1)


def count_frames(segments: Sequence[Frames], frames: int) -> int:
    """How many frames `evaluate` looks at."""
    return sum(min(frames, len(segment)) for segment in segments)
