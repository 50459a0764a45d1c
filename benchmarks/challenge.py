"""The commaVQ challenge, whole: fetch, train, compress, decode as comma does, compare, and what it took.

    python benchmarks/challenge.py [--segments N] [--data FOLDER] [--train TIME --preset base] [--work FOLDER]

Without --data the challenge's shards are fetched; --segments takes the first N. Each stage leaves its result in the
work folder and is passed over when that is there: after Ctrl-C, or worse, the same command goes on. comma's contract:
the zip is unpacked, its decompress.py runs in a fresh process, without vqcomp, with OUTPUT_DIR, and every file is
compared.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vqcomp.archive.as_data import find_segments
from vqcomp.cli.archives import compress
from vqcomp.data import hub
from vqcomp.data.segments import SegmentSource
from vqcomp.runtime.errors import VqcompError

VQCOMP = (sys.executable, "-m", "vqcomp")
WITHOUT_VQCOMP = """
import runpy, sys
sys.modules["vqcomp"] = None  # installed or not, it cannot be imported
script = sys.argv[1]
sys.argv = [script]
runpy.run_path(script, run_name="__main__")
"""


class Work:
    """The work folder, and which stages are done there: what each took is in stages.json."""

    def __init__(self, folder: Path, arguments: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "stages.json"
        self.table: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        if self.table.setdefault("arguments", arguments) != arguments:
            sys.exit(f"{folder}: was begun with {self.table['arguments']}; give the same, or another --work")
        self._save()

    def stage(self, name: str, run: Callable[[], int | None]) -> None:
        """Do a stage unless it is done. `run` returns its peak of memory in KiB. Interrupted time counts, too."""
        entry = self.table.setdefault(name, {"seconds": 0.0, "peak_kib": 0, "done": False})
        if entry["done"]:
            print(f"{name}: done before", flush=True)
            return
        print(f"{name} ...", flush=True)
        start = time.monotonic()
        try:
            entry["peak_kib"] = run() or 0
            entry["done"] = True
        finally:
            entry["seconds"] += time.monotonic() - start
            self._save()

    def _save(self) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.table, indent=1) + "\n")
        os.replace(temporary, self.path)


def call(command: Sequence[str | Path], **options: Any) -> int:
    """Run a program; its peak of memory in KiB, where the system tells. Exits where it fails."""
    process = subprocess.Popen([str(part) for part in command], **options)
    try:
        if not hasattr(os, "wait4"):
            process.wait()
            code, peak = process.returncode, 0
        else:
            _, status, usage = os.wait4(process.pid, 0)
            code = process.returncode = os.waitstatus_to_exitcode(status)
            peak = usage.ru_maxrss // (1024 if sys.platform == "darwin" else 1)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if code:
        sys.exit(f"failed with exit code {code}: {' '.join(str(part) for part in command)}")
    return peak


def take(segments: Sequence[SegmentSource], folder: Path) -> None:
    """Write the arrays of segments under their names; those that are there already are passed over."""
    for segment in segments:
        path = folder / segment.name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(".unfinished")
            with open(temporary, "wb") as handle:
                np.save(handle, segment.array())
            os.replace(temporary, path)


def decode(archive: Path, folder: Path) -> int:
    """Unpack into `folder` and run decompress.py there, as comma's evaluate.sh does."""
    shutil.rmtree(folder, ignore_errors=True)
    with zipfile.ZipFile(archive) as handle:
        handle.extractall(folder)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OUTPUT_DIR": f"./{folder.name}/", "VQCOMP_NO_PIP": "1"}
    script = f"./{folder.name}/decompress.py"
    return call([sys.executable, "-c", WITHOUT_VQCOMP, script], cwd=folder.parent, env=environment)


def compare(segments: Sequence[SegmentSource], folder: Path) -> None:
    """Every restored file with what was compressed. Exits at the first that differs."""
    for segment in segments:
        found, expected = np.load(folder / segment.name), segment.array()
        if (found.dtype, found.shape) != (expected.dtype, expected.shape) or not np.array_equal(found, expected):
            sys.exit(f"{segment.name}: the restored file differs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, help="the first N of the data  [default: all]")
    parser.add_argument("--data", type=Path, help="a folder of .npy files or shards  [default: fetch the challenge's]")
    parser.add_argument("--train", metavar="TIME", help="train a network for so long (90s, 20m, 2h)")
    parser.add_argument("--preset", default="base", help="which network")
    parser.add_argument("--held-out", metavar="N", help="frames to choose weights by, as of vqcomp train")
    parser.add_argument("--model", default="auto", help="what to compress with, where nothing is trained")
    parser.add_argument("--cluster", metavar="ADDRESS", help="for vqcomp compress")
    parser.add_argument("-j", "--jobs", help="for vqcomp compress")
    parser.add_argument("-T", "--threads", help="for vqcomp train and compress")
    parser.add_argument("--device", default="auto", help="for vqcomp train and compress")
    parser.add_argument("--work", type=Path, default=Path("challenge"), help="where results lie")
    arguments = parser.parse_args()
    kept = {"segments": arguments.segments, "data": arguments.data and str(arguments.data.resolve()),
            "train": arguments.train, "preset": arguments.preset, "model": arguments.model}  # fmt: skip
    work = Work(arguments.work, kept)
    data: list[Path] = [arguments.data] if arguments.data else []
    if not data:
        shards = hub.parse_shards("0-1")
        fetch = partial(hub.fetch_commavq, shards, hub.COMMAVQ_REVISION, None)
        work.stage("fetch", lambda: data.extend(fetch()))
        data = list(fetch())  # from the cache
    if arguments.segments:
        chosen = find_segments(data).segments[: arguments.segments]
        data = [work.folder / "data"]
        work.stage("take", lambda: take(chosen, data[0]))
    segments = find_segments(data).segments
    tokens = sum(s.tokens for s in segments)

    common = ["--device", arguments.device, *(["-T", arguments.threads] if arguments.threads else [])]
    model, archive, unpacked = work.folder / "model.vqm", work.folder / "submission.zip", work.folder / "unpacked"
    if arguments.train:
        held_out = ["--held-out", arguments.held_out] if arguments.held_out else []
        resume = ["--resume"] if model.with_suffix(".ckpt").exists() else ["-f"]
        work.stage("train", lambda: call([
            *VQCOMP, "train", *data, "-o", model, "--preset", arguments.preset, "--time", arguments.train,
            "--for-segments", str(len(segments)), *held_out, *resume, *common,
        ]))  # fmt: skip

    can = {option for parameter in compress.params for option in parameter.opts}
    if arguments.cluster and "--cluster" not in can:
        sys.exit("this vqcomp cannot compress on a cluster")
    options = [*(["--resume"] if "--resume" in can else []), *(["-j", arguments.jobs] if arguments.jobs else [])]
    options += ["--cluster", arguments.cluster] if arguments.cluster else []
    chosen_model = model if arguments.train else arguments.model
    work.stage("compress", lambda: call([
        *VQCOMP, "compress", *data, archive, "--model", chosen_model, "--no-verify", "-f", *options, *common,
    ]))  # fmt: skip
    work.stage("decode", lambda: decode(archive.resolve(), unpacked.resolve()))
    work.stage("compare", lambda: compare(segments, unpacked))

    size = archive.stat().st_size
    print(f"\n{'stage':10} {'seconds':>10} {'hours':>8} {'tokens/s':>10} {'peak MiB':>9}")
    for name in ("fetch", "take", "train", "compress", "decode", "compare"):
        if entry := work.table.get(name):
            seconds = entry["seconds"]
            speed = "" if name == "train" else f"{tokens / max(seconds, 1e-9):,.0f}"
            peak = f"{entry['peak_kib'] / 1024:,.0f}" if entry["peak_kib"] else ""
            print(f"{name:10} {seconds:10,.1f} {seconds / 3600:8.3f} {speed:>10} {peak:>9}")
    print(f"{len(segments):,} segments, {tokens:,} tokens, all files equal; zip {size:,} bytes")
    print(f"Compression rate: {tokens * 10 / 8 / size:.4f}")


if __name__ == "__main__":
    try:
        main()
    except VqcompError as error:
        sys.exit(f"error: {error}")
