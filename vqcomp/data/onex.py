"""1X's world-model data: folders of metadata.json, video.bin, segment_ids.bin, and actions in other files.

Versions v1.1 and v1.0 hold frames of 16 x 16 ids below 2^18 as uint32, v0.0.1 frames of 20 x 20 ids below 1,000 as
uint16. All numbers are little-endian. (github.com/1x-technologies/1xgpt, data.py)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.disk import make_folder, replacing
from ..runtime.errors import InputError
from ..runtime.spec import TokenSpec
from .segments import VOCABULARY_LIMIT, Segment

METADATA, VIDEO, SEGMENT_IDS = "metadata.json", "video.bin", "segment_ids.bin"
FACTOR = 512
"""Vocabularies beyond 65,536 are split: id = f0 + 512 * f1, as in 1X's metric (genie/factorization_utils.py)."""
TOKEN_DTYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")


@dataclass(frozen=True)
class Video:
    """A folder's frames. `clips` are the runs of one segment id, as ranges of frames; nothing is predicted across."""

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
        cuts = np.flatnonzero(np.diff(self.segment_ids)) + 1
        bounds = [0, *cuts.tolist(), self.frames]
        return [range(a, b) for a, b in pairwise(bounds)]

    def ids(self) -> np.ndarray:
        """All ids (frames, side, side), mapped from the disk."""
        return np.memmap(self.path, self.dtype, "r", shape=(self.frames, self.spec.height, self.spec.width))


@dataclass(frozen=True)
class ClipSegment(Segment):
    """A clip of a video.bin."""

    clip: range = range(0)

    @property
    def label(self) -> str:
        return f"{self.source}, frames {self.clip.start} to {self.clip.stop - 1}"


def open_video(folder: Path) -> Video:
    """Read metadata and segment ids, no frames. Raises InputError, naming the file, unless everything fits together."""
    path, table = folder / METADATA, {}
    try:
        table = json.loads(path.read_bytes())
        frames, side, vocabulary = (_integer(path, table, key) for key in ("num_images", "s", "vocab_size"))
        size = (folder / VIDEO).stat().st_size
        id_bytes = (folder / SEGMENT_IDS).read_bytes()
    except OSError as error:
        raise InputError(
            f"{error.filename}: cannot be read: {error.strerror}; 1X's folders hold {METADATA}, {VIDEO}, {SEGMENT_IDS}"
        ) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: expected a JSON object, found {error}") from error
    values = frames * side * side
    # v0.0.1 names no type: its files are of uint16, all later ones that name none of uint32.
    dtype_name = table.get("token_dtype", "uint16" if size == 2 * values else "uint32")
    if dtype_name not in TOKEN_DTYPES:
        raise InputError(f"{path}: unknown token_dtype {dtype_name!r}; expected one of {', '.join(TOKEN_DTYPES)}")
    dtype = np.dtype(dtype_name).newbyteorder("<")
    if size != values * dtype.itemsize:
        raise InputError(
            f"{folder / VIDEO}: expected {values * dtype.itemsize} bytes for {frames} frames of {side} x {side} "
            f"{dtype_name}, as {METADATA} says, found {size}"
        )
    if len(id_bytes) != 4 * frames:
        raise InputError(
            f"{folder / SEGMENT_IDS}: expected {4 * frames} bytes, an int32 for each of {frames} frames, "
            f"found {len(id_bytes)}"
        )
    factors: tuple[int, ...] = (max(vocabulary, 2),)
    if vocabulary > VOCABULARY_LIMIT:
        if vocabulary % FACTOR or vocabulary // FACTOR > VOCABULARY_LIMIT:
            raise InputError(f"{path}: vocab_size {vocabulary} is neither up to {VOCABULARY_LIMIT} nor {FACTOR} * n")
        factors = (FACTOR, vocabulary // FACTOR)
    hz = table.get("hz", 30)
    if isinstance(hz, bool) or not isinstance(hz, int | float) or not hz > 0:
        raise InputError(f"{path}: expected hz to be a positive number, found {hz!r}")
    spec = TokenSpec(side, side, factors)
    return Video(folder, frames, spec, dtype, float(hz), np.frombuffer(id_bytes, "<i4"))


def find_clips(folder: Path, prefix: str) -> list[Segment]:
    """The clips of a folder as segments, parts of the raw file `prefix`video.bin. Raises InputError."""
    video = open_video(folder)
    side, name = video.spec.height, prefix + VIDEO
    frame_bytes = video.spec.positions * video.dtype.itemsize
    return [
        ClipSegment(
            f"{name}#{i}", video.dtype, (len(clip), side, side), (side, side), video.path,
            clip.start * frame_bytes, False, video.spec, name, clip,
        )
        for i, clip in enumerate(video.clips)
    ]  # fmt: skip


def write_video(
    folder: Path, ids: np.ndarray, segment_ids: np.ndarray, metadata: Mapping[str, Any],
    actions: Mapping[str, np.ndarray] | None = None,
) -> None:  # fmt: skip
    """Write a folder: ids (frames, s, s) in their dtype, segment_ids (frames,), actions name -> float32 (frames, ...).

    `metadata` is added to num_images and s, and should hold vocab_size and hz. Raises InputError where it cannot.
    """
    table = {"num_images": len(ids), "s": ids.shape[1], **metadata}
    files = {METADATA: json.dumps(table).encode(), SEGMENT_IDS: segment_ids.astype("<i4").tobytes()}
    files[VIDEO] = ids.astype(ids.dtype.newbyteorder("<")).tobytes()
    files |= {f"actions/{name}.bin": a.astype("<f4").tobytes() for name, a in (actions or {}).items()}
    for name, data in files.items():
        make_folder((folder / name).parent, [])
        with replacing(folder / name) as temporary:
            temporary.write_bytes(data)


def write_synthetic(
    folder: Path, frames: int = 300, clips: int = 2, seed: int = 0, version: str = "v1.1", *, force: bool = False
) -> None:
    """Write a synthetic folder in the format of `version` (v1.1, v1.0 or v0.0.1), with something in it to learn.

    In each clip a scene of few codes scrolls at a speed of its own, a patch moves across it, and some ids are noise.
    Its figures say nothing about real video. The same seed gives the same folder. Raises InputError where there is one
    already (unless `force`), or it cannot be written.
    """
    if (folder / METADATA).exists() and not force:
        raise InputError(f"{folder / METADATA}: exists already; -f overwrites it")
    random = np.random.default_rng(seed)
    side, vocabulary, dtype = (20, 1000, np.uint16) if version == "v0.0.1" else (16, 1 << 18, np.uint32)
    codes = random.integers(0, vocabulary, 64)
    # No two codes next to each other in the scene are unrelated: one determines its right neighbour, most of the time.
    follower = random.permutation(64)
    bounds = np.linspace(0, frames, clips + 1).astype(int)
    video = np.empty((frames, side, side), dtype)
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
    segment_ids = np.repeat(np.arange(clips, dtype=np.int32), np.diff(bounds))
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


def _integer(path: Path, table: Any, key: str) -> int:
    value = table.get(key) if isinstance(table, dict) else None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1 << 40:
        raise InputError(f"{path}: expected {key} to be a positive integer, found {value!r}")
    return value
