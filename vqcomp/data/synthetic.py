"""Synthetic tokens, to try things out with. Rates on them say nothing about real video."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..runtime.disk import make_folder, replacing
from ..runtime.errors import InputError
from .onex import METADATA
from .onex_sharded import BLOCK_FRAMES, BLOCK_GRIDS, DTYPE, SIDE, SPEC
from .onex_write import write_shard, write_shards_metadata, write_video


def synthetic_segment(frames: int, seed: int) -> np.ndarray:
    """int16 (frames, 8, 16) with ids in 0..1023: a scrolling background, moving patches, and noise."""
    random = np.random.default_rng(seed)
    # Ids are as skewed as those of a trained codebook: few are common, many are rare.
    codes = np.minimum(random.geometric(0.01, 4096) - 1, 1023)
    scene = random.choice(codes, (8, 256))
    patches = [
        (random.integers(-3, 4, 2) / 8, random.integers(0, 16, 2), random.choice(codes, (3, 4))) for _ in range(3)
    ]
    video = np.empty((frames, 8, 16), np.int16)
    position, speed = 0.0, 0.0
    for t in range(frames):
        # The camera speeds up and slows down, so that the background now stands still and now scrolls.
        speed = np.clip(speed + random.normal(0, 0.02), 0, 0.5)
        position += speed
        frame = scene[:, (int(position) + np.arange(16)) % scene.shape[1]]
        for velocity, start, patch in patches:
            y, x = ((start + velocity * t).astype(int)) % (8, 16)
            frame[(y + np.arange(3))[:, None] % 8, (x + np.arange(4)) % 16] = patch
        noise = random.random((8, 16)) < 0.2
        video[t] = np.where(noise, random.choice(codes, (8, 16)), frame)
        # Some codes change for good, so that the past keeps mattering.
        drift = random.random(scene.shape) < 0.002
        scene = np.where(drift, random.choice(codes, scene.shape), scene)
    return video


def write_samples(folder: Path, segments: int, frames: int, seed: int, *, force: bool = False) -> list[Path]:
    """Write synthetic-000.npy, ... into `folder`; the same seed gives the same files.

    Raises InputError where one exists (unless `force`) or cannot be written.
    """
    make_folder(folder, [])
    paths = [folder / f"synthetic-{i:03d}.npy" for i in range(segments)]
    for path in paths:
        if path.exists() and not force:
            raise InputError(f"{path}: exists already; -f overwrites it")
    for i, path in enumerate(paths):
        with replacing(path) as temporary, open(temporary, "xb") as handle:
            np.save(handle, synthetic_segment(frames, seed * 1_000_003 + i))
    return paths


def write_synthetic(
    folder: Path, frames: int = 300, clips: int = 2, seed: int = 0, version: str = "v1.1", *, force: bool = False
) -> None:
    """Write a synthetic folder of 1X's in the format of `version`: v2.0 (as val_v2.0), v1.1, v1.0 or v0.0.1.

    frames are those of the video. The same seed gives the same folder. Raises InputError where there is one already
    (unless `force`), or it cannot be written.
    """
    if (folder / METADATA).exists() and not force:
        raise InputError(f"{folder / METADATA}: exists already; -f overwrites it")
    random = np.random.default_rng(seed)
    bounds = np.linspace(0, frames, clips + 1).astype(int)
    segment_ids = np.repeat(np.arange(clips, dtype=np.int32), np.diff(bounds))
    if version == "v2.0":
        blocks = -(-frames // BLOCK_FRAMES)
        # A scene ends with the block that its last frame is in.
        grids = BLOCK_GRIDS * -(-bounds // BLOCK_FRAMES)
        ids = scrolling_scenes(random, grids, SIDE, SPEC.vocabulary, DTYPE).reshape(blocks, BLOCK_GRIDS, SIDE, SIDE)
        write_shard(folder, 0, ids, segment_ids, np.cumsum(random.normal(0, 0.01, (frames, 25)), 0))
        write_shards_metadata(folder, 1, frames)
        return
    side, vocabulary, dtype = (20, 1000, np.uint16) if version == "v0.0.1" else (16, 1 << 18, np.uint32)
    video = scrolling_scenes(random, bounds, side, vocabulary, dtype)
    metadata: dict[str, Any] = {"vocab_size": vocabulary, "hz": 30}
    if version == "v0.0.1":
        write_video(folder, video, segment_ids, metadata)
        return
    actions = {
        "joint_pos": np.cumsum(random.normal(0, 0.01, (frames, 21)), 0),
        "driving_command": random.normal(0, 0.1, (frames, 2)).round(1),
        "neck_desired": np.zeros((frames, 1)),
    }
    write_video(
        folder, video, segment_ids, metadata | ({"token_dtype": "uint32"} if version == "v1.1" else {}), actions
    )


def scrolling_scenes(
    random: np.random.Generator, bounds: Sequence[int] | np.ndarray, side: int, vocabulary: int, dtype: DTypeLike
) -> np.ndarray:
    """Ids (bounds[-1], side, side) below `vocabulary`: a scene from each of the bounds to the next.

    A scene of few codes scrolls at a speed of its own, a patch moves across it, and some ids are noise.
    """
    codes = random.integers(0, vocabulary, 64)
    # No two codes next to each other in the scene are unrelated: one determines its right neighbour, most of the time.
    follower = random.permutation(64)
    video = np.empty((int(bounds[-1]), side, side), dtype)
    for a, b in pairwise(bounds):
        scene = np.empty((side, 4 * side), np.int64)
        scene[:, 0] = random.integers(0, 64, side)
        for x in range(1, scene.shape[1]):
            new = random.random(side) < 0.2
            scene[:, x] = np.where(new, random.integers(0, 64, side), follower[scene[:, x - 1]])
        patch, start = random.integers(0, 64, (4, 4)), random.integers(0, side, 2)
        speed, velocity = random.uniform(0.02, 0.2), random.uniform(-0.1, 0.1, 2)
        for t in range(b - a):
            frame = scene[:, (int(speed * t) + np.arange(side)) % scene.shape[1]]
            y, x = (start + velocity * t).astype(int)
            frame[np.ix_((y + np.arange(4)) % side, (x + np.arange(4)) % side)] = patch
            noise = random.random((side, side)) < 0.02
            video[a + t] = codes[np.where(noise, random.integers(0, 64, (side, side)), frame)]
    return video
