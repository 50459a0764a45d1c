"""What each token costs in bits, by the very probabilities that code it.

Added up, the costs are the size of the streams, but for the few bits at which a stream ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import log2

import numpy as np

from ..runtime.adapt import frame_of
from ..runtime.codec import Advance, lockstep
from ..runtime.coder import BIT_PRECISION, PRECISION
from ..runtime.compute import Compute
from ..runtime.engine import Engine
from ..runtime.errors import InputError
from ..runtime.kinds import EXTERNAL
from ..runtime.loading import load_engine
from ..runtime.mixed import FramePredictor, mixers_beside
from ..runtime.mixing import TreeMixer, path_to
from ..runtime.spec import TokenSpec
from ..runtime.tables import Tables

_ROWS = 1024
"""Rows of the engine at a time."""


def costs(
    spec: TokenSpec,
    model: bytes | None,
    groups: Sequence[Sequence[np.ndarray]],
    *,
    adapt: bool = True,
    compute: Compute | None = None,
    advance: Advance | None = None,
) -> list[list[np.ndarray]]:
    """Bits of every token of groups of segments, as codec.py has them: (T, S, F) integers -> float32 (T, S).

    By the network in `model`, a .vqm, and by what is learned on the way (`adapt`, or without a network), segments of a
    group together. Where a stream codes tokens uniformly, since nothing predicts them, so does this. Raises as
    `load_engine` does.
    """
    if model and model.startswith(EXTERNAL):
        raise InputError("the archive was coded by an external network, whose surprise is not measured")
    engine = load_engine(spec, model, compute or Compute()) if model else None
    if engine and not adapt:
        measure = partial(_by_network, engine)
    else:
        measure = partial(_by_learning, spec, FramePredictor(engine) if engine else None)
    measured = []
    for group in groups:
        bits = measure(group, advance)
        if sum(float(b.sum()) for b in bits) > (uniform := sum(map(log2, spec.factors))) * sum(b.size for b in bits):
            bits = [np.full_like(b, uniform) for b in bits]
        measured.append(bits)
    return measured


def _by_network(engine: Engine, group: Sequence[np.ndarray], advance: Advance | None) -> list[np.ndarray]:
    spec, ops = engine.config.spec, engine.ops
    chunk = max(1, _ROWS // spec.positions)
    measured = []
    for segment in group:
        state, parts = engine.start(1), []
        before = np.concatenate([np.full_like(segment[:1], -1), segment[:-1]])[None]  # (1, T, S, F)
        with ops.settings():
            for t in range(0, len(segment), chunk):
                frames, bits = segment[t : t + chunk], np.zeros((len(segment[t : t + chunk]), spec.positions))
                for f, logits in enumerate(engine.forward(state, before[:, t : t + chunk])):
                    for low, high in Tables(logits, ops).intervals(frames[..., f].reshape(-1)):
                        bits += PRECISION - np.log2(high - low).reshape(bits.shape)
                parts.append(bits.astype(np.float32))
                if advance:
                    advance(bits.size)
        measured.append(np.concatenate(parts))
    return measured


def _by_learning(
    spec: TokenSpec, network: FramePredictor | None, group: Sequence[np.ndarray], advance: Advance | None
) -> list[np.ndarray]:
    if network:
        mixers: Sequence[TreeMixer] = mixers_beside(network.engine, len(group))
        network.start(len(group))
    else:
        mixers = [TreeMixer(spec, f, len(group)) for f in range(len(spec.factors))]
    measured = [np.zeros(segment.shape[:2], np.float32) for segment in group]
    before = np.full((len(group), *group[0].shape[1:]), -1, np.int64)
    for members, t, _ in lockstep([len(segment) for segment in group]):
        frame = frame_of(group, members, t)
        weights = network.predict(before[: len(members), None]) if network else None
        for f, mixer in enumerate(mixers):
            node, bits = path_to(frame[:, :, f].reshape(-1), mixer.levels)
            mixer.begin(frame[:, :, :f], partial(np.asarray, weights[f][:, 0]) if weights else None)
            one = mixer.predict(0, node)
            mixer.update(bits, frame[:, :, f])
            cost = (BIT_PRECISION - np.log2(np.where(bits, one, (1 << BIT_PRECISION) - one))).sum(0)  # (P,)
            for i, row in zip(members, cost.reshape(len(members), -1)):
                measured[i][t] += row
        before = frame
        if advance:
            advance(frame[..., 0].size)
    return measured
