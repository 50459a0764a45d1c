"""The codec that learns while it codes, with the opinion of a network that predicts tokens one after another.

What learns is that of adapt.py: its state is frozen within a frame, so the network alone needs the frame's own tokens.
Encoding predicts whole frames at once, decoding place by place. So decisions come in another order than adapt.py's:
frame by frame, in it place by place, in it level by level, in it segment by segment.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from .adapt import GROUP_LIMIT, GROUP_SIZE, POSITIONS_MAX, WEIGHTS_MAX, frame_of
from .codec import Advance, Codec
from .coder import Decoder
from .compute import Compute
from .errors import DamageError, InputError
from .given import GivenMixer, fill
from .mixing import path_to
from .online import WIDTH
from .opinions import Masses
from .spec import TokenSpec
from .tables import weights
from .token_codec import check_segment
from .token_external import load_windows
from .token_memory import side_by_side
from .token_windows import TokenWindows
from .uniform import decode_uniform, encode_uniform, modelled

CODE_MAX = 127
"""Largest code of an embedding, as `GivenMixer` wants them."""


def make(spec: TokenSpec, model: bytes, compute: Compute) -> TokenMixedCodec:
    """The codec for tokens of `spec` by an external network and by learning; raises as `load_windows` does."""
    return TokenMixedCodec(load_windows(spec, model, compute))


class PlaceMixer(GivenMixer):
    """A mixer beside a network that predicts token by token: a frame is begun, asked for place by place, then whole."""

    def of_place(self, place: int, weights: np.ndarray) -> PlaceMixer:
        """A mixer that predicts one place in the frame of each segment, and nothing else; after `begin` without given.

        weights (G, V): the given network's, there. Once all are known, `hear` and `predict` the whole frame before
        `update`.
        """
        part = copy.copy(self)
        part._stay_at(slice(place, None, self.past.positions))
        part.given = Masses(self.past.size)
        part.hear(weights)
        return part

    def hear(self, weights: np.ndarray) -> None:
        """The given network's weights (P, V), where `begin` was not given them."""
        fill(self.given, weights)

    def _stay_at(self, rows: slice) -> None:
        """Have these of a frame's positions only."""
        self._base, self._parents, self._sides = (x[..., rows] for x in (self._base, self._parents, self._sides))
        self._first_match, self._numbers = self._first_match[:, rows], [x[:, rows].copy() for x in self._numbers]
        self._trace = []
        if self.online:
            self.online = copy.copy(self.online)
            self.online.masses = copy.copy(self.online.masses)
            self.online.masses.first = self.online.masses.first[rows]


class TokenMixedCodec(Codec):
    """Codec (see codec.py) by a TokenGPT and by what learns. Groups are coded one after another."""

    def __init__(self, windows: TokenWindows) -> None:
        self.windows = windows

    @property
    def group_size(self) -> int:
        spec = self.windows.spec
        return max(1, min(GROUP_SIZE, WEIGHTS_MAX // (spec.positions * spec.factors[0]), self.group_limit))

    @property
    def group_limit(self) -> int:
        return max(1, min(GROUP_LIMIT, POSITIONS_MAX // self.windows.spec.positions))

    def encode(self, groups: Sequence[Sequence[np.ndarray]], advance: Advance | None = None) -> list[bytes]:
        with self.windows.engine.ops.settings():
            return [self._encode(list(group), advance) for group in groups]

    def decode(
        self, streams: Sequence[bytes], frames: Sequence[Sequence[int]], advance: Advance | None = None
    ) -> list[list[np.ndarray]]:
        with self.windows.engine.ops.settings():
            return [self._decode(s, list(lengths), advance) for s, lengths in zip(streams, frames, strict=True)]

    def _encode(self, segments: list[np.ndarray], advance: Advance | None) -> bytes:
        spec, ops = self.windows.spec, self.windows.engine.ops
        for segment in segments:
            check_segment(segment, spec)
        uniform = encode_uniform(segments, spec.factors)
        if len(segments) * spec.positions > POSITIONS_MAX:
            return uniform
        self._require_room(segments)
        encoder, mixer = modelled(), self._mixer(len(segments))
        for active, first, steps, logits in self.windows.known(segments):
            given = ops.host(weights(logits, ops)).reshape(len(active), steps, spec.positions, -1)
            for t in range(steps):
                frame = frame_of(segments, active, first + t)[:, :, 0]  # (G, S)
                mixer.begin(np.zeros((*frame.shape, 0), np.int64))
                probability, bits = self._predict(mixer, frame, given[:, t])
                # (L, G * S) -> place by place, level by level, segment by segment
                parts = [x.reshape(len(x), len(active), -1).transpose(2, 0, 1).reshape(-1) for x in (bits, probability)]
                encoder.put_bits(*parts)
                mixer.update(bits, frame)
            if advance:
                advance(len(active) * steps * spec.positions)
        return min(encoder.finish(), uniform, key=len)

    def _decode(self, stream: bytes, lengths: list[int], advance: Advance | None) -> list[np.ndarray]:
        spec, ops, decoder = self.windows.spec, self.windows.engine.ops, Decoder(stream)
        segments = [np.zeros((length, spec.positions, 1), np.int32) for length in lengths]
        if decode_uniform(decoder, segments, spec.factors):
            if advance:
                advance(sum(lengths) * spec.positions)
            return segments
        if len(segments) * spec.positions > POSITIONS_MAX:
            raise DamageError("expected tokens of so large a frame to be coded uniformly; fetch the archive again")
        self._require_room(segments)
        mixer = self._mixer(len(segments))
        for active, t, look in self.windows.coming(segments):
            frame = np.zeros((len(active), spec.positions), np.int64)
            mixer.begin(np.zeros((*frame.shape, 0), np.int64))
            given, tokens = np.empty((*frame.shape, spec.factors[0]), np.float32), None
            for s in range(spec.positions):
                given[:, s] = ops.host(weights(look(tokens), ops))
                place, node = mixer.of_place(s, given[:, s]), np.ones((1, len(active)), np.int64)
                for level in range(mixer.levels):
                    node = 2 * node + decoder.get_bits(place.predict(level, node)[0])
                tokens = node[0] - (1 << mixer.levels)
                if tokens.max() >= spec.factors[0]:
                    raise DamageError("a stream decodes to an id outside the vocabulary; fetch the archive again")
                frame[:, s] = tokens
            _, bits = self._predict(mixer, frame, given)
            mixer.update(bits, frame)
            for i, row in zip(active, frame):
                segments[i][t, :, 0] = row
            if advance:
                advance(frame.size)
        return segments

    def _predict(self, mixer: PlaceMixer, frame: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A known frame (G, S), and the network's weights (G, S, V) -> probabilities of ones, and bits, both (L, P)."""
        node, bits = path_to(frame.reshape(-1), mixer.levels)
        mixer.hear(given.reshape(frame.size, -1))
        return mixer.predict(0, node), bits

    def _mixer(self, segments: int) -> PlaceMixer:
        """A new one, whose online network starts from the given one's embeddings, folded to its width."""
        engine, spec = self.windows.engine, self.windows.spec
        embeddings = engine.ops.host(engine.tokens)[: spec.factors[0]].astype(np.float64)
        width = min(WIDTH, embeddings.shape[1])
        embeddings = np.pad(embeddings, ((0, 0), (0, -embeddings.shape[1] % width)))
        folded = embeddings.reshape(len(embeddings), -1, width).sum(1)
        return PlaceMixer(spec, 0, segments, np.rint(folded * (CODE_MAX / max(np.abs(folded).max(), 1.0))))

    def _require_room(self, segments: Sequence[np.ndarray]) -> None:
        """Raise InputError unless memory has room for the segments of a group side by side."""
        room = len(next(iter(side_by_side(self.windows, segments))))
        if room < len(segments):
            raise InputError(
                f"memory has room for {room} of a group's {len(segments)} segments side by side: compress with "
                f"--group-size {room}, or use another device or machine"
            )
