"""What it is worth to know some tokens of a frame when predicting its others."""

from __future__ import annotations

import numpy as np

from ..runtime.engine import Engine
from ..runtime.errors import InputError
from ..runtime.tables import weights
from .imagine import after, purpose, remaining
from .sampling import FACTORS_MAX, Sampling, rows_of


def bits_by_steps(engine: Engine, tokens: np.ndarray, first: int, steps: int, seed: int = 0) -> float:
    """Bits per token of frames first.. of tokens (T, S, F), each coded in `steps` groups, past frames all known.

    The groups are drawn at random, as large as `imagine` draws them; a group's tokens are predicted at once, from the
    past and from the groups before. This is what a codec would take that did so. Raises InputError for steps above 1
    where the network does not see the frame's own tokens.
    """
    config, ops = engine.config, engine.ops
    if steps > 1 and not config.within_frame:
        raise InputError(f"{steps} steps: the network does not see tokens of the frame that it predicts")
    order, total = Sampling(seed=seed), 0.0
    with ops.settings():
        state, before = after(engine, tokens[:first])
        for t in range(first, len(tokens)):
            frame, known = tokens[t], np.zeros(config.positions, bool)
            rank = order.shuffle(rows_of(np.zeros(1), t, config.positions), purpose(0, FACTORS_MAX))
            places = np.argsort(rank, kind="stable")  # in the order in which they get known
            past = engine.fork(state)
            for step, left in enumerate(remaining(config.positions, steps)):
                here = engine.fork(past) if step else state
                own = np.where(known[:, None], frame, -1)[None, None] if step else None
                now = places[known.sum() : config.positions - left]
                for f, x in enumerate(engine.forward(here, before, own)):
                    w = ops.host(weights(x, ops)).astype(np.float64)[now]
                    total -= float(np.log2(w[np.arange(len(now)), frame[now, f]] / w.sum(1)).sum())
                known[now] = True
            before = frame[None, None].astype(np.int64)
    return total / tokens[first:, :, 0].size
