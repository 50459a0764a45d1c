"""AdaptiveCodec: compresses with a model that learns from the tokens already coded, alone or on top of a network.

`mixing.py` predicts; this file turns the predictions into range-coded streams. A stream holds one group. Its segments
are coded in lockstep, sorted from long to short, and learn together. The order of decisions: frame by frame; in a frame
factor by factor; in a factor level by level of the code tree; in a level segment by segment and position by position.

The first decision of a stream says whether the model is used at all. Tokens that it cannot predict are coded uniformly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .codec import Advance, Codec, lockstep
from .coder import Decoder
from .compute import Compute
from .errors import DamageError, InputError
from .mixing import Given, TreeMixer, path_to
from .online import VOCABULARY_MAX
from .spec import TokenSpec
from .uniform import decode_uniform, encode_uniform, modelled

GROUP_SIZE, GROUP_LIMIT = 8, 64
"""Segments that learn together: what is usual, and the most."""
WEIGHTS_MAX, WEIGHTS_LIMIT = 1 << 20, 1 << 24
"""Probabilities of tokens that a frame of a group takes, in arrays of (P, V): what is usual, and the most, unless one
segment alone has more. Each takes some 36 bytes, so 600 MB."""
POSITIONS_MAX = 1 << 18
"""Positions of a group's frame up to which all sums are proven exact. Larger frames are coded uniformly."""
REPORT = 16
"""Frames between calls of progress."""


class Frame(NamedTuple):
    """A frame of the segments of a group that still run."""

    members: list[int]
    time: int
    tokens: np.ndarray
    """int64 (G, S, F)."""
    given: Sequence[Given | None]
    """For each factor, what waits for a network's opinion."""


def frame_of(segments: Sequence[np.ndarray], members: list[int], time: int) -> np.ndarray:
    """Tokens of these segments, int64 (G, S, F)."""
    return np.stack([segments[i][time] for i in members]).astype(np.int64)


def make(spec: TokenSpec, model: None, compute: Compute) -> AdaptiveCodec:
    """The codec for tokens of `spec` by learning alone. (Other kinds of codec need the model, and what computes it.)"""
    return AdaptiveCodec(spec)


class AdaptiveCodec(Codec):
    """Codec (see codec.py) that learns. The tables of a group take at most 256 MiB, untouched at first.

    One thread at a time may use it.
    """

    def __init__(self, spec: TokenSpec):
        self.spec = spec

    @property
    def group_size(self) -> int:
        return max(1, min(GROUP_SIZE, WEIGHTS_MAX // self._weights, POSITIONS_MAX // self.spec.positions))

    @property
    def group_limit(self) -> int:
        return max(1, min(GROUP_LIMIT, WEIGHTS_LIMIT // self._weights, POSITIONS_MAX // self.spec.positions))

    @property
    def _weights(self) -> int:
        """Probabilities that a frame of one segment takes."""
        return self.spec.positions * min(max(self.spec.factors), VOCABULARY_MAX)

    def encode(self, groups: Sequence[Sequence[np.ndarray]], advance: Advance | None = None) -> list[bytes]:
        """Groups of integer segments (T, S, F) -> a stream each. Raises InputError for other shapes or ids."""
        return [self._encode_group(list(group), advance) for group in groups]

    def decode(
        self, streams: Sequence[bytes], frames: Sequence[Sequence[int]], advance: Advance | None = None
    ) -> list[list[np.ndarray]]:
        """Inverse of `encode`: streams, and each group's lengths T -> each group's int32 segments (T, S, F).

        Raises DamageError for a stream that `encode` cannot have made. Other damage gives wrong tokens within range.
        """
        return [self._decode_group(s, list(f), advance) for s, f in zip(streams, frames, strict=True)]

    def _encode_group(self, segments: list[np.ndarray], advance: Advance | None) -> bytes:
        for segment in segments:
            self._check(segment)
        uniform = encode_uniform(segments, self.spec.factors)
        if len(segments) * self.spec.positions > POSITIONS_MAX:
            return uniform
        lengths = [len(segment) for segment in segments]
        encoder = modelled()
        mixers = self._mixers(len(segments))
        for members, time, frame, given in self._known_frames(segments):
            for f, mixer in enumerate(mixers):
                node, bits = path_to(frame[:, :, f].reshape(-1), mixer.levels)
                mixer.begin(frame[:, :, :f], given[f])
                encoder.put_bits(bits.reshape(-1), mixer.predict(0, node).reshape(-1))
                mixer.update(bits, frame[:, :, f])
            self._tell(advance, time, len(members), lengths)
        return min(encoder.finish(), uniform, key=len)

    def _decode_group(self, stream: bytes, lengths: list[int], advance: Advance | None) -> list[np.ndarray]:
        decoder = Decoder(stream)
        shape = (self.spec.positions, len(self.spec.factors))
        segments = [np.zeros((length, *shape), np.int32) for length in lengths]
        if decode_uniform(decoder, segments, self.spec.factors):
            if advance:
                advance(sum(lengths) * self.spec.positions)
            return segments
        if len(segments) * self.spec.positions > POSITIONS_MAX:
            raise DamageError("expected tokens of so large a frame to be coded uniformly; fetch the archive again")
        mixers = self._mixers(len(segments))
        given = self._given(np.full((len(segments), *shape), -1, np.int64))
        for members, time, _ in lockstep(lengths):
            frame = np.zeros((len(members), *shape), np.int64)  # (G, S, F)
            bits = [np.empty((mixer.levels, len(members) * shape[0]), np.int64) for mixer in mixers]  # (L, P)
            for f, mixer in enumerate(mixers):
                mixer.begin(frame[:, :, :f], given[f])
                node = np.ones((1, bits[f].shape[1]), np.int64)
                for level, row in enumerate(bits[f]):
                    row[:] = decoder.get_bits(mixer.predict(level, node)[0])
                    node *= 2
                    node += row
                tokens = node - (1 << mixer.levels)
                if tokens.max() >= self.spec.factors[f]:
                    raise DamageError("a stream decodes to an id outside the vocabulary; fetch the archive again")
                frame[:, :, f] = tokens.reshape(len(members), -1)
            if time + 1 < max(lengths):
                given = self._given(frame)
            for f, mixer in enumerate(mixers):
                mixer.update(bits[f], frame[:, :, f])
            for i, tokens in zip(members, frame, strict=True):
                segments[i][time] = tokens
            self._tell(advance, time, len(members), lengths)
        return segments

    def _mixers(self, segments: int) -> Sequence[TreeMixer]:
        """A mixer for each factor, before the first frame of so many segments."""
        return [TreeMixer(self.spec, f, segments) for f in range(len(self.spec.factors))]

    def _given(self, before: np.ndarray) -> Sequence[Given | None]:
        """For each factor, what waits for a network's opinion on the frame after `before` (G, S, F), -1 for none."""
        return [None] * len(self.spec.factors)

    def _known_frames(self, segments: list[np.ndarray]) -> Iterator[Frame]:
        """The frames of segments that are known."""
        for members, time, _ in lockstep([len(segment) for segment in segments]):
            yield Frame(members, time, frame_of(segments, members, time), [None] * len(self.spec.factors))

    def _check(self, segment: np.ndarray) -> None:
        shape = (self.spec.positions, len(self.spec.factors))
        if segment.ndim != 3 or segment.shape[1:] != shape or len(segment) == 0:
            raise InputError(f"expected segments of shape (T >= 1, {shape[0]}, {shape[1]}), found {segment.shape}")
        if (segment < 0).any() or (segment >= np.array(self.spec.factors)).any():
            raise InputError(f"expected ids below the factors {self.spec.factors}, found a negative or a larger one")

    def _tell(self, advance: Advance | None, time: int, members: int, lengths: list[int]) -> None:
        """Report the tokens of the frames since the last report."""
        if advance is None:
            return
        if (time + 1) % REPORT == 0 or time + 1 == max(lengths):
            first = time - time % REPORT
            frames = sum(max(0, min(time + 1, length) - first) for length in lengths)
            advance(frames * self.spec.positions)
