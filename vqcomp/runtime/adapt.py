"""AdaptiveCodec: compresses with a model that learns from the tokens already coded, alone or on top of a network.

`mixing.py` predicts; this file turns its predictions into range-coded streams. A stream holds one group. Its segments
are coded in lockstep, sorted from long to short, and learn together. Decisions are coded frame by frame, in a frame
factor by factor, in a factor level by level of the code tree, in a level segment by segment and position by position.

The first decision of a stream says whether the model is used at all: tokens that it cannot predict are coded uniformly.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import constriction
import numpy as np

from .codec import Advance, Codec, lockstep
from .errors import DamageError, InputError
from .mixing import ONLINE_MAX, PROBABILITY, Given, TreeMixer
from .spec import TokenSpec

_BINARY = constriction.stream.model.Categorical(perfect=False)
_REPORT = 16
"""Frames between calls of progress."""
_POOL = ThreadPoolExecutor(1)
"""Where a network predicts the next frame, while all else learns from the last one."""
POSITIONS_MAX = 1 << 18
"""Of a group's frame: up to here all sums are proven exact; larger frames are coded uniformly."""


class Network(Protocol):
    """A trained network that predicts frames: see `gpt.FramePredictor`."""

    engine: Any
    """An `Engine`, named here without an import: archives of what learns alone need not carry it."""

    def start(self, segments: int) -> None:
        """Before the first frame of so many segments."""

    def predict(self, before: np.ndarray) -> list[np.ndarray]:
        """The frame before (G, S, F), -1 for none, of the first G segments -> each factor's weights (G * S, V)."""
        ...


def make(spec: TokenSpec, model: None, compute: object) -> AdaptiveCodec:
    """The codec for tokens of `spec` by learning alone."""
    return AdaptiveCodec(spec)


class AdaptiveCodec(Codec):
    """Codec (see codec.py) that learns. The tables of a group take at most 256 MiB, untouched at first."""

    def __init__(self, spec: TokenSpec, network: Network | None = None):
        self.spec, self.network = spec, network
        # Eight segments of commaVQ; fewer of a larger grid, whose arrays of (P, V) probabilities would take too much.
        largest = (1 << 20) // (spec.positions * min(max(spec.factors), ONLINE_MAX))
        self.group_size = max(1, min(8, largest, POSITIONS_MAX // spec.positions))

    def encode(self, groups: Sequence[Sequence[np.ndarray]], progress: Advance | None = None) -> list[bytes]:
        """Groups of integer segments (T, S, F) -> a stream each. Raises InputError for other shapes or ids."""
        return [self._encode_group(list(group), progress) for group in groups]

    def decode(
        self, streams: Sequence[bytes], frames: Sequence[Sequence[int]], progress: Advance | None = None
    ) -> list[list[np.ndarray]]:
        """Inverse of `encode`: streams, and each group's lengths T -> each group's int32 segments (T, S, F).

        Raises DamageError for a stream that `encode` cannot have made. Other damage gives wrong tokens within range.
        """
        return [self._decode_group(s, list(f), progress) for s, f in zip(streams, frames, strict=True)]

    def _encode_group(self, segments: list[np.ndarray], progress: Advance | None) -> bytes:
        for segment in segments:
            self._check(segment)
        if len(segments) * self.spec.positions > POSITIONS_MAX:
            return self._encode_uniform(segments).astype("<u4").tobytes()
        lengths = [len(segment) for segment in segments]
        encoder = constriction.stream.queue.RangeEncoder()
        encoder.encode(np.zeros(1, np.int32), _BINARY, _decisions(np.ones(1)))
        mixers, given = self._start(segments)
        for members, time, _ in lockstep(lengths):
            frame = np.stack([segments[i][time] for i in members]).astype(np.int64)  # (G, S, F)
            now, given = given, self._given(frame, time + 1 == max(lengths))
            for f, mixer in enumerate(mixers):
                tokens = frame[:, :, f].reshape(-1)
                level = np.arange(mixer.levels)[:, None]
                node = (1 << level) | (tokens >> (mixer.levels - level))  # (L, P)
                bits = (tokens >> (mixer.levels - 1 - level)) & 1
                mixer.begin(frame[:, :, :f], now[f])
                ones = mixer.predict(0, node)
                encoder.encode(bits.reshape(-1).astype(np.int32), _BINARY, _decisions(ones.reshape(-1)))
                mixer.update(bits, frame[:, :, f])
            self._tell(progress, time, len(members), lengths)
        words = encoder.get_compressed()
        uniform = self._encode_uniform(segments)
        return (words if len(words) <= len(uniform) else uniform).astype("<u4").tobytes()

    def _decode_group(self, stream: bytes, lengths: list[int], progress: Advance | None) -> list[np.ndarray]:
        if len(stream) % 4:
            raise DamageError(f"expected a stream of 32-bit words, found {len(stream)} bytes; fetch the archive again")
        decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(stream, "<u4").astype(np.uint32))
        shape = (self.spec.positions, len(self.spec.factors))
        segments = [np.zeros((length, *shape), np.int32) for length in lengths]
        try:
            if decoder.decode(_BINARY, _decisions(np.ones(1)))[0]:
                self._decode_uniform(decoder, segments)
                if progress:
                    progress(sum(segment[..., 0].size for segment in segments))
                return segments
            if len(segments) * self.spec.positions > POSITIONS_MAX:
                raise DamageError("expected tokens of so large a frame to be coded uniformly; fetch the archive again")
            mixers, given = self._start(segments)
            for members, time, _ in lockstep(lengths):
                frame = np.zeros((len(members), *shape), np.int64)  # (G, S, F)
                bits = [np.empty((mixer.levels, len(members) * shape[0]), np.int64) for mixer in mixers]
                for f, mixer in enumerate(mixers):
                    mixer.begin(frame[:, :, :f], given[f])
                    node = np.ones((1, bits[f].shape[1]), np.int64)
                    for level in range(mixer.levels):
                        ones = mixer.predict(level, node)
                        bits[f][level] = decoder.decode(_BINARY, _decisions(ones[0]))
                        node = node * 2 + bits[f][level]
                    tokens = node - (1 << mixer.levels)
                    if tokens.max() >= mixer.size:
                        raise DamageError("a stream decodes to an id outside the vocabulary; fetch the archive again")
                    frame[:, :, f] = tokens.reshape(len(members), -1)
                given = self._given(frame, time + 1 == max(lengths))
                for f, mixer in enumerate(mixers):
                    mixer.update(bits[f], frame[:, :, f])
                for i, tokens in zip(members, frame, strict=True):
                    segments[i][time] = tokens
                self._tell(progress, time, len(members), lengths)
        except (AssertionError, ValueError) as error:  # constriction's words for an impossible stream
            raise DamageError(f"expected a stream of tokens, found {error}; fetch the archive again") from error
        return segments

    def _start(self, segments: list[np.ndarray]) -> tuple[list[TreeMixer], list[Given | None]]:
        """A mixer for each factor, and what the network says of the first frame."""
        factors = range(len(self.spec.factors))
        codes: list[np.ndarray | None] = [None for _ in factors]
        if self.network:
            _POOL.submit(self.network.start, len(segments))
            engine = self.network.engine
            codes = [engine.ops.host(weight).T for weight, _ in engine.output]  # of each factor's tokens, (V, R)
        mixers = [TreeMixer(self.spec, f, len(segments), codes[f]) for f in factors]
        return mixers, self._given(np.full((len(segments), self.spec.positions, len(factors)), -1, np.int64))

    def _given(self, before: np.ndarray, last: bool = False) -> list[Given | None]:
        """For each factor, what waits for the network's opinion on the frame after `before` (G, S, F)."""
        if last or not self.network:
            return [None] * len(self.spec.factors)
        prediction = _POOL.submit(self.network.predict, before)
        return [partial(_part, prediction, f) for f in range(len(self.spec.factors))]

    def _encode_uniform(self, segments: list[np.ndarray]) -> np.ndarray:
        encoder = constriction.stream.queue.RangeEncoder()
        encoder.encode(np.ones(1, np.int32), _BINARY, _decisions(np.ones(1)))
        for f, size in enumerate(self.spec.factors):
            for segment in segments:
                tokens = np.ascontiguousarray(segment[:, :, f].reshape(-1), np.int32)
                encoder.encode(tokens, constriction.stream.model.Uniform(size))
        return encoder.get_compressed()

    def _decode_uniform(self, decoder: Any, segments: list[np.ndarray]) -> None:
        for f, size in enumerate(self.spec.factors):
            for segment in segments:
                tokens = decoder.decode(constriction.stream.model.Uniform(size), segment[:, :, f].size)
                segment[:, :, f] = tokens.reshape(len(segment), -1)

    def _check(self, segment: np.ndarray) -> None:
        shape = (self.spec.positions, len(self.spec.factors))
        if segment.ndim != 3 or segment.shape[1:] != shape or len(segment) == 0:
            raise InputError(f"expected segments of shape (T >= 1, {shape[0]}, {shape[1]}), found {segment.shape}")
        if (segment < 0).any() or (segment >= np.array(self.spec.factors)).any():
            raise InputError(f"expected ids below the factors {self.spec.factors}, found a negative or a larger one")

    def _tell(self, progress: Advance | None, time: int, members: int, lengths: list[int]) -> None:
        """Report the tokens of the frames since the last report."""
        if progress is None:
            return
        if (time + 1) % _REPORT == 0 or time + 1 == max(lengths):
            first = time - time % _REPORT
            frames = sum(max(0, min(time + 1, length) - first) for length in lengths)
            progress(frames * self.spec.positions)


def _part(prediction: Future[list[np.ndarray]], factor: int) -> np.ndarray:
    return prediction.result()[factor]


def _decisions(ones: np.ndarray) -> np.ndarray:
    """Probabilities of a 1 (R,) in 1..65535 -> constriction's tables (R, 2).

    Weights that are frequencies less one, and sum to 2^24 - 2, are taken as they are (Categorical with perfect=False).
    """
    weights = np.empty((len(ones), 2))
    np.multiply(ones, (1 << 24) // PROBABILITY, out=weights[:, 1])
    np.subtract((1 << 24) - 1, weights[:, 1], out=weights[:, 0])
    weights[:, 1] -= 1
    return weights
