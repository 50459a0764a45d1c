"""Windows/s of vqcomp.torch.Frames out of an archive, a shard and a folder, against np.load of the .npy files.

    python benchmarks/frames.py [--segments 16] [--frames 150] [--window 16] [--workers 0]

The first pass decodes the archive, later ones read what is kept; the order is random. Tokens are synthetic.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from data import synthetic
from torch.utils.data import DataLoader, Dataset

import vqcomp
from vqcomp.runtime.compute import Compute
from vqcomp.torch import Frames


class Loaded(Dataset[torch.Tensor]):
    """What one writes without vqcomp: the whole file is loaded for a window."""

    def __init__(self, folder: Path, window: int, *, mapped: bool) -> None:
        self.paths, self.window, self.mode = sorted(folder.iterdir()), window, "r" if mapped else None
        self.each = len(np.load(self.paths[0])) // window

    def __len__(self) -> int:
        return len(self.paths) * self.each

    def __getitem__(self, index: int) -> torch.Tensor:
        first = index % self.each * self.window
        array = np.load(self.paths[index // self.each], mmap_mode=self.mode)
        return torch.from_numpy(array[first : first + self.window].astype(np.int64))


def write(folder: Path, segments: int, frames: int) -> None:
    """The same segments as .npy files, as a shard, and as archives without and with a network."""
    (folder / "npy").mkdir()
    with tarfile.open(folder / "shard.tar.gz", "w:gz", compresslevel=1) as tar:
        for i in range(segments):
            path = folder / "npy" / f"{i:04}.npy"
            np.save(path, synthetic(frames, i))
            for suffix, data in (
                ("json", json.dumps({"file_name": path.name}).encode()),
                ("token.npy", path.read_bytes()),
            ):
                member = tarfile.TarInfo(f"{i:04}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    for name, model in (("learned.zip", "none"), ("network.zip", "commavq-pico")):
        vqcomp.compress(
            folder / "npy", folder / name, model=model, adapt=False, verify=False, compute=Compute(threads=1)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=16)
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder, arguments.segments, arguments.frames)
        npy = folder / "npy"
        sets = {
            "np.load": Loaded(npy, arguments.window, mapped=False),
            "np.load, mapped": Loaded(npy, arguments.window, mapped=True),
            **{f"Frames, {p.name}": Frames(p, arguments.window) for p in (npy, *sorted(folder.glob("*.*")))},
        }
        print(f"{'windows/s':24} {'first pass':>12} {'later passes':>14}")
        for name, data in sets.items():
            loader = DataLoader(
                data, 8, shuffle=True, num_workers=arguments.workers, persistent_workers=arguments.workers > 0
            )
            rates = []
            for _ in range(4):
                start = time.perf_counter()
                count = sum(len(batch) for batch in loader)
                rates.append(count / (time.perf_counter() - start))
            print(f"{name:24} {rates[0]:12,.0f} {np.median(rates[1:]):14,.0f}", flush=True)


if __name__ == "__main__":
    main()
