"""What a model is trained on and what its weights are chosen by: random windows, and held-out frames."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..runtime.config import ModelConfig
from ..runtime.errors import InputError
from .config import HELD_OUT_LIMIT, MANY_SEGMENTS, TrainConfig
from .frames import Frames, Subset

TOKENS_AT_ONCE = 1 << 16
"""Tokens in memory at a time where all are looked through."""
HELD_OUT_PART = 4
"""One part in so many of a segment is held out at most where the user says nothing."""


class Feed:
    """Draws the windows of each step, and knows which frames are held out.

    What is drawn depends on (seed, step, micro-batch) alone: a training that was interrupted goes on with the same
    windows, and so does another number of processes. Raises InputError if segments do not fit the network, or are too
    short.
    """

    def __init__(self, segments: Sequence[Frames], network: ModelConfig, config: TrainConfig) -> None:
        self.network, self.config = network, config
        for segment in segments:
            _check(segment, network)
        last = config.held_out * config.every
        least = (config.frames + config.held_out) * config.every
        longest = max((len(s) for s in segments), default=0)
        if config.drops_short:
            segments = [s for s in segments if len(s) >= least]
            if not segments:
                raise InputError(
                    f"training: expected a segment of {least} frames or more, found none{_cure(longest, config)}"
                )
        whole = _choose(len(segments), config) if config.held_out else set()
        held = [s for i, s in enumerate(segments) if i in whole or not whole] if config.held_out else []
        self.held_out: list[Frames] = [
            Subset(s, first, config.every) if config.every > 1 else s for s in held for first in range(config.every)
        ]
        """Each counts with its last `held_out` frames."""
        self._segments = [s for i, s in enumerate(segments) if i not in whole]
        self._lengths = [len(s) - (0 if whole else last) for s in self._segments]
        if not self._segments:
            raise InputError("training: expected at least one segment, found none")
        if min(self._lengths) < config.frames * config.every:
            shortest = min(len(s) for s in self._segments)
            raise InputError(
                f"training: every segment needs {config.frames * config.every} frames besides the "
                f"{0 if whole else last} held out; the shortest has {shortest} in all"
                f"{_cure(shortest, config, bool(whole))}"
            )
        self._ends = np.cumsum(self._lengths)
        self.whole = len(whole)
        """Segments that are held out as a whole."""
        self.segments = len(segments)
        self.frames = sum(len(s) for s in segments)
        self.trained_frames = int(self._ends[-1])
        self.counts = self._count(segments, whole)
        """How often each id of a factor is in what is trained on: int64 (V_f,) for each."""

    @property
    def segment_tokens(self) -> float:
        """Tokens of a segment, on average."""
        return self.frames * self.network.positions / self.segments

    @property
    def fingerprint(self) -> dict[str, int]:
        """What a checkpoint keeps of the data, to recognise them."""
        crc = zlib.crc32(b"".join(count.astype("<i8").tobytes() for count in self.counts))
        return {"segments": self.segments, "frames": self.frames, "counts": crc}

    def batch(self, step: int, micro: int) -> tuple[Tensor, int]:
        """Micro-batch `micro` of a step: int64 windows (batch, frames, S, F), and the seed of its dropout."""
        random = np.random.default_rng((self.config.seed, step, micro))
        windows = [self._window(random) for _ in range(self.config.batch)]
        return torch.from_numpy(np.stack(windows)), int(random.integers(1 << 62))

    def _window(self, random: np.random.Generator) -> np.ndarray:
        """int64 (frames, S, F); segments are drawn in proportion to their length."""
        c = self.config
        i = int(np.searchsorted(self._ends, random.integers(self._ends[-1]), side="right"))
        length = self._lengths[i]
        doubled = length >= 2 * c.frames * c.every and random.random() < c.stride
        stride = 2 * c.every if doubled else c.every
        start = int(random.integers(length - stride * (c.frames - 1)))
        window = self._segments[i][start : start + stride * (c.frames - 1) + 1 : stride]
        if random.random() < c.reverse:
            window = window[::-1]
        if random.random() < c.mirror:
            grid = window.reshape(c.frames, self.network.height, self.network.width, -1)
            window = grid[:, :, ::-1].reshape(window.shape)
        return window.astype(np.int64)

    def _count(self, segments: Sequence[Frames], whole: set[int]) -> list[np.ndarray]:
        """Look through all values once: check their range, and count those that are trained on."""
        factors = self.network.factors
        counts = [np.zeros(size, np.int64) for size in factors]
        step = max(1, TOKENS_AT_ONCE // self.network.positions)
        lengths = iter(self._lengths)
        for i, segment in enumerate(segments):
            trained = 0 if i in whole else next(lengths)
            for start in range(0, len(segment), step):
                block = segment[start : start + step]
                if block.min() < 0 or (block.max((0, 1)) >= factors).any():
                    raise InputError(
                        f"training: expected ids from 0 to below {' x '.join(map(str, factors))}, "
                        f"found {block.min()} to {block.max()}"
                    )
                for f, size in enumerate(factors):
                    known = block[: max(trained - start, 0), :, f].reshape(-1)
                    counts[f] += np.bincount(known.astype(np.int64), minlength=size)
        return counts


def _check(segment: Frames, network: ModelConfig) -> None:
    frame, s, factors = np.asarray(segment[:1]), network.positions, len(network.factors)
    if frame.ndim != 3 or frame.shape[1:] != (s, factors) or frame.dtype.kind not in "iu":
        shape = (len(segment), *frame.shape[1:])
        raise InputError(f"training: expected integers (frames, {s}, {factors}), found {frame.dtype} {shape}")


def usual_held_out(lengths: Sequence[int], config: TrainConfig) -> int:
    """Frames to hold out of segments of these lengths where the user says nothing: `config.held_out`, or fewer.

    At most a quarter of the shortest segment (of the longest, where short ones are dropped), and no more than leaves
    a window to train on. Of many segments, whole ones are held out, and nothing need be left of them.
    """
    if not lengths or not config.held_out:
        return config.held_out
    frames = (max if config.drops_short else min)(lengths) // config.every
    if _choose(len(lengths), config) and not config.drops_short:
        return max(1, min(config.held_out, frames))
    return max(1, min(config.held_out, frames // HELD_OUT_PART, frames - config.frames))


def _cure(length: int, config: TrainConfig, whole: bool = False) -> str:
    """Which options make a segment of this length long enough."""
    seen = length // config.every
    room, window = seen - config.frames, seen - (0 if whole else config.held_out)
    cures = [f"--held-out {room}"] if room >= 0 and not whole else []
    cures += [f"--set frames={window}"] if window > 0 else []
    if 0 < (every := length // (config.frames + (0 if whole else config.held_out))) < config.every:
        cures.append(f"--set every={every}")
    return f": try {' or '.join(cures)}" if cures else ": try a smaller --held-out and --set frames=N"


def _choose(segments: int, config: TrainConfig) -> set[int]:
    """Which segments to hold out as a whole, evenly spread."""
    if segments < MANY_SEGMENTS or not config.held_out_share:
        return set()
    count = min(HELD_OUT_LIMIT, max(1, round(segments * config.held_out_share)))
    return {(2 * i + 1) * segments // (2 * count) for i in range(count)}
