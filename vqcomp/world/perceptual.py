"""LPIPS: how different two images look (Zhang et al. 2018), by the package lpips, as 1X's metric takes it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..runtime.errors import DependencyError, InputError
from ..runtime.exact import load_torch

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Images uint8 (N, h, w, 3) twice -> float64 (N,), 0 for equal ones."""
IMAGES = 16
"""Compared at once."""


def load_lpips(device: str = "auto") -> Distance:
    """The distance by AlexNet's features, whose weights torchvision fetches the first time. Raises DependencyError."""
    torch = load_torch()
    try:
        import lpips
    except (ImportError, RuntimeError) as error:  # a torchvision made for another torch raises the latter
        raise DependencyError(f"LPIPS needs lpips and torchvision: pip install 'vqcomp[lpips]' ({error})") from error
    chosen = device if device not in ("auto", "numpy") else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        network = lpips.LPIPS(net="alex", verbose=False).eval().to(chosen)
    except OSError as error:  # of urllib's downloads, too
        raise DependencyError(f"LPIPS: torchvision cannot fetch AlexNet's weights: {error}") from error

    def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if a.shape != b.shape or a.ndim != 4 or a.shape[3] != 3:
            raise InputError(f"LPIPS: expected images (N, h, w, 3) of one shape, found {a.shape} and {b.shape}")
        parts = []
        for i in range(0, len(a), IMAGES):
            with torch.no_grad():
                images = (torch.from_numpy(np.ascontiguousarray(x[i : i + IMAGES])).to(chosen) for x in (a, b))
                x, y = (image.permute(0, 3, 1, 2).float() / 127.5 - 1 for image in images)  # (N, 3, h, w) in -1..1
                parts.append(network(x, y).flatten().cpu().numpy().astype(np.float64))
        return np.concatenate(parts)

    return distance
