"""The way out of a model that does not fit: tokens coded uniformly. The first decision of a stream says which it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .coder import Decoder, Encoder

MODELLED, UNIFORM = np.array([0]), np.array([1])
"""The first decision."""
RARE = np.array([1])
"""The probability of UNIFORM, 2^-16."""


def modelled() -> Encoder:
    """The encoder of a stream whose tokens a model predicts."""
    encoder = Encoder()
    encoder.put_bits(MODELLED, RARE)
    return encoder


def encode_uniform(segments: Sequence[np.ndarray], factors: Sequence[int]) -> bytes:
    """The stream of segments (T, S, F) whose tokens are coded uniformly."""
    encoder = Encoder()
    encoder.put_bits(UNIFORM, RARE)
    for f, size in enumerate(factors):
        for segment in segments:
            encoder.put_uniform(segment[:, :, f].reshape(-1), size)
    return encoder.finish()


def decode_uniform(decoder: Decoder, segments: Sequence[np.ndarray], factors: Sequence[int]) -> bool:
    """Read the first decision; where tokens are coded uniformly, fill segments (T, S, F) with them. Returns whether."""
    if decoder.get_bits(RARE) != UNIFORM:
        return False
    for f, size in enumerate(factors):
        for segment in segments:
            segment[:, :, f] = decoder.get_uniform(size, segment[:, :, f].size).reshape(len(segment), -1)
    return True
