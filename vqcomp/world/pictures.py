"""Tokens as pictures: by a decoder or in colours of their own, with heat over them, side by side, many on a sheet.

Pictures are RGB uint8 (h, w, 3), films (T, h, w, 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .decoders import Decoder
from .palette import Palette, heat

SIDE = 256
"""Pixels of the longer side of a frame in colours, about."""
GAP = 6
PAPER = 24
"""Grey between pictures."""
HEAT_BITS = 12.0
"""Bits of a token that are as hot as it gets; half of it is half as hot."""


class Painter:
    """Draws frames of ids, by a decoder where there is one, else in colours."""

    def __init__(self, palette: Palette, decoder: Decoder | None = None) -> None:
        self.palette, self.decoder = palette, decoder

    def film(self, ids: np.ndarray) -> np.ndarray:
        """ids (T, H, W) -> (T, h, w, 3). Raises what the decoder raises."""
        if self.decoder is not None:
            return self.decoder.decode(ids)
        zoom = max(1, SIDE // max(ids.shape[1:]))
        return self.palette.paint(ids).repeat(zoom, 1).repeat(zoom, 2)


def overlay(film: np.ndarray, bits: np.ndarray, top: float = HEAT_BITS) -> np.ndarray:
    """Lay each token's cost over its place: film (T, h, w, 3), bits (T, H, W). What costs nothing stays as it is."""
    row = np.arange(film.shape[1]) * bits.shape[1] // film.shape[1]
    column = np.arange(film.shape[2]) * bits.shape[2] // film.shape[2]
    cost = bits[:, row][:, :, column]  # (T, h, w)
    share = (0.85 * np.clip(cost / top, 0, 1) ** 0.7)[..., None]
    # Grey below, so that colour means cost.
    grey = film.mean(-1, keepdims=True) * 0.55
    return np.rint(grey * (1 - share) + heat(cost, top) * share).astype(np.uint8)


def beside(films: Sequence[np.ndarray]) -> np.ndarray:
    """Films of one height side by side, as long as the shortest."""
    length = min(len(film) for film in films)
    parts: list[np.ndarray] = []
    for film in films:
        parts += [film[:length], np.full((length, film.shape[1], GAP, 3), PAPER, np.uint8)]
    return np.concatenate(parts[:-1], 2)


def sheet(film: np.ndarray, numbers: Sequence[int], columns: int | None = None) -> np.ndarray:
    """A contact sheet (h, w, 3) of all frames, each with its number below."""
    count, height, width = film.shape[:3]
    if columns is None:  # about as wide as 4 : 3
        columns = max(1, min(count, round((count * 4 / 3 * (height + 32) / width) ** 0.5)))
    rows = -(-count // columns)
    gap = 3 * GAP  # wider than between two that are beside one another
    step = height + 14 + gap, width + gap
    paper = np.full((rows * step[0] + gap, columns * step[1] + gap, 3), PAPER, np.uint8)
    for i, (frame, number) in enumerate(zip(film, numbers)):
        y, x = i // columns * step[0] + gap, i % columns * step[1] + gap
        paper[y : y + height, x : x + width] = frame
        _write(paper, y + height + 4, x, str(number))
    return paper


# Digits of 3 x 5 dots, a row after another.
_FONT = {
    "0": (7, 5, 5, 5, 7), "1": (2, 6, 2, 2, 7), "2": (7, 1, 7, 4, 7), "3": (7, 1, 7, 1, 7), "4": (5, 5, 7, 1, 1),
    "5": (7, 4, 7, 1, 7), "6": (7, 4, 7, 5, 7), "7": (7, 1, 1, 2, 2), "8": (7, 5, 7, 5, 7), "9": (7, 5, 7, 1, 7),
}  # fmt: skip


def _write(paper: np.ndarray, y: int, x: int, digits: str) -> None:
    """A number, light on the paper, two pixels a dot; what does not fit is left out."""
    for i, digit in enumerate(digits):
        dots = np.array([[row >> s & 1 for s in (2, 1, 0)] for row in _FONT[digit]], bool).repeat(2, 0).repeat(2, 1)
        part = paper[y : y + 10, x + 8 * i : x + 8 * i + 6]
        part[dots[: part.shape[0], : part.shape[1]]] = 200
