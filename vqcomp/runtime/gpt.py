"""Segments <-> streams by a FrameGPT. Encoding and decoding are one loop, seen from two sides."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from .codec import Codec, Progress, lockstep
from .coder import Decoder, Encoder, Tables, weights
from .config import ModelConfig
from .engine import Engine, Tensors
from .errors import ModelError, PlatformError
from .exact import NumpyOps, TorchOps
from .spec import TokenSpec

SHARED_ROWS = 512
"""Rows from which on it pays to share an operation among threads."""
# Rows in one call of the engine: enough for the GEMMs' full rate, few enough for the cache.
ROWS = {"cpu": 1024, "cuda": 1 << 16}


def make_engine(
    spec: TokenSpec, config: ModelConfig, tensors: Tensors, ops: NumpyOps | TorchOps, check: int | None
) -> Engine:
    """The engine, after its self-test (unless check is None).

    Raises ModelError if the tokens are not what the model predicts, PlatformError if this machine's arithmetic does
    not give the self-test's result.
    """
    if spec != config.spec:
        raise ModelError(f"the model predicts {config.spec}, the tokens are {spec}")
    engine = Engine(config, tensors, ops)
    if check is not None and self_test(engine) != check:
        raise PlatformError(
            f"{ops.name}: the self-test's arithmetic is not exact on this machine; "
            "try another device (--device cpu, --device numpy)"
        )
    return engine


class FramePredictor:
    """A FrameGPT for the adaptive codec to mix in: one frame of all segments at a time."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def start(self, segments: int) -> None:
        """Before the first frame of so many segments."""
        self.state = self.engine.start(segments)
        # Small operations wait longer for a second thread, which learns meanwhile, than it saves them.
        self.engine.ops.share(segments * self.engine.config.positions >= SHARED_ROWS)

    def predict(self, before: np.ndarray) -> list[np.ndarray]:
        """The frame before (G, S, F), -1 for none, of the first G segments -> each factor's weights (G * S, V)."""
        ops = self.engine.ops
        self.state.keep(len(before))
        return [ops.host(weights(x, ops)) for x in self.engine.forward(self.state, before[:, None])]


class GPTCodec(Codec):
    """A `Codec` (see codec.py) by a FrameGPT alone; every segment has a stream of its own."""

    name = "gpt"
    group_size = 1

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.rows = ROWS["cpu" if engine.ops.on_host else "cuda"]

    def encode(self, groups: Sequence[Sequence[np.ndarray]], progress: Progress | None = None) -> list[bytes]:
        segments = [segment for (segment,) in groups]
        encoders = [Encoder() for _ in segments]
        spec, ops = self.engine.config.spec, self.engine.ops
        chunk = max(1, self.rows // (len(segments) * spec.positions))
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
            if progress:
                progress(frames.size)
        return [encoder.finish() for encoder in encoders]

    def decode(
        self, streams: Sequence[bytes], frames: Sequence[Sequence[int]], progress: Progress | None = None
    ) -> list[list[np.ndarray]]:
        lengths = [n for (n,) in frames]
        decoders = [Decoder(stream) for stream in streams]
        spec, ops = self.engine.config.spec, self.engine.ops
        segments = [np.zeros((n, spec.positions, len(spec.factors)), np.int32) for n in lengths]
        state = self.engine.start(len(streams))
        for active, t, _ in lockstep(lengths, 1):
            state.keep(len(active))
            before = np.stack([_frame_before(segments[i], t) for i in active])
            for f, x in enumerate(self.engine.forward(state, before)):
                symbols = Tables(x, ops).read([decoders[i] for i in active])
                for i, frame in zip(active, symbols.reshape(len(active), spec.positions)):
                    segments[i][t, :, f] = frame
            if progress:
                progress(len(active) * spec.positions * len(spec.factors))
        return [[segment] for segment in segments]


def _frame_before(segment: np.ndarray, t: int) -> np.ndarray:
    """(1, S, F): frame t - 1, or -1 before the first."""
    return segment[t - 1 : t] if t else np.full_like(segment[:1], -1)


def self_test(engine: Engine) -> int:
    """CRC-32 of the frequency tables of three frames of fixed tokens, two predicted at once and one alone."""
    spec = engine.config.spec
    state, tokens, x = engine.start(1), np.full((1, 3, spec.positions, len(spec.factors)), -1, np.int64), 1
    for t in (1, 2):
        for s in range(spec.positions):
            x = (1103515245 * x + 12345) & 0x7FFFFFFF
            # Half of the second frame repeats the first, so that flags and copies are at work.
            tokens[0, t, s] = tokens[0, 1, s] if t == 2 and s % 2 else [(x >> 8) % v for v in spec.factors]
    crc = 0
    for previous in (tokens[:, :2], tokens[:, 2:]):
        for logits in engine.forward(state, previous):
            tables = Tables(logits, engine.ops)
            crc = zlib.crc32(engine.ops.host(tables.w).astype("<i4").tobytes(), crc)
    return crc
