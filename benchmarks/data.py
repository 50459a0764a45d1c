"""The tokens that benchmarks measure on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from vqcomp.data.synthetic import synthetic_segment as synthetic

__all__ = ["example", "synthetic"]

ROOT = Path(__file__).resolve().parent.parent


def example() -> np.ndarray | None:
    """The real commaVQ segment, int16 (1200, 8, 16), from $VQCOMP_DATA or ../shared; None where there is none."""
    folder = Path(os.environ.get("VQCOMP_DATA") or ROOT.parent / "shared")
    path = next((p for p in (folder / "data/commavq/example.npy", folder / "example.npy") if p.is_file()), None)
    return None if path is None else np.load(path)
