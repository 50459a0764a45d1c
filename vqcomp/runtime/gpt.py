"""Segments <-> streams by a FrameGPT. Encoding and decoding are one loop, seen from two sides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .codec import Advance, Codec, lockstep
from .coder import Decoder
from .compute import Compute
from .engine import Engine
from .loading import load_engine
from .spec import TokenSpec
from .tables import Tables
from .uniform import decode_uniform, encode_uniform, modelled

# Rows in one call of the engine: enough for the GEMMs' full rate, few enough for the cache.
ROWS = {"cpu": 1024, "cuda": 1 << 16}


def make(spec: TokenSpec, model: bytes, compute: Compute) -> GPTCodec:
    """The codec for tokens of `spec` by the network in a .vqm; raises as `load_engine` does."""
    return GPTCodec(load_engine(spec, model, compute))


class GPTCodec(Codec):
    """A `Codec` (see codec.py) by a FrameGPT alone; every segment has a stream of its own."""

    group_size = group_limit = 1

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def encode(self, groups: Sequence[Sequence[np.ndarray]], advance: Advance | None = None) -> list[bytes]:
        with self.engine.ops.settings():
            return self._encode([segment for (segment,) in groups], advance)

    def decode(
        self, streams: Sequence[bytes], frames: Sequence[Sequence[int]], advance: Advance | None = None
    ) -> list[list[np.ndarray]]:
        with self.engine.ops.settings():
            return [[segment] for segment in self._decode(streams, [n for (n,) in frames], advance)]

    def _encode(self, segments: list[np.ndarray], advance: Advance | None) -> list[bytes]:
        encoders = [modelled() for _ in segments]
        spec, ops = self.engine.config.spec, self.engine.ops
        rows = ROWS["cpu" if ops.on_host else "cuda"]
        chunk = max(1, rows // (len(segments) * spec.positions))
        state = self.engine.start(len(segments))
        for active, t, steps in lockstep([len(s) for s in segments], chunk):
            state.keep(len(active))
            frames = np.stack([segments[i][t : t + steps] for i in active])  # (B, C, S, F)
            before = np.stack([_frame_before(segments[i], t) for i in active])
            logits = self.engine.forward(state, np.concatenate([before, frames[:, :-1]], 1))
            levels = [
                level for f, x in enumerate(logits) for level in Tables(x, ops).intervals(frames[..., f].reshape(-1))
            ]
            # A frame's levels one after another: (levels, low and high, B, C, S) -> (B, low and high, C * levels * S).
            bounds = np.array(levels).reshape(len(levels), 2, len(active), steps, spec.positions)
            bounds = bounds.transpose(2, 1, 3, 0, 4).reshape(len(active), 2, -1)
            for i, (low, high) in zip(active, bounds):
                encoders[i].put(low, high)
            if advance:
                advance(frames[..., 0].size)
        uniform = [encode_uniform([segment], spec.factors) for segment in segments]
        return [min(encoder.finish(), other, key=len) for encoder, other in zip(encoders, uniform)]

    def _decode(self, streams: Sequence[bytes], lengths: list[int], advance: Advance | None) -> list[np.ndarray]:
        spec, ops = self.engine.config.spec, self.engine.ops
        segments = [np.zeros((n, spec.positions, len(spec.factors)), np.int32) for n in lengths]
        coded = [(Decoder(stream), segment) for stream, segment in zip(streams, segments)]
        coded = [(d, segment) for d, segment in coded if not decode_uniform(d, [segment], spec.factors)]
        if advance:
            advance((sum(lengths) - sum(len(segment) for _, segment in coded)) * spec.positions)
        state = self.engine.start(len(coded))
        for active, t, _ in lockstep([len(segment) for _, segment in coded], 1):
            state.keep(len(active))
            before = np.stack([_frame_before(coded[i][1], t) for i in active])
            for f, x in enumerate(self.engine.forward(state, before)):
                symbols = Tables(x, ops).read([coded[i][0] for i in active])
                for i, frame in zip(active, symbols.reshape(len(active), spec.positions)):
                    coded[i][1][t, :, f] = frame
            if advance:
                advance(len(active) * spec.positions)
        return segments


def _frame_before(segment: np.ndarray, t: int) -> np.ndarray:
    """(1, S, F): frame t - 1, or -1 before the first."""
    return segment[t - 1 : t] if t else np.full_like(segment[:1], -1)
