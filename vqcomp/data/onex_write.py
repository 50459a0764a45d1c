"""Writing 1X's folders, in the layouts that onex.py and onex_sharded.py read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.disk import make_folder, replacing
from .onex import METADATA, SEGMENT_IDS, VIDEO
from .onex_sharded import DTYPE, shard_file


def write_video(
    folder: Path, ids: np.ndarray, segment_ids: np.ndarray, metadata: Mapping[str, Any],
    actions: Mapping[str, np.ndarray] | None = None,
) -> None:  # fmt: skip
    """Write a folder of v1.1: ids (frames, s, s) in their dtype, segment_ids (frames,), actions name -> (frames, ...).

    `metadata` is added to num_images and s, and should hold vocab_size and hz. Raises InputError where it cannot.
    """
    table = {"num_images": len(ids), "s": ids.shape[1], **metadata}
    files = {METADATA: json.dumps(table).encode(), SEGMENT_IDS: segment_ids.astype("<i4").tobytes()}
    files[VIDEO] = ids.astype(ids.dtype.newbyteorder("<")).tobytes()
    files |= {f"actions/{name}.bin": a.astype("<f4").tobytes() for name, a in (actions or {}).items()}
    _write(folder, files)


def write_shard(
    folder: Path, number: int, ids: np.ndarray, segment_ids: np.ndarray, states: np.ndarray, *, nested: bool = False
) -> None:
    """Write a shard of v2.0: ids (ceil(frames / 17), 3, 32, 32), segment_ids (frames,), states (frames, 25).

    nested: in train_v2.0's layout, else in val_v2.0's. Raises InputError where it cannot.
    """
    files = {
        "metadata": json.dumps({"shard_num_frames": len(segment_ids), "shard_ind": number}).encode(),
        "video": ids.astype(DTYPE).tobytes(),
        "segment_idx": segment_ids.astype("<i4").tobytes(),
        "states": states.astype("<f4").tobytes(),
    }
    _write(folder, {shard_file(kind, number, nested=nested): data for kind, data in files.items()})


def write_shards_metadata(folder: Path, shards: int, frames: int) -> None:
    """Write the metadata.json of v2.0: numbers of shards, and of the video's frames in all of them."""
    table = {"num_shards": shards, "query": None, "hz": 30, "num_images": frames}
    _write(folder, {METADATA: json.dumps(table).encode()})


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        make_folder((folder / name).parent, [])
        with replacing(folder / name) as temporary:
            temporary.write_bytes(data)
