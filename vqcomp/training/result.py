"""What a training comes to."""

from __future__ import annotations

from dataclasses import dataclass

from .evaluation import Span
from .feed import Feed
from .model import FrameGPT
from .record import Row


@dataclass(frozen=True)
class TrainResult:
    """The trained network and how well it does."""

    model: FrameGPT
    """In eval mode, on the CPU, with the best averaged weights."""
    bits_per_token: float
    """On the held-out frames given their true past, or in training if none were held out."""
    step: int
    """Step at which these weights were reached."""
    rows: tuple[Row, ...]
    """The state at each evaluation."""
    feed: Feed
    """What it was trained on."""
    spans: tuple[Span, ...]
    """The held-out frames that chose the weights; of a time budget, as many as it allowed."""
    is_first: bool = True
    """Whether this process, of several, is the one that writes files."""
