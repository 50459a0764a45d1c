"""What a network that predicts tokens one after another sees of a segment: windows of whole frames.

Each frame is begun by the id that begins a frame. When a window is full, the next one starts with the last `keep`
frames, which are computed again: many kept cost time, few cost rate. Tokens that are known are predicted many frames at
once, others one token of each segment at a time; the arithmetic is exact, so both give the same.

Shapes: B segments, C frames, S positions, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from .errors import InputError
from .exact import Array
from .spec import TokenSpec
from .token_engine import TokenGPT, TokenState

ROWS = 1 << 11
"""Ids in one call of the network, about: enough for the matrix products' full rate."""
Look = Callable[[np.ndarray | None], Array]
"""The tokens (B,) at the position before, None at a frame's first one -> logits (B, V) of the next one's, as of
`TokenGPT.logits`."""


def check_keep(keep: int, frames: int) -> None:
    """Raise InputError unless a window of so many frames can begin with `keep` of the one before."""
    if not 0 <= keep < frames:
        raise InputError(f"frames to keep: expected 0 to {frames - 1}, found {keep}")


class TokenWindows:
    """A TokenGPT over segments of `spec`, each int32 (T, S, 1), and how its window slides."""

    def __init__(self, engine: TokenGPT, spec: TokenSpec, keep: int) -> None:
        """Raises ModelError where the tokens are not what the network predicts, InputError for a wrong `keep`."""
        self.engine, self.spec, self.keep = engine, spec, keep
        self.window = engine.config.frames(spec)
        check_keep(keep, self.window)

    def known(self, segments: Sequence[np.ndarray]) -> Iterator[tuple[list[int], int, int, Array]]:
        """Predict segments that are known, chunk by chunk: (which have these frames, from long to short; the first
        frame; how many, C; logits (B * C * S, V))."""
        for active, state, t, end in self._windows(segments):
            while active := self._running(active, segments, t, state):
                steps = min(self._chunk(active), end - t, len(segments[active[-1]]) - t)
                if not steps:
                    break
                h = self.engine.forward(state, self._ids(segments, active, t, t + steps))
                # The last token of a frame predicts the beginning of the next one, which is known.
                h = h.reshape(len(active) * steps, -1, h.shape[-1])[:, :-1].reshape(-1, h.shape[-1])
                yield active, t, steps, self.engine.logits(h)
                t += steps

    def coming(self, segments: Sequence[np.ndarray], first: int = 0) -> Iterator[tuple[list[int], int, Look]]:
        """Predict frames from `first` on, one after another: (which segments have it, from long to short; its number;
        what to call for each position). Before the next one, the frame must stand in its segments."""
        for active, state, t, end in self._windows(segments, first):
            for now in range(t, end):
                active = self._running(active, segments, now, state)
                if not active:
                    break
                yield active, now, self._look(active, segments, now, state, seen=now == t)

    def _look(self, active: list[int], segments: Sequence[np.ndarray], now: int, state: TokenState, seen: bool) -> Look:
        """seen: whether the network has seen the last token of the frame before."""
        begin = np.full((len(active), 1), self.engine.config.bos)
        if not seen:
            begin = np.concatenate([np.stack([segments[i][now - 1, -1] for i in active]), begin], 1)

        def look(tokens: np.ndarray | None) -> Array:
            h = self.engine.forward(state, begin if tokens is None else tokens[:, None])
            return self.engine.logits(h.reshape(len(active), -1, h.shape[-1])[:, -1])

        return look

    def _windows(
        self, segments: Sequence[np.ndarray], first: int = 0
    ) -> Iterator[tuple[list[int], TokenState, int, int]]:
        """(segments still running, from long to short; state after the frames that are known; frames to predict: first,
        end)."""
        order = sorted(range(len(segments)), key=lambda i: -len(segments[i]))
        end = 0
        while order := [i for i in order if len(segments[i]) > end]:
            begin = end - min(end, self.keep)
            t, end = max(end, first), min(begin + self.window, len(segments[order[0]]))
            if t >= end:
                continue
            state = self.engine.start(len(order), (end - begin) * (self.spec.positions + 1))
            chunk = self._chunk(order)
            for a in range(begin, t, chunk):
                self.engine.forward(state, self._ids(segments, order, a, min(a + chunk, t)))
            yield order, state, t, end

    def _running(self, active: list[int], segments: Sequence[np.ndarray], t: int, state: TokenState) -> list[int]:
        """Those of `active` that have a frame t; the state goes on with them alone."""
        running = [i for i in active if len(segments[i]) > t]
        if len(running) < len(active):
            state.keep(self.engine.config.heads, len(running))
        return running

    def _chunk(self, active: list[int]) -> int:
        """Frames of each segment in one call."""
        return max(1, ROWS // (len(active) * (self.spec.positions + 1)))

    def _ids(self, segments: Sequence[np.ndarray], active: list[int], first: int, end: int) -> np.ndarray:
        """Frames first .. end - 1 -> ids (B, C * (1 + S)), each frame begun by the id that begins it."""
        frames = np.stack([segments[i][first:end, :, 0] for i in active])  # (B, C, S)
        begins = np.full_like(frames[..., :1], self.engine.config.bos)
        return np.concatenate([begins, frames], -1).reshape(len(active), -1)
