"""1X's world-model data, v2.0: a video in shards, of tokens that each stand for several frames.

A folder holds metadata.json and, for each of its shards N, metadata_N.json, video_N.bin, segment_idx_N.bin and
states_N.bin, either beside it (val_v2.0) or in folders of their own (train_v2.0). Cosmos-Tokenizer-DV8x8x8 makes of
every 17 frames a block of 3 x 32 x 32 ids below 64,000; F frames of a shard are ceil(F / 17) blocks, as int32. Blocks
run on whatever the segments, so one may hold the end of a segment and the beginning of the next. All numbers are
little-endian. (huggingface.co/datasets/1x-technologies/worldmodel)
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..runtime.errors import InputError
from ..runtime.spec import TokenSpec
from .files import File
from .onex import METADATA, cut, file_size, positive_integer, read_metadata, read_segment_ids, runs
from .segments import SegmentSource

BLOCK_FRAMES, BLOCK_GRIDS, SIDE = 17, 3, 32
"""A block: frames of video that become so many grids of tokens of SIDE x SIDE."""
SPEC = TokenSpec(SIDE, SIDE, (512, 125))
"""The digits of an id are six channels of 8, 8, 8, 5, 5, 5 levels (finite scalar quantisation), first varying fastest:
one factor for the first three channels and one for the others. On 45 synthetic frames of smooth channels the online
learner takes 5.00 bits/token so, and 5.84 with 64,000 ids in one factor, which it codes three times as fast."""
DTYPE = np.dtype("<i4")
FOLDERS = {"metadata": "metadata", "video": "videos", "segment_idx": "segment_indices", "states": "robot_states"}
"""Where a shard's files lie if not beside metadata.json."""
_SUFFIXES = {"metadata": "json", "video": "bin", "segment_idx": "bin", "states": "bin"}
_NAME = re.compile(r"(?:(video|segment_idx|states)_(\d{1,9})\.bin|metadata_(\d{1,9})\.json)")
_SHARDS_LIMIT = 1 << 20


@dataclass(frozen=True)
class VideoShard:
    """A shard's tokens, (grids, SIDE, SIDE) in all, 3 to a block; `frames` are those of the video."""

    path: Path
    frames: int
    segment_ids: np.ndarray
    """int32 (frames,)"""

    @property
    def blocks(self) -> int:
        return -(-self.frames // BLOCK_FRAMES)

    @property
    def clips(self) -> list[range]:
        """Ranges of grids, cut at the first block after each cut of the video.

        A block that holds a cut thus belongs to the segment that it begins with; a segment that lies within one block
        is no clip of its own.
        """
        segment = np.concatenate([[0], np.cumsum(np.diff(self.segment_ids) != 0)])  # (frames,), counted from 0
        return [range(BLOCK_GRIDS * r.start, BLOCK_GRIDS * r.stop) for r in runs(segment[::BLOCK_FRAMES])]


def sharded_folders(names: list[str]) -> set[str]:
    """Which folders hold such data: prefixes of names, "" for the folder itself."""
    everything, found = set(names), set()
    for name in names:
        folder, _, last = name.rpartition("/")
        match = _NAME.fullmatch(last)
        if match and match[1] in ("video", "segment_idx"):
            prefix = folder + "/" if folder else ""
            nested = FOLDERS[match[1]] + "/"
            if (prefix.endswith("/" + nested) or prefix == nested) and prefix + METADATA not in everything:
                prefix = prefix.removesuffix(nested)
            found.add(prefix)
    return found


def find_shards(
    folder: Path, prefix: str, names: list[str], bad: Callable[[InputError], None]
) -> tuple[dict[str, list[SegmentSource]], list[File]]:
    """The clips of each shard of a folder, by the name of the raw file that they are parts of; and all other files.

    `names` are those of the folder's files, which begin with `prefix`; folder / name is where each lies. `bad` is
    called with what is wrong with a shard, or several, which are left out with their own files. Raises InputError for
    what is wrong with the folder.
    """
    matches = {name: match for name in names if (match := _NAME.fullmatch(name.rpartition("/")[2]))}
    numbers = {name: int(match[2] or match[3]) for name, match in matches.items()}
    path = folder / prefix / METADATA
    count = positive_integer(path, read_metadata(path), "num_shards")
    if count > _SHARDS_LIMIT:
        raise InputError(f"{path}: expected num_shards to be at most {_SHARDS_LIMIT}, found {count}")
    videos = {numbers[name]: name for name, match in matches.items() if match[1] == "video"}
    missing = sorted(set(range(count)) - set(videos))
    found: dict[str, list[SegmentSource]] = {}
    beside: dict[int, str] = {}
    for number, name in sorted(videos.items()):
        try:
            shard = open_shard(folder / prefix, number, folder / name)
        except InputError as error:
            bad(error)
            continue
        found[name] = cut(name, shard.path, DTYPE, SPEC, shard.clips)
        beside[number] = name
    if missing:
        more = f", as are {len(missing) - 1} others of the {count} shards" if len(missing) > 1 else ""
        bad(
            InputError(f"{_locate(folder / prefix, 'video', missing[0])}: missing{more}; {METADATA} names it: fetch it")
        )
    files = []
    for name in names:
        if name not in numbers:
            files.append(File(name, folder / name, tuple(found)))
        elif name not in found and numbers[name] in beside:
            files.append(File(name, folder / name, (beside[numbers[name]],)))
    return found, files


def open_shard(folder: Path, number: int, video: Path) -> VideoShard:
    """Read a shard's metadata and segment ids, no tokens. Raises InputError unless everything fits together."""
    path = _locate(folder, "metadata", number)
    frames = positive_integer(path, read_metadata(path), "shard_num_frames")
    segment_ids = read_segment_ids(_locate(folder, "segment_idx", number), frames)
    shard = VideoShard(video, frames, segment_ids)
    expected, size = shard.blocks * BLOCK_GRIDS * SPEC.positions * DTYPE.itemsize, file_size(shard.path)
    if size != expected:
        raise InputError(
            f"{shard.path}: expected {expected} bytes for {frames} frames, {BLOCK_FRAMES} of which are "
            f"{BLOCK_GRIDS} x {SIDE} x {SIDE} int32, found {size}"
        )
    return shard


def shard_file(kind: str, number: int, *, nested: bool) -> str:
    """The name of a shard's file of a kind (see FOLDERS), in train_v2.0's layout if `nested`, else in val_v2.0's."""
    name = f"{kind}_{number}.{_SUFFIXES[kind]}"
    return f"{FOLDERS[kind]}/{name}" if nested else name


def _locate(folder: Path, kind: str, number: int) -> Path:
    """Where a shard's file lies, or would."""
    nested = folder / shard_file(kind, number, nested=True)
    flat = folder / shard_file(kind, number, nested=False)
    return nested if os.path.exists(nested) or (not os.path.exists(flat) and os.path.isdir(nested.parent)) else flat
