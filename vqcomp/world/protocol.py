"""1X's metric: how well a network predicts the next frame of robots' video at 2 Hz, all of its tokens at once.

Windows are 16 frames, every 15th of 30 a second, within one clip; the first is given, 15 are predicted. "Temporally
teacher-forced", the compression challenge's setting: every frame is predicted from the true frames before it, and from
none of its own tokens. The cross-entropy is in nats per token, the sum of its factors' (2 log 512 = 12.477 for uniform
guesses); a prediction is accurate if all factors are right. (github.com/1x-technologies/1xgpt: data.py,
genie/evaluate.py, eval_utils.py)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..runtime.arithmetic import LOGIT_UNIT
from ..runtime.compute import Compute
from ..runtime.engine import Engine
from ..runtime.errors import InputError
from ..runtime.loading import load_engine
from .footage import Footage, open_footage
from .imagine import NetworkImaginer
from .perceptual import Distance, load_lpips
from .sampling import Sampling, rows_of

WINDOW, STRIDE = 16, 15
PROMPT = 8
"""True frames that the fully autoregressive setting starts from."""


Decode = Callable[[np.ndarray], np.ndarray]
"""Renders ids (T, height, width) as uint8 (T, h, w, 3)."""


class Predictor(Protocol):
    """What the metric asks: logits of the next frames, in nats, for windows that go on from a state."""

    def start(self, windows: int) -> Any:
        """The state before the first frame."""
        ...

    def forward(self, state: Any, previous: np.ndarray) -> list[np.ndarray]:
        """Move on by the frames `previous` (B, C, S, F), -1 before the first one.

        Returns for each factor f (B, C, S, V_f), whose softmax predicts the frame after each.
        """
        ...


class FrameGPTPredictor:
    """A FrameGPT as a predictor, in the exact arithmetic in which it compresses."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def start(self, windows: int) -> Any:
        return self.engine.start(windows)

    def forward(self, state: Any, previous: np.ndarray) -> list[np.ndarray]:
        with self.engine.ops.settings():
            logits = [self.engine.ops.host(x) for x in self.engine.forward(state, previous)]
        unit = np.float32(math.log(2) / LOGIT_UNIT)
        return [x.reshape(*previous.shape[:3], -1) * unit for x in logits]


@dataclass(frozen=True)
class Score:
    """Means over all predicted frames of all windows; seconds_per_frame is the time of predicting, per frame.

    The cross-entropy is of predictions that know no token of their frame. Where frames were generated in several steps,
    or rendered, accuracy and time are of generating them, one by one.
    """

    windows: int
    frames: int
    cross_entropy: float
    accuracy: float
    seconds_per_frame: float
    lpips: float | None = None
    """Perceptual distance of rendered predicted frames from rendered true ones; None without a decoder."""


def window_starts(segment_ids: np.ndarray, window: int = WINDOW, stride: int = STRIDE) -> list[int]:
    """First frames of all windows, so that no frame is in two of them.

    A window belongs to one clip if its first and its last frame do. As in 1X's data.py with filter_overlaps, they
    are taken from the first frame on, but for those that share a frame with one that was taken.
    """
    span = (window - 1) * stride
    if len(segment_ids) <= span:
        return []
    whole = np.flatnonzero(segment_ids[: len(segment_ids) - span] == segment_ids[span:])
    starts = []
    # Windows share frames only if they start at the same phase, less than a window apart.
    free = [0] * stride
    for start in whole.tolist():
        if start >= free[start % stride]:
            starts.append(start)
            free[start % stride] = start + window * stride
    return starts


def measure(logits: list[np.ndarray], tokens: np.ndarray) -> tuple[float, int]:
    """(sum of nats, number of tokens with all factors right) of tokens (..., F) by logits (..., V_f) of each factor."""
    nats, right = 0.0, np.ones(tokens.shape[:-1], bool)
    for f, x in enumerate(logits):
        x = x.astype(np.float64)
        truth = np.take_along_axis(x, tokens[..., f, None], -1)[..., 0]
        top = x.max(-1)
        nats += float((np.log(np.exp(x - top[..., None]).sum(-1)) + top - truth).sum())
        right &= x.argmax(-1) == tokens[..., f]
    return nats, int(right.sum())


def teacher_forced(predictor: Predictor, windows: Iterator[np.ndarray]) -> Score:
    """Predict frames 1, 2, ... of windows (B, T, S, F), each from the true frames before it."""

    def run(truth: np.ndarray) -> list[np.ndarray]:
        return [x[:, 1:] for x in predictor.forward(predictor.start(len(truth)), _previous(truth))]

    return _score(run, windows, 1)


def autoregressive(predictor: Predictor, windows: Iterator[np.ndarray], prompt: int = PROMPT) -> Score:
    """Predict all frames after the first `prompt` ones, each from those and from its own best guesses."""

    def run(truth: np.ndarray) -> list[np.ndarray]:
        state = predictor.start(len(truth))
        steps = [[x[:, -1] for x in predictor.forward(state, _previous(truth[:, : prompt + 1]))]]
        for _ in range(prompt + 1, truth.shape[1]):
            guess = np.stack([x.argmax(-1) for x in steps[-1]], -1)  # (B, S, F)
            steps.append([x[:, 0] for x in predictor.forward(state, guess[:, None])])
        return [np.stack(x, 1) for x in zip(*steps)]

    return _score(run, windows, prompt)


def generate(
    imaginer: NetworkImaginer,
    windows: Iterator[np.ndarray],
    score: Score,
    prompt: int | None = None,
    decode: Decode | None = None,
    distance: Distance | None = None,
) -> Score:
    """Generate the likeliest frames of windows (B, T, S, F), in the imaginer's steps; returns `score` with the outcome.

    Frames 1, 2, ... follow true ones each; with `prompt`, only those after so many are generated, and follow their own.
    decode renders ids, and distance compares what it renders with the true frames' rendering.
    """
    sampling, spec, first = Sampling(Fraction(0)), imaginer.spec, prompt or 1
    done = frames = right = tokens = 0
    seconds = total = 0.0
    with imaginer.engine.ops.settings():
        for truth in windows:
            state, before = imaginer.engine.start(len(truth)), np.full_like(truth[:, :1], -1)
            for t in range(truth.shape[1]):
                start = time.perf_counter()
                frame = imaginer.draw(
                    state, before, sampling, rows_of(np.arange(done, done + len(truth)), t, spec.positions)
                )  # (B, S, F)
                before = (frame if prompt and t >= prompt else truth[:, t])[:, None]
                if t < first:
                    continue
                seconds += time.perf_counter() - start
                frames, tokens = frames + len(truth), tokens + frame[..., 0].size
                right += int((frame == truth[:, t]).all(-1).sum())
                if decode and distance:
                    images = [decode(spec.join(x).reshape(-1, spec.height, spec.width)) for x in (frame, truth[:, t])]
                    total += float(np.sum(distance(*images)))
            done += len(truth)
    lpips = total / frames if decode and distance else None
    return replace(score, accuracy=right / tokens, seconds_per_frame=seconds / frames, lpips=lpips)


def _previous(frames: np.ndarray) -> np.ndarray:
    """The frame before each of (B, T, S, F)."""
    return np.concatenate([np.full_like(frames[:, :1], -1), frames[:, :-1]], 1)


def _score(run: Callable[[np.ndarray], list[np.ndarray]], windows: Iterator[np.ndarray], first: int) -> Score:
    count = frames = tokens = right = 0
    nats = seconds = 0.0
    for truth in windows:
        start = time.perf_counter()
        logits = run(truth)
        seconds += time.perf_counter() - start
        for b in range(len(truth)):  # one by one: float64 rows take memory
            part = measure([x[b] for x in logits], truth[b, first:])
            nats, right = nats + part[0], right + part[1]
        count += len(truth)
        frames += len(truth) * (truth.shape[1] - first)
        tokens += truth[:, first:, :, 0].size
    return Score(count, frames, nats / tokens, right / tokens, seconds / frames)


def read_windows(video: Footage, starts: list[int], batch_size: int) -> Iterator[np.ndarray]:
    """The windows at `starts`: int64 (up to batch_size, WINDOW, S, F). Raises InputError for ids too large."""
    for i in range(0, len(starts), batch_size):
        span = (WINDOW - 1) * STRIDE + 1
        batch = np.stack([video.take(range(s, s + span, STRIDE)) for s in starts[i : i + batch_size]])
        if int(batch.max()) >= video.spec.vocabulary or int(batch.min()) < 0:
            raise InputError(f"{video.path}: expected ids in 0..{video.spec.vocabulary - 1}, found {batch.max()}")
        yield video.spec.split(batch.reshape(*batch.shape[:2], -1).astype(np.int64))


def evaluate(
    model: bytes,
    place: Path,
    *,
    max_windows: int | None = None,
    steps: int = 1,
    decode: Decode | None = None,
    compute: Compute,
) -> dict[str, Score | None]:
    """Scores of a .vqm by setting, on one of 1X's folders or an archive of one.

    None stands for settings that do not apply to a FrameGPT.

    steps: MaskGIT steps in which frames are generated, for a network `within_frame`. decode: renders ids
    (T, height, width) as uint8 (T, h, w, 3), so that LPIPS is measured. Raises InputError, ModelError, DependencyError.
    """
    video = open_footage(place, compute)
    starts = window_starts(video.segment_ids)[:max_windows]
    if not starts:
        raise InputError(
            f"{video.path}: expected a window of {WINDOW} frames, {STRIDE} apart, in one clip; the longest clip has "
            f"{max(map(len, video.clips))} frames"
        )
    engine = load_engine(video.spec, model, compute)
    network, imaginer = FrameGPTPredictor(engine), NetworkImaginer(engine, steps)
    distance = load_lpips(compute.device) if decode else None

    def windows() -> Iterator[np.ndarray]:
        return read_windows(video, starts, compute.batch_size)

    forced, free = teacher_forced(network, windows()), autoregressive(network, windows())
    if steps > 1 or decode:
        forced = generate(imaginer, windows(), forced, None, decode, distance)
        free = generate(imaginer, windows(), free, PROMPT, decode, distance)
    return {
        "temporally teacher-forced": forced,
        f"fully autoregressive after {PROMPT} frames": free,
        # It would see the tokens before it in its own frame, but all of a frame are predicted at once.
        "fully teacher-forced": None,
    }
