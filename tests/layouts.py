"""Shards of tokens in the layouts in which commaVQ is published."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from conftest import tokens

Member = tuple[str, bytes]


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def segments(count: int, frames: int = 12, first: int = 0) -> dict[str, np.ndarray]:
    """file_name -> int16 (frames, 8, 16), named as commaVQ's are."""
    return {f"{i:032x}_{i % 7}": tokens((frames, 8, 16), 1024, seed=i) for i in range(first, first + count)}


def sample(name: str, array: np.ndarray, key: str | None = None) -> list[Member]:
    """The members of a sample: the key differs from the file_name, so that neither is taken for the other."""
    key = key or "key_of_" + name
    pose = npy(np.zeros((len(array), 6), np.float32))
    table = json.dumps({"file_name": name, "note": "other fields are of no concern"}).encode()
    return [(f"{key}.json", table), (f"{key}.pose.npy", pose), (f"{key}.token.npy", npy(array))]


def samples(arrays: dict[str, np.ndarray]) -> list[Member]:
    return [member for name, array in arrays.items() for member in sample(name, array)]


def tar_bytes(members: Sequence[Member], special: Sequence[tarfile.TarInfo] = ()) -> bytes:
    """A tar of members and, after them, of what has no data of its own: links, devices."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in special:
            tar.addfile(info)
    return buffer.getvalue()


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    """A member of a tar that is a link, a device or a named pipe: tarfile.SYMTYPE, LNKTYPE, ..."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def write_shard(path: Path, members: Sequence[Member]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(tar_bytes(members), 1, mtime=0))
    return path


def write_zip(path: Path, members: Sequence[Member]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path
