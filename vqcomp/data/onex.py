"""1X's world-model data, v1.1, v1.0 and v0.0.1: folders of metadata.json, video.bin, segment_ids.bin, and actions.

v1.1 and v1.0 hold frames of 16 x 16 ids below 2^18 as uint32, v0.0.1 frames of 20 x 20 ids below 1,000 as uint16. All
numbers are little-endian. (github.com/1x-technologies/1xgpt, data.py) For v2.0 see onex_sharded.py.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.errors import InputError
from ..runtime.spec import TokenSpec
from .files import File, open_file
from .messages import json_value, reason
from .segments import VOCABULARY_LIMIT, SegmentSource

METADATA, VIDEO, SEGMENT_IDS = "metadata.json", "video.bin", "segment_ids.bin"
FACTOR = 512
"""Vocabularies beyond 65,536 are split: id = f0 + 512 * f1, as in 1X's metric (genie/factorization_utils.py)."""
TOKEN_DTYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
_METADATA_LIMIT = 1 << 24
"""Bytes."""


@dataclass(frozen=True)
class Video:
    """A folder's frames, (frames, side, side) in all, of which `hz` are a second."""

    folder: Path
    frames: int
    spec: TokenSpec
    dtype: np.dtype[Any]
    hz: float
    segment_ids: np.ndarray
    """int32 (frames,)"""

    @property
    def path(self) -> Path:
        return self.folder / VIDEO

    @property
    def clips(self) -> list[range]:
        """Ranges of frames: the runs of one segment id. Nothing is predicted across their boundaries."""
        return runs(self.segment_ids)

    def take(self, frames: range) -> np.ndarray:
        """The ids of these frames, (len(frames), side, side), mapped from the disk."""
        ids = np.memmap(self.path, self.dtype, "r", shape=(self.frames, self.spec.height, self.spec.width))
        return ids[frames.start : frames.stop : frames.step]


@dataclass(frozen=True)
class ClipSource(SegmentSource):
    """A clip of a raw video file; `clip` are its frames, (T, side, side) ids each."""

    clip: range = range(0)

    @property
    def label(self) -> str:
        return f"{self.source}, frames {self.clip.start} to {self.clip.stop - 1}"


def video_folders(names: list[str]) -> set[str]:
    """Which folders hold such data: prefixes of names, "" for the folder itself."""
    return {n[: len(n) - len(last)] for n in names if (last := n.rpartition("/")[2]) in (VIDEO, SEGMENT_IDS)}


def find_clips(folder: Path, prefix: str, names: list[str]) -> tuple[list[SegmentSource], list[File]]:
    """The clips of a folder, parts of the raw file `prefix`video.bin, and its other files.

    `names` are those of the folder's files, which begin with `prefix`; folder / name is where each lies. Raises
    InputError.
    """
    video, name = open_video(folder / prefix), prefix + VIDEO
    others = [File(n, folder / n, (name,)) for n in names if n != name]
    return list(cut(name, video.path, video.dtype, video.spec, video.clips)), others


def cut(name: str, path: Path, dtype: np.dtype[Any], spec: TokenSpec, clips: list[range]) -> list[SegmentSource]:
    """The raw file `name` of frames as segments: these clips, which follow one another and leave nothing out."""
    frame_bytes, grid = spec.positions * dtype.itemsize, (spec.height, spec.width)
    return [
        ClipSource(
            f"{name}#{i}", dtype, (len(clip), *grid), grid, path, clip.start * frame_bytes, False, spec, name, clip
        )
        for i, clip in enumerate(clips)
    ]


def runs(values: np.ndarray) -> list[range]:
    """Ranges of indices of equal values next to each other; values (n,)."""
    cuts = np.flatnonzero(np.diff(values)) + 1
    return [range(a, b) for a, b in pairwise([0, *cuts.tolist(), len(values)])]


def open_video(folder: Path) -> Video:
    """Read metadata and segment ids, no frames. Raises InputError, naming the file, unless everything fits together."""
    path = folder / METADATA
    table = read_metadata(path) if os.path.exists(path) else {}
    if "num_shards" in table:
        raise InputError(f"{path}: expected one video of v1.1, v1.0 or v0.0.1, found the shards of v2.0")
    for name in (METADATA, VIDEO, SEGMENT_IDS):
        if not os.path.exists(folder / name):
            raise InputError(f"{folder / name}: missing; 1X's folders hold {METADATA}, {VIDEO} and {SEGMENT_IDS}")
    frames, side, vocabulary = (positive_integer(path, table, key) for key in ("num_images", "s", "vocab_size"))
    size = file_size(folder / VIDEO)
    values = frames * side * side
    # v0.0.1 names no type: its files are of uint16, all later ones that name none of uint32.
    dtype_name = table.get("token_dtype", "uint16" if size == 2 * values else "uint32")
    if dtype_name not in TOKEN_DTYPES:
        found = json_value(dtype_name)
        raise InputError(f"{path}: unknown token_dtype {found}; expected one of {', '.join(TOKEN_DTYPES)}")
    dtype = np.dtype(dtype_name).newbyteorder("<")
    if size != values * dtype.itemsize:
        raise InputError(
            f"{folder / VIDEO}: expected {values * dtype.itemsize} bytes for {frames} frames of {side} x {side} "
            f"{dtype_name}, as {METADATA} says, found {size}"
        )
    segment_ids = read_segment_ids(folder / SEGMENT_IDS, frames)
    factors: tuple[int, ...] = (max(vocabulary, 2),)
    if vocabulary > VOCABULARY_LIMIT:
        if vocabulary % FACTOR or vocabulary // FACTOR > VOCABULARY_LIMIT:
            raise InputError(f"{path}: vocab_size {vocabulary} is neither up to {VOCABULARY_LIMIT} nor {FACTOR} * n")
        factors = (FACTOR, vocabulary // FACTOR)
    hz = table.get("hz", 30)
    if isinstance(hz, bool) or not isinstance(hz, int | float) or not 0 < hz < 1e9:
        raise InputError(f"{path}: expected hz to be a positive number, found {json_value(hz)}")
    return Video(folder, frames, TokenSpec(side, side, factors), dtype, float(hz), segment_ids)


def read_metadata(path: Path) -> dict[str, Any]:
    """A JSON object. Raises InputError."""
    try:
        with open_file(path) as handle:
            table = json.loads(handle.read(_METADATA_LIMIT))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a JSON object, found other data: {reason(error)}") from error
    if not isinstance(table, dict):
        raise InputError(f"{path}: expected a JSON object, found {json_value(table)}")
    return table


def positive_integer(path: Path, table: dict[str, Any], key: str) -> int:
    """A number of the metadata at `path`. Raises InputError."""
    value = table.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1 << 40:
        found = json_value(value) if key in table else "none"
        raise InputError(f"{path}: expected {key} to be a positive integer, found {found}")
    return value


def file_size(path: Path) -> int:
    """Bytes of a regular file. Raises InputError."""
    with open_file(path):
        return File(path.name, path).size


def read_segment_ids(path: Path, frames: int) -> np.ndarray:
    """int32 (frames,). Raises InputError."""
    size = file_size(path)
    if size != 4 * frames:
        raise InputError(f"{path}: expected {4 * frames} bytes, an int32 for each of {frames} frames, found {size}")
    return np.frombuffer(b"".join(File(path.name, path).pieces()), "<i4")
