"""Synthetic segments, to try things out with. Rates on them say nothing about real video."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..runtime.disk import make_folder, replacing
from ..runtime.errors import InputError


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
