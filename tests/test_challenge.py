"""The commaVQ challenge's evaluation, rehearsed from a published shard to the rate."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, files_in
from layouts import samples, segments, write_shard

from vqcomp.cli import run

FRAMES = 12


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two shards as published, members not in order."""
    folder = tmp_path_factory.mktemp("published")
    for i in range(2):
        members = samples(segments(3, FRAMES, first=3 * i))
        write_shard(folder / f"data-{i:04d}.tar.gz", members[::2] + members[1::2])
    return folder


def rows(shards):
    """The data set as `datasets` gives it to the evaluator: a row for each key, tokens as nested lists."""
    table: dict[str, dict] = {}
    for path in sorted(shards.glob("*.tar.gz")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, kind = member.name.split(".", 1)
                row = table.setdefault(key, {})
                data = tar.extractfile(member).read()
                row[kind] = json.loads(data) if kind == "json" else np.load(io.BytesIO(data)).tolist()
    return list(table.values())


def official_evaluation(
    archive: Path, folder: Path, shards: Path, hidden: tuple[str, ...], python: str = sys.executable
) -> float:
    """What compression/evaluate.sh and evaluate.py do; modules in `hidden` cannot be imported by decompress.py."""
    unpacked = folder / "compression_challenge_submission_decompressed"
    if shutil.which("unzip"):
        subprocess.run(["unzip", "-q", str(archive), "-d", f"{unpacked}/"], check=True)
    else:
        with zipfile.ZipFile(archive) as handle:
            handle.extractall(unpacked)
    program = (
        f"import runpy, sys\nfor name in {hidden!r}: sys.modules[name] = None\n"
        "sys.path = [p for p in sys.path if p not in ('', sys.argv[1])]\n"
        "script = sys.argv[2]\nsys.argv[:] = [script]\nrunpy.run_path(script, run_name='__main__')"
    )
    relative = f"./{unpacked.name}/"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", program, str(REPOSITORY), relative + "decompress.py"], cwd=folder, text=True,
        capture_output=True, check=False, env={**environment, "OUTPUT_DIR": relative, "VQCOMP_NO_PIP": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = rows(shards)
    for row in table:
        tokens = np.load(unpacked / row["json"]["file_name"])
        assert np.all(tokens == np.array(row["token.npy"])), row["json"]["file_name"]
        assert tokens.dtype == np.int16
    return len(table) * FRAMES * 128 * 10 / 8 / archive.stat().st_size


@pytest.mark.parametrize(
    ("model", "hidden"),
    [("none", ("vqcomp", "torch")), ("network", ("vqcomp",)), ("network", ("vqcomp", "torch"))],
)
def test_a_submission_passes_the_official_evaluation(shards, tmp_path, model, hidden, capsys):
    archive = tmp_path / "compression_challenge_submission.zip"
    paths = [str(path) for path in sorted(shards.glob("*.tar.gz"))]
    if model == "network":
        from vqcomp.data.specs import COMMAVQ
        from vqcomp.model_files import shipped_models

        fitting = [name for name, m in shipped_models().items() if m.spec == COMMAVQ]
        if not fitting:
            pytest.skip("no shipped model predicts commaVQ")
        model = fitting[0]
    assert run(["compress", *paths, str(archive), "--model", model, "-q"]) == 0
    rate = official_evaluation(archive, tmp_path, shards, hidden)
    capsys.readouterr()
    assert run(["evaluate", str(archive), *paths]) == 0
    printed = re.fullmatch(r"Compression rate: (\d+\.\d{4})\n", capsys.readouterr().out)
    assert printed
    assert float(printed[1]) == pytest.approx(rate, abs=5e-5)
    assert run(["evaluate", str(archive), str(shards)]) == 0


COMMAS_PACKAGES = ("torch==2.2.2", "numpy>=2,<3", "constriction==0.5.0")
"""What the challenge's requirements.txt gives: a torch that was built for NumPy 1 beside NumPy 2."""


@pytest.mark.skipif(not os.environ.get("CI"), reason="installs gigabytes: runs in CI only (CI=1)")
def test_a_submission_with_a_network_decodes_in_the_challenges_own_environment(shards, tmp_path):
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = str(next(environment / p for p in ("bin/python", "Scripts/python.exe") if (environment / p).exists()))
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", *COMMAS_PACKAGES], check=False, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"the package index has no {COMMAS_PACKAGES[0]} for this Python")
    broken = "import numpy, torch; torch.from_numpy(numpy.zeros(1))"
    assert "Numpy is not available" in subprocess.run([python, "-c", broken], capture_output=True, text=True).stderr
    archive = tmp_path / "compression_challenge_submission.zip"
    assert run(["compress", str(shards), str(archive), "--model", "commavq-nano", "-q"]) == 0
    official_evaluation(archive, tmp_path, shards, ("vqcomp",), python)
    shutil.rmtree(environment)


def test_restored_segments_lie_beside_the_archives_own_files_under_their_very_names(shards, tmp_path):
    archive = tmp_path / "a.zip"
    assert run(["compress", str(shards), str(archive), "--model", "none", "-q"]) == 0
    official_evaluation(archive, tmp_path, shards, ("vqcomp",))
    restored = files_in(tmp_path / "compression_challenge_submission_decompressed")
    names = {row["json"]["file_name"] for row in rows(shards)}
    assert {name for name in restored if not name.startswith("vqcomp/")} == names | {"decompress.py"}


def test_evaluate_refuses_shards_that_differ(shards, tmp_path, capsys):
    archive = tmp_path / "a.zip"
    paths = [str(path) for path in sorted(shards.glob("*.tar.gz"))]
    assert run(["compress", *paths, str(archive), "--model", "none", "-q"]) == 0
    assert run(["evaluate", str(archive), paths[0]]) == 1
    assert "3 segments of the archive are not in the data" in capsys.readouterr().err
    arrays = segments(6, FRAMES)
    name = list(arrays)[4]
    arrays[name][3, 2, 1] ^= 1
    changed = write_shard(tmp_path / "changed.tar.gz", samples(arrays))
    assert run(["evaluate", str(archive), str(changed)]) == 1
    assert re.search(r"does not hold what .*changed\.tar\.gz: .* does: 1 of 1536 tokens", capsys.readouterr().err)
