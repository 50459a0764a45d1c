"""Where imagined frames are written: .npy files, or folders in the layout that 1X's visualize.py reads.

Such a folder holds a video.bin of true frames, then imagined ones, then the true ones in their place, and metadata that
say so: num_prompt_frames, and window_size, of the first two together. (github.com/1x-technologies/1xgpt:
genie/generate.py, visualize.py)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..data.onex import METADATA, VIDEO, Video, open_video, read_metadata
from ..data.onex_write import write_video
from ..data.sources import places
from ..runtime.errors import InputError
from .protocol import PROMPT, STRIDE, WINDOW

__all__ = ["PROMPT", "STRIDE", "WINDOW", "as_dtype", "open_window", "outputs", "window", "write_window"]


def outputs(out: Path, samples: int, *, force: bool, folders: bool) -> list[Path]:
    """`out`, or where there are several samples out-0, out-1, ..., before a suffix.

    Raises InputError, before any work, where one exists (unless `force`) or could not be written.
    """
    suffix = "" if folders else out.suffix
    stem = out.name.removesuffix(suffix) if suffix else out.name
    paths = [out] if samples == 1 else [out.with_name(f"{stem}-{i}{suffix}") for i in range(samples)]
    if not folders and suffix != ".npy":
        raise InputError(f"{out}: expected the name of a .npy file to write")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: no such folder; make it first")
    for path in paths:
        if folders != path.is_dir() and path.exists():
            raise InputError(f"{path}: expected a {'folder' if folders else 'file'} to write, found something else")
        if path.exists() and not force and (not folders or any(path.iterdir())):
            raise InputError(f"{path}: exists already; -f overwrites it")
    return paths


def as_dtype(ids: np.ndarray, dtype: np.dtype[Any], name: str) -> np.ndarray:
    """Ids in the dtype of the segment. Raises InputError where a predicted id does not fit."""
    if ids.max() > np.iinfo(dtype).max:
        raise InputError(f"{name}: an imagined id, {ids.max()}, does not fit into its {dtype}; save it as a wider type")
    return ids.astype(dtype)


def open_window(place: str) -> Video:
    """One of 1X's folders. Raises InputError."""
    (folder,) = places(place)
    if not folder.is_dir():
        raise InputError(f"{folder}: --layout 1x continues one of 1X's folders; expected a folder with {VIDEO}")
    return open_video(folder)


def window(video: Video, start: int, frames: int, every: int) -> np.ndarray:
    """Factors int32 (frames, S, F) of every so many frames from `start` on. Raises InputError unless in one clip."""
    stop = start + (frames - 1) * every + 1
    if not any(clip.start <= start and stop <= clip.stop for clip in video.clips):
        raise InputError(
            f"{video.path}: expected frames {start} to {stop - 1}, {frames} that are {every} apart, to be in one clip; "
            f"the longest clip has {max(map(len, video.clips))} frames: choose another --start"
        )
    ids = np.array(video.take(range(start, stop, every)), np.int64).reshape(frames, -1)
    if ids.min() < 0 or ids.max() >= video.spec.vocabulary:
        raise InputError(f"{video.path}: expected ids in 0..{video.spec.vocabulary - 1}, found {ids.max()}")
    return video.spec.split(ids).astype(np.int32)


def write_window(folder: Path, video: Video, ids: np.ndarray, truth: np.ndarray, prompt: int) -> None:
    """Write a folder: ids (T, s, s), of which `prompt` are true, then the true ones (T - prompt, s, s) in their place.

    Raises InputError where it cannot be written.
    """
    side = ids.shape[1]
    metadata = {
        **read_metadata(video.folder / METADATA),
        "num_images": len(ids) + len(truth),
        "token_dtype": video.dtype.name,
        "num_prompt_frames": prompt,
        "window_size": len(ids),
        "h": side,
        "w": side,
        "t": len(ids),
    }
    everything = np.concatenate([ids, truth]).astype(video.dtype)
    write_video(folder, everything, np.repeat([0, 1], [len(ids), len(truth)]), metadata)
