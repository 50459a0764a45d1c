"""The healthy archives that are damaged: one of every codec, with several groups, kept files and a raw file."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from conftest import files_in, tokens
from networks import random_tensors, tiny_config

import vqcomp
from vqcomp.data.onex_write import write_video
from vqcomp.runtime import layout
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.engine import Engine
from vqcomp.runtime.exact import make_ops
from vqcomp.runtime.loading import self_test
from vqcomp.runtime.weights import write_model

COMPUTE = Compute("numpy", threads=1, jobs=1)


@dataclass
class Specimen:
    """A healthy archive and what it holds: arrays and files by name, and what restoring it writes."""

    name: str
    path: Path
    zip: bytes
    arrays: dict[str, np.ndarray]
    kept: dict[str, bytes]
    files: dict[str, bytes]
    entries: dict[str, bytes] = field(default_factory=dict)
    """The zip's, unpacked."""
    data: Path | None = None
    """The folder that was compressed."""


def tiny_model() -> bytes:
    """A .vqm for 3 x 4 tokens of 70 ids."""
    config = tiny_config()
    tensors = random_tensors(config)
    return write_model(config, tensors, self_test(Engine(config, tensors, make_ops("numpy"))))


def make_specimens(folder: Path) -> list[Specimen]:
    """All of them, each compressed into a zip in `folder`; takes a second."""
    model = folder / "tiny.vqm"
    model.write_bytes(tiny_model())
    several = {f"drive/{i:02}.npy": tokens((1 + i % 3, 3, 4), seed=i) for i in range(9)}
    mixture = {
        **dict(list(several.items())[:3]),
        "wide.npy": tokens((2, 2, 3), 300, ">u2"),
        "no suffix": np.ones((2, 12), "i8"),
    }
    found = [
        _make(
            folder,
            "adaptive",
            _folder(folder / "a", several, {"notes/read me.txt": b"kept " * 400, "empty": b""}),
            "none",
        ),
        _make(folder, "gpt", _folder(folder / "g", mixture, {}), str(model), adapt=False),
        _make(folder, "mixed", _folder(folder / "m", several, {"poses.bin": bytes(range(256)) * 9}), str(model)),
    ]
    noise = {"noise.npy": np.random.default_rng(0).integers(0, 1 << 16, (2, 3, 4)).astype("<u2")}
    found.append(_make(folder, "uniform", _folder(folder / "u", noise, {}), "none"))
    ids, cuts = (
        np.random.default_rng(1).integers(0, 1 << 18, (7, 3, 3)).astype(np.uint32),
        np.array([0, 0, 0, 1, 1, 2, 2]),
    )
    write_video(folder / "w", ids, cuts, {"vocab_size": 1 << 18, "hz": 30}, {"joint_pos": np.ones((7, 3))})
    found.append(_make(folder, "raw", folder / "w", "none"))
    return found


def _folder(path: Path, arrays: dict[str, np.ndarray], others: dict[str, bytes]) -> Path:
    for name, data in others.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    for name, array in arrays.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        with open(path / name, "wb") as handle:
            np.save(handle, array)
    return path


def _make(folder: Path, name: str, data: Path, model: str, adapt: bool = True) -> Specimen:
    path = folder / f"{name}.zip"
    vqcomp.compress(data, path, model=model, adapt=adapt, grid=(3, 4), keep_all=True, compute=COMPUTE)
    with vqcomp.open(path, COMPUTE) as archive:
        arrays = dict(archive.decode())
        kept = {f.name: b"".join(archive.contents(f)) for f in archive.kept}
    vqcomp.decompress(path, folder / f"{name}.restored", compute=COMPUTE)
    files = {n: (folder / f"{name}.restored" / n).read_bytes() for n in files_in(folder / f"{name}.restored")}
    assert files == {n: (data / n).read_bytes() for n in files_in(data)}
    packed = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        entries = {n: archive.read(n) for n in archive.namelist()}
    assert set(entries) <= set(layout.ENTRIES)
    return Specimen(name, path, packed, arrays, kept, files, entries, data)
