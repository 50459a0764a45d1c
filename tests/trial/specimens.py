"""The healthy archives that are damaged: one of every codec, with several groups, kept files and a raw file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import damage
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
from vqcomp.runtime.token_config import TokenConfig
from vqcomp.runtime.token_external import VARIABLE
from vqcomp.runtime.token_weights import CONFIG, NAMES
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


NETWORK = TokenConfig(layers=1, heads=2, dim=16, positions=2 * 13, vocabulary=71, hidden=32)
"""An external network that sees two frames of 3 x 4 tokens."""


def tensors() -> dict[str, np.ndarray]:
    """The weights of NETWORK, at random."""
    random = np.random.default_rng(0)
    return {name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in NETWORK.tensor_shapes().items()}


def write_network(folder: Path) -> Path:
    """NETWORK as a checkpoint with model.safetensors, in a new folder."""
    folder.mkdir()
    header, data = {}, b""
    for name, x in tensors().items():
        header[name] = {"dtype": "F32", "shape": x.shape, "data_offsets": [len(data), len(data) + x.nbytes]}
        data += x.tobytes()
    text = json.dumps(header).encode()
    (folder / NAMES[0]).write_bytes(len(text).to_bytes(8, "little") + text + data)
    (folder / CONFIG).write_text(json.dumps(NETWORK.to_dict()))
    return folder


def sealed(table: dict[str, Any], model: bytes) -> bytes:
    """manifest.json of a table, its checksums made right for another model."""
    table = {**table, "model": {"bytes": len(model), "sha256": hashlib.sha256(model).hexdigest()}}
    del table["check"]
    return damage.seal(table)


def make_specimens(folder: Path) -> list[Specimen]:
    """All of them, each compressed into a zip in `folder`; takes a second.

    The environment's VQCOMP_MODEL then says where the external network lies, to all that is run from here.
    """
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
    os.environ[VARIABLE] = network = str(write_network(folder / "network"))
    drives = dict(list(several.items())[:5])
    found.append(_make(folder, "token", _folder(folder / "t", drives, {}), network, adapt=False))
    found.append(_make(folder, "token-mixed", _folder(folder / "x", drives, {"note": b"kept " * 99}), network))
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
