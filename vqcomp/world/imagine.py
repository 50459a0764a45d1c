"""Imagining: frames that go on from true ones, drawn as a predictor expects them, the same on every machine.

A network (FrameGPT) draws all tokens of a frame at once, or, if it sees known tokens of the frame (`within_frame`), in
several steps as MaskGIT does (Chang et al. 2022). A TokenGPT draws token by token. A learner (TreeMixer), alone or on
top of a FrameGPT, learns from the true frames, then stays as it is, and draws each token bit by bit. All of it is the
exact arithmetic that compresses.

Shapes: K samples, B of them computed together, T frames, S positions, F factors, P = B * S rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from ..runtime.adapt import POSITIONS_MAX
from ..runtime.compute import Compute
from ..runtime.contexts import Past
from ..runtime.engine import Engine, State
from ..runtime.errors import InputError
from ..runtime.kinds import EXTERNAL
from ..runtime.loading import load_engine
from ..runtime.mixed import FramePredictor, mixers_beside
from ..runtime.mixing import Given, TreeMixer, path_to
from ..runtime.spec import TokenSpec
from ..runtime.token_external import load_windows
from ..runtime.token_memory import side_by_side
from ..runtime.token_windows import TokenWindows
from .sampling import CONFIDENCE_BITS, FACTORS_MAX, LEVELS_MAX, Rows, Sampling, rows_of

ORDERS = ("random", "confidence")
"""Which of a step's tokens are kept: any, as 1X's generate.py has it, or the likeliest, as in MaskGIT."""
PREFILL_ROWS = 1024
"""Rows of the true frames that a network computes at once."""
Advance = Callable[[int], None]
"""Called with the number of newly drawn tokens."""


class Imaginer(Protocol):
    """Draws what follows `prompt`."""

    spec: TokenSpec

    def imagine(
        self, prompt: np.ndarray, frames: int, samples: int, sampling: Sampling, batch_size: int, advance: Advance
    ) -> np.ndarray:
        """Raises InputError for a sampling that it cannot do.

        prompt (T, S, F) true frames, T >= 0 -> int32 (K, frames, S, F). batch_size changes no token."""
        ...


class NetworkImaginer:
    """A FrameGPT that draws each frame in `steps`, the tokens of each step knowing those of the steps before.

    Keys and values of past frames are those of the first step, which knows none of a frame's own tokens. Raises
    InputError for steps that the network cannot make, or an order that is not in ORDERS.
    """

    def __init__(self, engine: Engine, steps: int = 1, order: str = ORDERS[0]) -> None:
        self.engine, self.spec, self.steps, self.order = engine, engine.config.spec, steps, order
        if steps > 1 and not engine.config.within_frame:
            raise InputError(
                f"{steps} steps: the model predicts all tokens of a frame at once; steps need one that was trained "
                "with --set within_frame=true"
            )
        if not 1 <= steps <= self.spec.positions:
            raise InputError(
                f"steps: expected 1 to {self.spec.positions}, as many as a frame has tokens, found {steps}"
            )
        if order not in ORDERS:
            raise InputError(f"order: expected one of {', '.join(ORDERS)}, found {order}")
        _check_factors(self.spec)

    def imagine(
        self, prompt: np.ndarray, frames: int, samples: int, sampling: Sampling, batch_size: int, advance: Advance
    ) -> np.ndarray:
        out = np.empty((samples, frames, self.spec.positions, len(self.spec.factors)), np.int32)
        with self.engine.ops.settings():
            start, last = after(self.engine, prompt)
            for numbers in _batches(samples, batch_size):
                state, before = self.engine.fork(start, len(numbers)), np.repeat(last, len(numbers), 0)
                for t in range(frames):
                    frame = self.draw(state, before, sampling, rows_of(numbers, len(prompt) + t, self.spec.positions))
                    out[numbers, t], before = frame, frame[:, None]
                    advance(frame[..., 0].size)
        return out

    def draw(self, state: State, before: np.ndarray, sampling: Sampling, rows: Rows) -> np.ndarray:
        """Draw the frame (B, S, F) after `before` (B, 1, S, F), and move `state` on; rows (P,) is what is drawn."""
        positions, factors = before.shape[2:]
        frame = np.full((len(before) * positions, factors), -1, np.int64)  # (P, F)
        unknown = np.arange(len(frame))
        past = self.engine.fork(state)  # what each later step starts from
        for step, left in enumerate(remaining(positions, self.steps)):
            here = self.engine.fork(past) if step else state
            logits = self.engine.forward(here, before, frame.reshape(before.shape) if step else None)
            ids = rows[unknown]
            drawn, sure = np.empty((len(unknown), factors), np.int64), np.full(len(unknown), 1 << CONFIDENCE_BITS)
            for f, x in enumerate(logits):
                values = self.engine.ops.host(x)[unknown]
                drawn[:, f], probability = sampling.draw(values, ids, purpose(step, f))
                sure = sure * probability >> CONFIDENCE_BITS
            rank = -sure if self.order == "confidence" else sampling.shuffle(ids, purpose(step, FACTORS_MAX))
            # As many in each sample; of equal ones, those at the first positions.
            order = np.argsort(rank.reshape(len(before), -1), 1, kind="stable")
            each = order.shape[1]
            kept = (order[:, : each - left] + np.arange(len(before))[:, None] * each).reshape(-1)
            frame[unknown[kept]] = drawn[kept]
            unknown = np.delete(unknown, kept)
        return frame.reshape(-1, positions, factors)


class TokenImaginer:
    """A TokenGPT that draws one token after another; its window slides as where it codes."""

    def __init__(self, windows: TokenWindows) -> None:
        self.windows, self.spec = windows, windows.spec

    def imagine(
        self, prompt: np.ndarray, frames: int, samples: int, sampling: Sampling, batch_size: int, advance: Advance
    ) -> np.ndarray:
        spec, ops = self.spec, self.windows.engine.ops
        whole = np.zeros((samples, len(prompt) + frames, spec.positions, 1), np.int32)
        whole[:, : len(prompt)] = prompt
        with ops.settings():
            for numbers in _batches(samples, batch_size):
                for some in side_by_side(self.windows, [whole[i] for i in numbers]):
                    here, numbers = numbers[: len(some)], numbers[len(some) :]
                    for _, t, look in self.windows.coming(some, len(prompt)):
                        tokens: np.ndarray | None = None
                        for s in range(spec.positions):
                            logits = ops.host(look(tokens))
                            rows = Rows(here, np.full_like(here, t), np.full_like(here, s))
                            tokens, _ = sampling.draw(logits, rows, purpose(0, 0))
                            whole[here, t, s, 0] = tokens
                        advance(len(here) * spec.positions)
        return whole[:, len(prompt) :]


class LearningImaginer:
    """What learns while it codes, alone or on top of a network: it learns from the prompt, then draws bit by bit.

    It does not learn from what it imagines. Raises InputError for a sampling with top_k or top_p.
    """

    def __init__(self, spec: TokenSpec, network: FramePredictor | None = None) -> None:
        self.spec, self.network = spec, network
        _check_factors(spec)
        if spec.positions > POSITIONS_MAX:
            raise InputError(f"--learn: expected frames of up to {POSITIONS_MAX} tokens, found {spec.positions}")

    def imagine(
        self, prompt: np.ndarray, frames: int, samples: int, sampling: Sampling, batch_size: int, advance: Advance
    ) -> np.ndarray:
        if sampling.top_k is not None or sampling.top_p is not None:
            raise InputError("top-k and top-p choose among whole tokens, --learn draws bit by bit: leave them out")
        spec, network = self.spec, self.network
        mixers = self._learn(prompt)
        learned = network.state if network else None
        last = prompt[-1:] if len(prompt) else np.full((1, spec.positions, len(spec.factors)), -1)
        out = np.empty((samples, frames, spec.positions, len(spec.factors)), np.int32)
        for numbers in _batches(samples, batch_size):
            for f, mixer in enumerate(mixers):
                mixer.past = Past(spec, f, len(numbers))
                for frame in prompt:
                    mixer.past.push(np.repeat(frame[None, :, f], len(numbers), 0))
            if network and learned:
                network.state = network.engine.fork(learned, len(numbers))
            before = np.repeat(last, len(numbers), 0)  # (B, S, F)
            for t in range(frames):
                rows = rows_of(numbers, len(prompt) + t, spec.positions)
                given = self._given(before)
                before = np.zeros_like(before, np.int64)
                for f, mixer in enumerate(mixers):
                    mixer.begin(before[:, :, :f], given[f])
                    before[:, :, f] = self._draw(mixer, f, sampling, rows).reshape(before.shape[:2])
                for f, mixer in enumerate(mixers):
                    mixer.past.push(before[:, :, f])
                out[numbers, t] = before
                advance(before[..., 0].size)
        return out

    def _learn(self, prompt: np.ndarray) -> Sequence[TreeMixer]:
        """The mixers of all factors, and the network's state, after the true frames, coded as a group of one."""
        network, spec = self.network, self.spec
        if network:
            mixers: Sequence[TreeMixer] = mixers_beside(network.engine, 1)
            network.start(1)
        else:
            mixers = [TreeMixer(spec, f, 1) for f in range(len(spec.factors))]
        before = np.full((1, spec.positions, len(spec.factors)), -1, np.int64)
        for frame in prompt.astype(np.int64)[:, None]:  # (1, S, F)
            given = self._given(before)
            for f, mixer in enumerate(mixers):
                node, bits = path_to(frame[0, :, f], mixer.levels)
                mixer.begin(frame[:, :, :f], given[f])
                mixer.predict(0, node)
                mixer.update(bits, frame[:, :, f])
            before = frame
        return mixers

    def _given(self, before: np.ndarray) -> list[Given | None]:
        """For each factor, the network's opinion on the frame after `before` (B, S, F)."""
        if not self.network:
            return [None for _ in self.spec.factors]
        return [partial(np.asarray, weights[:, 0]) for weights in self.network.predict(before[:, None])]

    def _draw(self, mixer: TreeMixer, f: int, sampling: Sampling, rows: Rows) -> np.ndarray:
        """Tokens (P,) of one factor, whose mixer has begun the frame."""
        node = np.ones((1, len(rows.frame)), np.int64)
        for level in range(mixer.levels):
            bits = sampling.draw_bits(mixer.predict(level, node)[0], rows, f * LEVELS_MAX + level)
            # Ids that the vocabulary lacks are never drawn.
            first = ((2 * node[0] + 1) << (mixer.levels - 1 - level)) - (1 << mixer.levels)
            node = node * 2 + np.where(first < self.spec.factors[f], bits, 0)
        return node[0] - (1 << mixer.levels)


def remaining(positions: int, steps: int) -> Iterator[int]:
    """How many tokens of a frame are still unknown after each step: MaskGIT's cosine schedule, in integers.

    The share cos(pi / 2 * x) after a part x of the steps is taken as (4 - 4 x^2) / (4 + x^2) (Bhaskara I), which is
    within 0.002 of it; it is rounded up. Each step makes one token known at least.
    """
    left = positions
    for step in range(1, steps + 1):
        share = -(-4 * positions * (steps * steps - step * step) // (4 * steps * steps + step * step))
        left = max(min(left - 1, share), steps - step)
        yield left


def purpose(step: int, factor: int) -> int:
    """Tells the draws of a frame's steps and factors apart; FACTORS_MAX is for the order."""
    return step * (FACTORS_MAX + 1) + factor


def after(engine: Engine, prompt: np.ndarray) -> tuple[State, np.ndarray]:
    """The state of one segment after all of its true frames but the last, and that one (1, 1, S, F), -1 for none."""
    c = engine.config
    reach = c.history + c.blocks * (c.window - 1)  # what is older changes nothing
    prompt = prompt[-reach:]
    frames = np.concatenate([np.full((1, c.positions, len(c.factors)), -1), prompt])[None]  # (1, T + 1, S, F)
    state, step = engine.start(1), max(1, PREFILL_ROWS // c.positions)
    for i in range(0, len(prompt), step):
        engine.forward(state, frames[:, i : min(i + step, len(prompt))])
    return state, frames[:, -1:]


def _batches(samples: int, size: int) -> Iterator[np.ndarray]:
    """Numbers of the samples that are computed together."""
    for first in range(0, samples, size):
        yield np.arange(first, min(first + size, samples))


def _check_factors(spec: TokenSpec) -> None:
    if len(spec.factors) > FACTORS_MAX:
        raise InputError(f"imagining: expected ids of up to {FACTORS_MAX} factors, found {len(spec.factors)}")


def make_imaginer(
    spec: TokenSpec, model: bytes | None, *, learn: bool, steps: int, order: str, compute: Compute
) -> Imaginer:
    """What imagines tokens of `spec`: a network (a .vqm, or an external one), what learns from the prompt, or both.

    Raises InputError, ModelError, PlatformError, DependencyError.
    """
    if learn and steps > 1:
        raise InputError("--learn draws all tokens of a frame at once: leave --steps out")
    if model is None:
        if not learn:
            raise InputError(
                "imagining needs a network for these tokens (--model NAME|PATH), or --learn, which learns from the "
                "prompt"
            )
        return LearningImaginer(spec)
    if model.startswith(EXTERNAL):
        if learn or steps > 1:
            raise InputError("a network that predicts token by token draws alone: leave --learn and --steps out")
        return TokenImaginer(load_windows(spec, model, compute))
    engine = load_engine(spec, model, compute)
    return LearningImaginer(spec, FramePredictor(engine)) if learn else NetworkImaginer(engine, steps, order)
