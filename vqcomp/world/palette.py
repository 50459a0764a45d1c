"""A colour for each id, so that tokens can be looked at without a decoder: near codes get near colours."""

from __future__ import annotations

import numpy as np

from ..runtime.spec import TokenSpec
from ..runtime.weights import read_model

_SPREAD = 1.6
"""Standard deviations of an axis that fill most of its range."""
_RANGES = ((0.28, 0.95), (-0.13, 0.13), (-0.13, 0.13))
"""Of lightness, green to red, and blue to yellow, in Oklab."""


class Palette:
    """Colours of ids: `paint`. `by_model` says whether nearness means something."""

    def __init__(self, spec: TokenSpec, model: bytes | None = None) -> None:
        """model: a .vqm for tokens of `spec`, whose embedding is looked at; without one, ids are told apart alone."""
        self.spec, self.by_model = spec, model is not None
        self.axes = _axes(spec, model) if model else _hashed(spec)

    def paint(self, ids: np.ndarray) -> np.ndarray:
        """ids (...), integers below the vocabulary -> RGB uint8 (..., 3)."""
        factors = self.spec.split(ids.astype(np.int64))  # (..., F)
        where = [coordinates[factors[..., f]] for f, coordinates in self.axes]
        return oklab(*(low + (high - low) * c for c, (low, high) in zip(where, _RANGES)))


def _axes(spec: TokenSpec, model: bytes) -> list[tuple[int, np.ndarray]]:
    """The three principal axes of all factors' embeddings: (factor, where each of its ids lies, 0..1)."""
    _, tensors, _ = read_model(model)
    found: list[tuple[float, int, np.ndarray]] = []
    for f in range(len(spec.factors)):
        codes, scales = tensors[f"embed.{f}"]  # (V + 1, R); the last row is "no token"
        x = codes[:-1].astype(np.float64) * 2.0 ** (float(scales[0]) / 4)
        x -= x.mean(0)
        values, vectors = np.linalg.eigh(x.T @ x / len(x))
        for value, vector in sorted(zip(values, vectors.T), key=lambda pair: -pair[0])[:3]:
            vector = vector * np.sign(vector[np.abs(vector).argmax()])  # eigh leaves the sign open
            found.append((float(value), f, x @ vector / max(float(value), 1e-12) ** 0.5))
    found.sort(key=lambda axis: -axis[0])
    while len(found) < 3:  # an embedding of one or two numbers
        found.append(found[-1])
    return [(f, 0.5 + 0.5 * np.tanh(x / _SPREAD)) for _, f, x in found[:3]]


def _hashed(spec: TokenSpec) -> list[tuple[int, np.ndarray]]:
    """Ids spread over the colours evenly, without a meaning (Roberts' sequence)."""
    g = 1.2207440846057596
    factors = [0, len(spec.factors) - 1, 0]
    return [(f, (0.5 + np.arange(spec.factors[f]) / g ** (i + 1)) % 1.0) for i, f in enumerate(factors)]


def oklab(lightness: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Oklab (Ottosson 2020) -> sRGB uint8 (..., 3); what a screen cannot show is clipped."""
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.stack(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ],
        -1,
    )
    linear = np.clip(linear, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(srgb * 255).astype(np.uint8)


_HEAT = np.array([[13, 8, 60], [106, 0, 168], [203, 70, 121], [248, 149, 64], [252, 253, 191]], np.float64)
"""Dark to bright, so that it reads in grey, too."""


def heat(values: np.ndarray, top: float) -> np.ndarray:
    """Values (...) of 0..top -> RGB uint8 (..., 3); what is above `top` is as bright as that."""
    at = np.clip(values / top, 0, 1) * (len(_HEAT) - 1)
    low = np.minimum(at.astype(np.int64), len(_HEAT) - 2)
    share = (at - low)[..., None]
    return np.rint(_HEAT[low] * (1 - share) + _HEAT[low + 1] * share).astype(np.uint8)
