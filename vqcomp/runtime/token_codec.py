"""Segments <-> streams by a network that predicts tokens one after another.

The network sees a window of frames, each begun by the id that begins a frame. When the window is full, it starts anew
with the last `keep` frames at the beginning: many kept cost time, few cost rate. Encoding predicts the tokens of many
frames at once, decoding one token of each segment at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .codec import Advance, Codec
from .coder import Decoder
from .errors import InputError
from .spec import TokenSpec
from .tables import Tables
from .uniform import decode_uniform, encode_uniform, modelled
from .token_engine import TokenGPT, TokenState

ROWS = 1 << 11
"""Ids in one call of the network, about: enough for the matrix products' full rate."""


class TokenCodec(Codec):
    """A `Codec` (see codec.py) by a TokenGPT; every segment has a stream of its own.

    A stream's symbols follow token by token; a token is its group, then its member (FORMAT.md, section 5).
    """

    group_size = group_limit = 1

    def __init__(self, engine: TokenGPT, spec: TokenSpec, keep: int | None = None) -> None:
        """keep: frames that a new window begins with; None for half of them. Raises ModelError, InputError."""
        self.engine, self.spec = engine, spec
        self.window = engine.config.frames(spec)
        self.keep = self.window // 2 if keep is None else keep
        if not 0 <= self.keep < self.window:
            raise InputError(f"frames to keep: expected 0 to {self.window - 1}, found {keep}")

    def encode(self, groups: Sequence[Sequence[np.ndarray]], advance: Advance | None = None) -> list[bytes]:
        segments = [segment for (segment,) in groups]
        for segment in segments:
            self._check(segment)
        encoders = [modelled() for _ in segments]
        with self.engine.ops.settings():
            for active, state, t, end in self._windows(segments):
                while active := self._running(active, segments, t, state):
                    steps = min(self._chunk(active), end - t, len(segments[active[-1]]) - t)
                    if not steps:
                        break
                    frames = np.stack([segments[i][t : t + steps, :, 0] for i in active])  # (B, C, S)
                    h = self.engine.forward(state, self._ids(frames).reshape(len(active), -1))
                    # The last token of a frame predicts the beginning of the next one, which is known.
                    h = h.reshape(len(active) * steps, -1, h.shape[-1])[:, :-1].reshape(frames.size, -1)
                    levels = Tables(self.engine.logits(h), self.engine.ops).intervals(frames.reshape(-1))
                    # (levels, low and high, B, C * S) -> (B, low and high, C * S * levels)
                    bounds = np.array(levels).reshape(len(levels), 2, len(active), -1).transpose(2, 1, 3, 0)
                    for i, (low, high) in zip(active, bounds.reshape(len(active), 2, -1)):
                        encoders[i].put(low, high)
                    t += steps
                    if advance:
                        advance(frames.size)
        uniform = [encode_uniform([segment], self.spec.factors) for segment in segments]
        return [min(encoder.finish(), other, key=len) for encoder, other in zip(encoders, uniform)]

    def decode(
        self, streams: Sequence[bytes], frames: Sequence[Sequence[int]], advance: Advance | None = None
    ) -> list[list[np.ndarray]]:
        segments = [np.zeros((n, self.spec.positions, 1), np.int32) for (n,) in frames]
        coded = [(Decoder(stream), segment) for stream, segment in zip(streams, segments)]
        coded = [(d, segment) for d, segment in coded if not decode_uniform(d, [segment], self.spec.factors)]
        modelled = [segment for _, segment in coded]
        if advance:
            advance((sum(map(len, segments)) - sum(map(len, modelled))) * self.spec.positions)
        with self.engine.ops.settings():
            for active, state, t, end in self._windows(modelled):
                last: list[np.ndarray] = []  # of the frame before, (B, 1): the network has yet to see it
                for now in range(t, end):
                    running = self._running(active, modelled, now, state)
                    if not running:
                        break
                    last = [x[: len(running)] for x in last]
                    decoders = [coded[i][0] for i in running]
                    ids = np.concatenate([*last, np.full((len(running), 1), self.engine.config.bos)], 1)
                    for s in range(self.spec.positions):
                        symbols = self._next(state, ids, decoders)
                        for i, symbol in zip(running, symbols):
                            modelled[i][now, s, 0] = symbol
                        ids = symbols[:, None]
                    last = [ids]
                    if advance:
                        advance(len(running) * self.spec.positions)
        return [[segment] for segment in segments]

    def _next(self, state: TokenState, ids: np.ndarray, decoders: list[Decoder]) -> np.ndarray:
        """Take ids (B, C) in, and decode the next token of each segment -> (B,)."""
        h = self.engine.forward(state, ids)
        h = h.reshape(len(ids), -1, h.shape[-1])[:, -1]
        return Tables(self.engine.logits(h), self.engine.ops).read(decoders)

    def _windows(self, segments: Sequence[np.ndarray]) -> Iterator[tuple[list[int], TokenState, int, int]]:
        """(segments still running, from long to short; state after the kept frames; frames to code: first, end)."""
        order = sorted(range(len(segments)), key=lambda i: -len(segments[i]))
        t = 0
        while order := [i for i in order if len(segments[i]) > t]:
            kept = min(t, self.keep)
            end = min(t - kept + self.window, len(segments[order[0]]))
            state = self.engine.start(len(order), (end - t + kept) * (self.spec.positions + 1))
            for a in range(t - kept, t, self._chunk(order)):
                frames = np.stack([segments[i][a : min(a + self._chunk(order), t), :, 0] for i in order])
                self.engine.forward(state, self._ids(frames).reshape(len(order), -1))
            yield order, state, t, end
            t = end

    def _running(self, active: list[int], segments: Sequence[np.ndarray], t: int, state: TokenState) -> list[int]:
        """Those of `active` that have a frame t; the state goes on with them alone."""
        running = [i for i in active if len(segments[i]) > t]
        if len(running) < len(active):
            state.keep(self.engine.config.heads, len(running))
        return running

    def _chunk(self, active: list[int]) -> int:
        """Frames of each segment in one call."""
        return max(1, ROWS // (len(active) * (self.spec.positions + 1)))

    def _ids(self, frames: np.ndarray) -> np.ndarray:
        """(B, C, S) -> (B, C, 1 + S), each frame begun by the id that begins it."""
        return np.concatenate([np.full_like(frames[..., :1], self.engine.config.bos), frames], -1)

    def _check(self, segment: np.ndarray) -> None:
        shape = (self.spec.positions, 1)
        if segment.ndim != 3 or segment.shape[1:] != shape or len(segment) == 0:
            raise InputError(f"expected segments of shape (T >= 1, {shape[0]}, 1), found {segment.shape}")
        if segment.min() < 0 or segment.max() >= self.spec.factors[0]:
            found = segment.min() if segment.min() < 0 else segment.max()
            raise InputError(f"expected ids in 0..{self.spec.factors[0] - 1}, found {found}")
