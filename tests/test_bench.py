"""vqcomp bench, and the benchmarks made of it: what is counted, what is sampled, and that all of it is decoded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, tokens

import vqcomp
from vqcomp import bench
from vqcomp.bench import Row
from vqcomp.cli import run
from vqcomp.data.synthetic import write_synthetic
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.errors import DamageError, DependencyError, InputError

ONE = Compute("numpy", 1, jobs=1)
FEW = ["--device", "numpy", "-T", "1", "-j", "1", "-q"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for i in range(3):
        np.save(tmp_path / f"data/{i}.npy", tokens((6, 3, 4), 70, seed=i))
    return tmp_path / "data"


def table(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert run(["bench", *map(str, arguments), "--json", *FEW]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_method_is_measured_with_the_models_that_fit(folder, tiny_model, capsys):
    found = table(capsys, folder, "--model", tiny_model)
    methods = [row["method"] for row in found["rows"]]
    assert [m for m in methods if not m.startswith("zpaq")] == [
        "zstd -19", "lzma (comma's example)", "vqcomp --model none", "vqcomp --model tiny --no-adapt",
        "vqcomp --model tiny",
    ]  # fmt: skip
    assert (found["sample"], found["segments"], found["tokens"]) == (False, 3, 216)
    for row in found["rows"]:
        assert row["raw_bytes"] == 216 * 7 // 8  # 70 ids are 7 bits
        assert row["encode_seconds"] > 0 and row["decode_seconds"] > 0
        assert row["bits_per_token"] == pytest.approx(8 * row["payload_bytes"] / 216)
        assert row["rate"] == pytest.approx(row["raw_bytes"] / (row["zip_bytes"] or row["payload_bytes"]))
        assert row["rate_of_all"] == pytest.approx(row["rate"])


def test_zip_and_payload_are_those_that_compress_writes(folder, tiny_model, tmp_path, capsys):
    rows = {row["method"]: row for row in table(capsys, folder, "--model", tiny_model)["rows"]}
    for method, model, adapt in (
        ("vqcomp --model none", "none", True),
        ("vqcomp --model tiny", tiny_model, True),
        ("vqcomp --model tiny --no-adapt", tiny_model, False),
    ):
        summary = vqcomp.compress(folder, tmp_path / "out.zip", model=model, adapt=adapt, compute=ONE, force=True)
        assert (rows[method]["zip_bytes"], rows[method]["payload_bytes"]) == (summary.zip_bytes, summary.payload_bytes)


def test_a_sample_says_so_and_all_is_all(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "SAMPLE_TOKENS", 480)
    arrays = {f"{i:02}.npy": tokens((20, 3, 4), 70, seed=i) for i in range(12)}
    vqcomp.compress(arrays, tmp_path / "in.zip", model="none", compute=ONE)  # an archive is data here, too
    sample = table(capsys, tmp_path / "in.zip")
    assert (sample["sample"], sample["segments"], sample["tokens"]) == (True, 8, 480)
    assert (sample["all_segments"], sample["all_tokens"]) == (12, 2880)
    everything = table(capsys, tmp_path / "in.zip", "--all")
    assert (everything["sample"], everything["segments"], everything["tokens"]) == (False, 12, 2880)
    assert run(["bench", str(tmp_path / "in.zip"), *FEW[:-1]]) == 0
    assert "a sample of 8 segments, 480 tokens, out of 12 segments, 2,880 tokens; --all" in capsys.readouterr().err


def test_the_rate_of_all_counts_decoder_and_weights_once():
    row = Row("m", tokens=800, raw_bytes=1000, payload_bytes=400, zip_bytes=600)
    assert row.rate == 1000 / 600
    assert row.rate_of(0.1) == pytest.approx(10_000 / 4200)
    assert Row("m", 800, 1000, 400).rate_of(0.1) == 2.5


def test_parts_of_1x_folders_are_measured_with_their_own_vocabulary(tmp_path, capsys):
    write_synthetic(tmp_path / "robot", frames=6, clips=2)
    found = table(capsys, tmp_path / "robot", "--all")
    assert found["tokens"] == 6 * 256
    assert {row["raw_bytes"] for row in found["rows"]} == {6 * 256 * 18 // 8}


def test_what_does_not_come_back_is_an_error(folder):
    loaded = bench.load(folder, everything=True)
    with pytest.raises(DamageError, match="liar: other tokens came back"):
        bench._coded("liar", loaded, loaded.transposed(), lambda data: data, lambda data: data[::-1])


@pytest.mark.parametrize("limit", [1, 150, 1 << 26])
def test_blocks_are_whole_segments_whatever_their_size(folder, monkeypatch, limit):
    monkeypatch.setattr(bench, "BLOCK", limit)
    loaded = bench.load(folder, everything=True)
    blocks = list(bench._blocks(loaded))
    assert b"".join(blocks) == b"".join(loaded.transposed())
    assert len(blocks) == {1: 3, 150: 2, 1 << 26: 1}[limit]


def test_zpaq_is_measured_by_its_package(folder):
    pytest.importorskip("zpaq", reason="no zpaq: pip install 'vqcomp[zpaq]'")
    assert "zpaq -m5" in [row.method for row in bench.general_purpose(bench.load(folder))]


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a POSIX script")
def test_zpaq_is_measured_by_its_program(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zpaq", None)
    program = tmp_path / "bin/zpaq"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nif [ "$1" = a ]; then gzip -c "$3" > "$2"; else gzip -dc "$2" > tokens; fi\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    assert "zpaq -m5" in [row.method for row in bench.general_purpose(bench.load(folder))]
    program.write_text("#!/bin/sh\nexit 2\n")
    with pytest.raises(DependencyError, match="the program zpaq fails here"):
        list(bench.general_purpose(bench.load(folder)))


def test_without_zpaq_one_is_told_how_to_get_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "zpaq", None)
    monkeypatch.setenv("PATH", "")
    lines: list[str] = []
    assert len(list(bench.general_purpose(bench.load(folder), report=lines.append))) == 2
    assert len(lines) == 1 and "vqcomp[zpaq]" in lines[0]


def test_a_plot_is_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="no matplotlib: pip install 'vqcomp[plot]'")
    rows = [Row("a", 800, 1000, 400, 600, 1.0, 2.0), Row("b", 800, 1000, 500, None, 0.1, 0.01)]
    bench.plot(rows, 0.5, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    for bad in (tmp_path / "none/out.png", tmp_path / "out.what"):
        with pytest.raises(InputError, match="the plot cannot be written"):
            bench.plot(rows, 0.5, bad)


def test_a_plot_without_matplotlib_names_the_extra_before_anything_is_measured(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(["bench", str(folder), "--plot", "out.png"]) == 1
    found = capsys.readouterr()
    assert "pip install 'vqcomp[plot]'" in found.err and "zstd" not in found.out


def test_what_is_no_data_is_an_error(tmp_path, capsys):
    assert run(["bench", str(tmp_path / "nothing"), "--json"]) == 1
    assert "missing" in json.loads(capsys.readouterr().out)["error"]


def challenge(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, REPOSITORY / "benchmarks/challenge.py", *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_challenge_runs_whole_and_goes_on_where_it_stopped(tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(4):
        with open(tmp_path / f"data/{i}", "wb") as handle:  # commaVQ's names have no suffix
            np.save(handle, tokens((4, 8, 16), 1024, seed=i))
    work = tmp_path / "work"
    options = ["--data", tmp_path / "data", "--segments", 3, "--work", work, "--device", "numpy", "-T", 1]
    first = challenge(*options)
    assert first.returncode == 0, first.stderr
    rate = 3 * 4 * 128 * 10 / 8 / (work / "submission.zip").stat().st_size
    assert first.stdout.endswith(f"Compression rate: {rate:.4f}\n")
    assert sorted(p.name for p in (work / "unpacked").iterdir()) == ["0", "1", "2", "decompress.py", "vqcomp"]
    # A stage that is done is not done again; one that is not, is.
    stages = json.loads((work / "stages.json").read_text())
    stages["decode"]["done"] = stages["compare"]["done"] = False
    (work / "stages.json").write_text(json.dumps(stages))
    shutil.rmtree(work / "unpacked")
    again = challenge(*options)
    assert again.returncode == 0, again.stderr
    assert "compress: done before" in again.stdout and "decode ..." in again.stdout
    # A file that differs ends it.
    stages["decode"]["done"] = True
    (work / "stages.json").write_text(json.dumps(stages))
    np.save(work / "data/changed", tokens((4, 8, 16), 1024, seed=9))
    os.replace(work / "data/changed.npy", work / "data/1")
    failed = challenge(*options)
    assert failed.returncode == 1 and "1: the restored file differs" in failed.stderr
    other = challenge(*options, "--model", "none")
    assert other.returncode == 1 and "give the same, or another --work" in other.stderr
