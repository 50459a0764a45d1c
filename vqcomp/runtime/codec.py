"""What turns segments into streams and back: by a network, or by a model that learns as it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from .spec import TokenSpec

Progress = Callable[[int], None]
"""Told now and then how many tokens (times factors) are done since it was told last."""


class Codec(Protocol):
    """Groups of segments <-> streams, without loss, the same bytes on every machine and in every batch.

    A segment is an int32 array (T, S, F): T >= 1 frames of S positions, row-major, of F factors. A group is what shares
    one stream; a call computes its groups as a batch.
    """

    name: str
    group_size: int
    """Segments in a group."""

    def encode(self, groups: Sequence[Sequence[np.ndarray]], progress: Progress | None = None) -> list[bytes]:
        """One stream for each group: little-endian 32-bit words."""
        ...

    def decode(
        self,
        streams: Sequence[bytes],
        frames: Sequence[Sequence[int]],
        progress: Progress | None = None,
    ) -> list[list[np.ndarray]]:
        """Inverse of `encode`; frames holds the lengths T of each group's segments.

        Damaged streams raise DamageError or give arrays with ids in range that differ: callers compare checksums.
        """
        ...

    def close(self) -> None:
        """Give back what it holds of the system."""
        return None


def lockstep(lengths: Sequence[int], chunk: int = 1) -> Iterator[tuple[list[int], int, int]]:
    """(segments still running, first frame, number of frames) until all have ended; longest segments first."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    t = 0
    while order := [i for i in order if lengths[i] > t]:
        steps = min(chunk, lengths[order[-1]] - t)
        yield order, t, steps
        t += steps


def make_codec(
    spec: TokenSpec,
    model: bytes | None,
    *,
    adapt: bool = False,
    device: str = "auto",
    threads: int | None = None,
    jobs: int = 1,
) -> Codec:
    """The codec for tokens of `spec`, by its name:

    "gpt"       by the network in `model`, the bytes of a .vqm
    "mixed"     by that network and what is learned while coding: adapt=True
    "adaptive"  by the latter alone: model=None

    device and threads: see `exact.make_ops`. jobs: processes that code groups side by side (see workers.py), where the
    codec learns; a network alone computes groups together. Raises ModelError, DamageError, PlatformError, InputError.
    """
    if jobs > 1 and (adapt or model is None):
        from .workers import Workers

        # Made here too, so that a model or a machine that will not do is found before any process is started.
        codec = make_codec(spec, model, adapt=adapt, device=device, threads=threads)
        return Workers(jobs, codec, spec, model, adapt=adapt, device=device, threads=threads)
    if model is None:
        from .adapt import AdaptiveCodec

        return AdaptiveCodec(spec)
    from .exact import make_ops
    from .gpt import FramePredictor, GPTCodec, make_engine
    from .weights import read_model

    config, tensors, check = read_model(model)
    engine = make_engine(spec, config, tensors, make_ops(device, threads), check)
    if not adapt:
        return GPTCodec(engine)
    from .adapt import AdaptiveCodec

    return AdaptiveCodec(spec, FramePredictor(engine))
