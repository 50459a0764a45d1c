"""Segments <-> streams by a network that predicts tokens one after another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .codec import Advance, Codec
from .coder import Decoder
from .compute import Compute
from .errors import InputError
from .spec import TokenSpec
from .tables import Tables
from .token_external import load_windows
from .token_memory import side_by_side
from .token_windows import TokenWindows
from .uniform import decode_uniform, encode_uniform, modelled


def make(spec: TokenSpec, model: bytes, compute: Compute) -> TokenCodec:
    """The codec for tokens of `spec` by an external network; raises as `load_windows` does."""
    return TokenCodec(load_windows(spec, model, compute))


class TokenCodec(Codec):
    """A `Codec` (see codec.py) by a TokenGPT alone; every segment has a stream of its own.

    A stream's symbols follow token by token; a token is its group, then its member (FORMAT.md, section 5). So many
    segments are computed side by side as memory has room for.
    """

    group_size = group_limit = 1

    def __init__(self, windows: TokenWindows) -> None:
        self.windows = windows

    def encode(self, groups: Sequence[Sequence[np.ndarray]], advance: Advance | None = None) -> list[bytes]:
        segments = [segment for (segment,) in groups]
        for segment in segments:
            check_segment(segment, self.windows.spec)
        streams: list[bytes] = []
        with self.windows.engine.ops.settings():
            for some in side_by_side(self.windows, segments):
                streams += self._encode(some, advance)
        return streams

    def decode(
        self, streams: Sequence[bytes], frames: Sequence[Sequence[int]], advance: Advance | None = None
    ) -> list[list[np.ndarray]]:
        spec = self.windows.spec
        segments = [np.zeros((n, spec.positions, 1), np.int32) for (n,) in frames]
        coded = [(Decoder(stream), segment) for stream, segment in zip(streams, segments)]
        coded = [(d, segment) for d, segment in coded if not decode_uniform(d, [segment], spec.factors)]
        if advance:
            advance((sum(map(len, segments)) - sum(len(segment) for _, segment in coded)) * spec.positions)
        with self.windows.engine.ops.settings():
            start = 0
            for some in side_by_side(self.windows, [segment for _, segment in coded]):
                self._decode([d for d, _ in coded[start : start + len(some)]], some, advance)
                start += len(some)
        return [[segment] for segment in segments]

    def _encode(self, segments: Sequence[np.ndarray], advance: Advance | None) -> list[bytes]:
        encoders = [modelled() for _ in segments]
        for active, t, steps, logits in self.windows.known(segments):
            symbols = np.concatenate([segments[i][t : t + steps].reshape(-1) for i in active])
            levels = Tables(logits, self.windows.engine.ops).intervals(symbols)
            # (levels, low and high, B, C * S) -> (B, low and high, C * S * levels)
            bounds = np.array(levels).reshape(len(levels), 2, len(active), -1).transpose(2, 1, 3, 0)
            for i, (low, high) in zip(active, bounds.reshape(len(active), 2, -1)):
                encoders[i].put(low, high)
            if advance:
                advance(len(symbols))
        uniform = [encode_uniform([segment], self.windows.spec.factors) for segment in segments]
        return [min(encoder.finish(), other, key=len) for encoder, other in zip(encoders, uniform)]

    def _decode(self, decoders: list[Decoder], segments: Sequence[np.ndarray], advance: Advance | None) -> None:
        """Fill the segments."""
        spec, ops = self.windows.spec, self.windows.engine.ops
        for active, t, look in self.windows.coming(segments):
            readers = [decoders[i] for i in active]
            tokens: np.ndarray | None = None
            for s in range(spec.positions):
                tokens = Tables(look(tokens), ops).read(readers)
                for i, token in zip(active, tokens):
                    segments[i][t, s, 0] = token
            if advance:
                advance(len(active) * spec.positions)


def check_segment(segment: np.ndarray, spec: TokenSpec) -> None:
    """Raise InputError for an array that is no segment of `spec`."""
    shape = (spec.positions, 1)
    if segment.ndim != 3 or segment.shape[1:] != shape or len(segment) == 0:
        raise InputError(f"expected segments of shape (T >= 1, {shape[0]}, 1), found {segment.shape}")
    if segment.min() < 0 or segment.max() >= spec.factors[0]:
        found = segment.min() if segment.min() < 0 else segment.max()
        raise InputError(f"expected ids in 0..{spec.factors[0] - 1}, found {found}")
