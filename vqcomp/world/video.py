"""Frames of video in and out, by PyAV; still pictures as PNG, by nothing but zlib.

Frames are RGB uint8 (h, w, 3). comma's transform (github.com/commaai/commavq, utils/video.py) cuts a piece out of its
camera's picture and makes it smaller with OpenCV; here it is written in integers, and gives OpenCV's very bytes.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..data.messages import reason, unreadable
from ..runtime.errors import DependencyError, InputError
from .extras import need

PICTURE = (128, 256)
"""(height, width) that comma's encoder takes."""
_ZOOM, _CENTRE = 567 / 455, 47.6
"""comma's camera against the one that the encoder was made for; pixels that the piece lies above the middle, there."""
CROP = (int(2 * PICTURE[0] * _ZOOM), int(2 * PICTURE[1] * _ZOOM))
"""(height, width) of the piece that comma cuts out: 319 x 638."""
FPS = 20
"""comma's frames per second."""
_BITS = 11
"""Of OpenCV's weights in a resize of bytes."""


def comma_crop(frame: np.ndarray) -> np.ndarray:
    """The piece (319, 638, 3) that comma cuts out: for 1928 x 1208 at x 645, y 416. Raises InputError if too small."""
    height, width = frame.shape[:2]
    top = height // 2 - CROP[0] // 2 - int(_CENTRE * _ZOOM) // 2
    left = width // 2 - CROP[1] // 2
    if top < 0 or left < 0 or top + CROP[0] > height or left + CROP[1] > width:
        raise InputError(
            f"a frame of {width} x {height} is too small for comma's piece of {CROP[1]} x {CROP[0]}, which is meant "
            "for 1928 x 1208; --crop centre takes the largest piece of the right shape"
        )
    return frame[top : top + CROP[0], left : left + CROP[1]]


def centre_crop(frame: np.ndarray) -> np.ndarray:
    """The largest piece in the middle that is twice as wide as high."""
    height, width = frame.shape[:2]
    high = max(1, min(height, width // 2))
    wide = min(width, 2 * high)
    top, left = (height - high) // 2, (width - wide) // 2
    return frame[top : top + high, left : left + wide]


CROPS = {"comma": comma_crop, "centre": centre_crop}


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, between the centres of pixels, without smoothing: uint8 (h, w, C) -> uint8 (height, width, C).

    The bytes of OpenCV's cv2.resize (INTER_LINEAR): weights in 2^-11, rows first, the last bits cut off as it does.
    """
    x0, x1, wx = _taps(image.shape[1], width)
    # Above the first row and below the last one it adds up two parts of the same row, each cut off.
    y0, y1, wy = _taps(image.shape[0], height, keep_shares=True)
    rows = image.astype(np.int32)
    rows = rows[:, x0] * (wx[0])[:, None] + rows[:, x1] * (wx[1])[:, None]  # (h, width, C)
    rows >>= 4
    top, bottom = (rows[y] * w[:, None, None] >> 16 for y, w in ((y0, wy[0]), (y1, wy[1])))
    return np.clip((top + bottom + 2) >> 2, 0, 255).astype(np.uint8)


def _taps(
    inside: int, outside: int, keep_shares: bool = False
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """For each place of the result: the two places that it lies between, and their weights."""
    at = ((np.arange(outside) + 0.5) * (inside / outside) - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.int64)
    share = at - first.astype(np.float32)
    if not keep_shares:
        share[(first < 0) | (first >= inside - 1)] = 0
    one = np.float32(1 << _BITS)
    weights = np.rint((1 - share) * one).astype(np.int32), np.rint(share * one).astype(np.int32)
    return np.clip(first, 0, inside - 1), np.clip(first + 1, 0, inside - 1), weights


class Video:
    """A video file that PyAV reads, opened. Use it in a `with`. Raises InputError, DependencyError."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self.av = Path(path), need("av", "reading video")
        if not self.path.is_file():
            raise (
                unreadable(path, FileNotFoundError())
                if not self.path.exists()
                else InputError(f"{path}: expected a video file, found something else")
            )
        try:
            self.container = self.av.open(os.fspath(path))
        except self.av.FFmpegError as error:
            raise InputError(f"{path}: expected a video that PyAV reads: {reason(error)}") from error
        if not self.container.streams.video:
            self.container.close()
            raise InputError(f"{path}: expected a video, found a file without pictures")
        self.stream: Any = self.container.streams.video[0]
        self.stream.thread_type = "AUTO"

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    @property
    def length(self) -> int:
        """How many frames the file says it has; 0 if it does not say."""
        return int(self.stream.frames or 0)

    @property
    def fps(self) -> Fraction | None:
        """Frames per second, where the file says so."""
        rate: Fraction | None = self.stream.average_rate
        return rate

    def frames(self, fps: float | None = None) -> Iterator[np.ndarray]:
        """All frames, once, or so many a second: the first one at or after each tick. Raises InputError."""
        count = 0
        try:
            for frame in self.container.decode(self.stream):
                if fps is not None:
                    if frame.time is None:
                        raise InputError(f"{self.path}: its frames have no times, so --fps cannot choose among them")
                    if frame.time * fps < count - 1e-6:
                        continue
                count += 1
                # OpenCV, with which comma's tokens were made, turns colours with this filter.
                rgb: np.ndarray = frame.to_ndarray(format="rgb24", interpolation="BICUBIC")
                yield rgb
        except self.av.FFmpegError as error:
            raise InputError(f"{self.path}: frame {count} cannot be read: {reason(error)}") from error
        if not count:
            raise InputError(f"{self.path}: expected a video, found one without frames")


def png(image: np.ndarray) -> bytes:
    """RGB (h, w, 3), or with opacity (h, w, 4), uint8 -> a PNG."""
    height, width, channels = image.shape
    rows = np.ascontiguousarray(image).reshape(height, width * channels)
    # Each row less the one above: most are alike, and cost nothing then.
    up = np.concatenate([rows[:1], rows[1:] - rows[:-1]])
    filtered = np.concatenate([np.full((height, 1), 2, np.uint8), up], 1)
    header = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[channels], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 9)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def write_film(path: Path, frames: Iterable[np.ndarray], fps: float, kind: str) -> None:
    """Write frames, all of one size, as "mp4" (H.264) or "gif". Raises InputError, DependencyError."""
    av = need("av", f"writing .{kind}")
    frames = iter(frames)
    first = next(frames)
    pictures: Iterator[Any]
    encoder = _h264(av) if kind == "mp4" else "gif"
    rate = Fraction(fps).limit_denominator(1000)
    with av.open(os.fspath(path), "w", format=kind) as container:
        # Colours at half the resolution need an even number of rows and columns.
        pad = ((0, first.shape[0] % 2), (0, first.shape[1] % 2), (0, 0)) if kind == "mp4" else ((0, 0),) * 3
        stream = container.add_stream(encoder, rate=rate)
        stream.height, stream.width = (n + p[1] for n, p in zip(first.shape, pad[:2]))
        if kind == "mp4":
            stream.pix_fmt = "yuv420p"
            if encoder == "libx264":
                stream.options = {"crf": "16", "preset": "medium"}
            pictures = (av.VideoFrame.from_ndarray(np.pad(f, pad, "edge"), "rgb24") for f in chain([first], frames))
        else:
            stream.pix_fmt = "pal8"
            pictures = _with_palettes(av, chain([first], frames), first.shape)
        for number, picture in enumerate(pictures):
            picture.pts, picture.time_base = number, 1 / rate
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def _h264(av: Any) -> str:
    for name in ("libx264", "libopenh264", "h264_videotoolbox", "h264_nvenc", "h264_mf"):
        try:
            av.codec.Codec(name, "w")
            return name
        except ValueError:  # what PyAV calls a codec that it lacks
            continue
    raise DependencyError("this PyAV has no H.264 encoder, which .mp4 needs; write .gif, or install av from PyPI")


def _with_palettes(av: Any, frames: Iterable[np.ndarray], shape: tuple[int, ...]) -> Iterator[Any]:
    """Frames in 256 colours, each frame in its own best ones."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=shape[1], height=shape[0], format="rgb24", time_base=Fraction(1, 100))
    split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=single")
    use, sink = graph.add("paletteuse", "new=1:dither=sierra2_4a"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(palette, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    for number, frame in enumerate(chain(frames, [None])):
        if frame is None:
            source.push(None)
        else:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
            picture.pts, picture.time_base = number, Fraction(1, 100)
            source.push(picture)
        while True:
            try:
                yield sink.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                break
