"""The tokens that benchmarks measure on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from vqcomp.sample import moving_patterns

ROOT = Path(__file__).resolve().parent.parent


def example() -> np.ndarray | None:
    """The real commaVQ segment, int16 (1200, 8, 16), from $VQCOMP_DATA or ../shared; None where there is none."""
    folder = Path(os.environ.get("VQCOMP_DATA", ROOT.parent / "shared"))
    path = next((p for p in (folder / "data/commavq/example.npy", folder / "example.npy") if p.is_file()), None)
    return None if path is None else np.load(path)


def synthetic(frames: int, seed: int = 0) -> np.ndarray:
    """int16 (frames, 8, 16): what `vqcomp sample-data` makes."""
    return moving_patterns(frames, np.random.default_rng(seed))
