"""Segments drawn from a network's own distribution, exactly: tokens whose information content is known.

The codec's loop of decoding runs here with random numbers in place of a stream: each symbol falls where a uniform
integer falls among the intervals that the coder would use. Everything is integers, and the random numbers are those of
Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) as NumPy documents them: the same seed gives
the same tokens on every machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from math import fsum
from pathlib import Path
from typing import cast

import numpy as np

from ..model_files import ModelFile
from ..runtime.coder import PRECISION, Decoder
from ..runtime.compute import Compute
from ..runtime.disk import make_folder, replacing
from ..runtime.engine import Engine
from ..runtime.errors import InputError
from ..runtime.loading import load_engine
from ..runtime.progress import Progress
from ..runtime.tables import Tables

COSTS = "costs.json"
"""The file beside the segments that says what each takes under its model."""
SEED_LIMIT = 1 << 64


class Draws:
    """Random symbols in place of a stream's, and what they cost: stands in for a `Decoder`."""

    def __init__(self, seed: int, segment: int) -> None:
        self._source = np.random.Philox(key=np.array([seed, segment], np.uint64))
        self._bits: list[float] = []

    @property
    def bits(self) -> float:
        """What the symbols so far take under the model that they were drawn from: the sum of -log2 p."""
        return fsum(self._bits)

    def get_symbols(self, bounds: np.ndarray) -> np.ndarray:
        """Draw one symbol by each table, bounds (n, size + 1) -> int64 (n,) in 0..size-1."""
        points = self._points(len(bounds))
        symbols = (bounds[:, 1:-1] <= points[:, None]).sum(1)
        rows = np.arange(len(bounds))
        widths = bounds[rows, symbols + 1] - bounds[rows, symbols]
        # All intervals together are (1 << PRECISION) - 2 wide: see `tables.partition`.
        self._bits.append(len(bounds) * np.log2((1 << PRECISION) - 2.0) - fsum(np.log2(widths)))
        return symbols.astype(np.int64)

    def get(self, table: np.ndarray) -> np.ndarray:
        """As Decoder.get: one symbol by each row of frequencies less one (n, size), a guard at each end."""
        return self.get_symbols(np.cumsum(table.astype(np.int64) + 1, 1)[:, :-1]) + 1

    def _points(self, count: int) -> np.ndarray:
        """Integers (count,), uniform in 1..2^24 - 2, where intervals lie: the upper 24 bits of so many words of 64.

        A word that gives another integer is passed over.
        """
        points = np.empty(0, np.uint64)
        while len(points) < count:
            words = self._source.random_raw(count - len(points)) >> np.uint64(64 - PRECISION)
            points = np.concatenate([points, words[(words > 0) & (words < (1 << PRECISION) - 1)]])
        return points.astype(np.int64)


def draw(engine: Engine, frames: int, seed: int, segments: range) -> Iterator[tuple[np.ndarray, float]]:
    """Yield (ids (frames, H, W) int64, bits) of each of these segments, computed together.

    A segment depends on the model, the seed and its own number alone. bits: -log2 of its probability under the model.
    """
    spec, ops = engine.config.spec, engine.ops
    draws = [Draws(seed, i) for i in segments]
    tokens = np.full((len(draws), frames, spec.positions, len(spec.factors)), -1, np.int32)  # (B, T, S, F)
    before = np.full_like(tokens[:, :1], -1)
    state = engine.start(len(draws))
    with ops.settings():
        for t in range(frames):
            for f, logits in enumerate(engine.forward(state, before)):
                symbols = Tables(logits, ops).read(cast("list[Decoder]", draws))
                tokens[:, t, :, f] = symbols.reshape(len(draws), spec.positions)
            before = tokens[:, t : t + 1]
    for segment, drawn in zip(tokens, draws):
        yield spec.join(segment).reshape(frames, spec.height, spec.width), drawn.bits


def write_drawn(
    folder: Path,
    model: ModelFile,
    segments: int,
    frames: int,
    seed: int,
    *,
    force: bool = False,
    compute: Compute | None = None,
    progress: Progress | None = None,
) -> float:
    """Write drawn-0000.npy, ... and COSTS into `folder`; returns the bits that all take under the model.

    COSTS holds the model's name and sha256, the seed, and the bits of each segment, to 1e-6. Raises InputError where
    one of the files exists (unless `force`) or cannot be written.
    """
    compute, progress = compute or Compute(), progress or Progress()
    if not 0 <= seed < SEED_LIMIT:
        raise InputError(f"seed: expected an integer in 0..2^64 - 1, found {seed}")
    make_folder(folder, [])
    names = [f"drawn-{i:04d}.npy" for i in range(segments)]
    for path in (folder / name for name in [*names, COSTS]):
        if path.exists() and not force:
            raise InputError(f"{path}: exists already; -f overwrites it")
    spec = model.spec
    engine = load_engine(spec, model.data, compute)
    dtype = np.int16 if spec.vocabulary <= 1 << 15 else np.int32
    costs: dict[str, float] = {}
    progress.begin("drawing", segments, segments * frames * spec.positions)
    try:
        for first in range(0, segments, compute.batch_size):
            batch = range(first, min(first + compute.batch_size, segments))
            for i, (ids, bits) in zip(batch, draw(engine, frames, seed, batch)):
                with replacing(folder / names[i]) as temporary, open(temporary, "xb") as handle:
                    np.save(handle, ids.astype(dtype))
                costs[names[i]] = round(bits, 6)
                progress.advance(1, frames * spec.positions)
    finally:
        progress.end()
    tokens, total = segments * frames * spec.positions, round(fsum(costs.values()), 6)
    table = {
        "model": model.name,
        "sha256": hashlib.sha256(model.data).hexdigest(),
        "seed": seed,
        "tokens": tokens,
        "bits": total,
        "bits_per_token": total / tokens,
        "segments": costs,
    }
    with replacing(folder / COSTS) as temporary:
        temporary.write_text(json.dumps(table, indent=1) + "\n")
    return total
