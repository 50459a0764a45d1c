"""What compress can be asked for: levels, group sizes, zips without a decoder, standard output; and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import files_in, tokens

import vqcomp
from vqcomp import InputError
from vqcomp.choice import LEVELS
from vqcomp.cli import run


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working folder, with a folder `data` of twenty segments."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for i in range(20):
        np.save(f"data/{i:02}.npy", tokens((4, 2, 3), seed=i))
    return tmp_path


def group_sizes(path):
    with vqcomp.open(path) as archive:
        return [len(group.segments) for group in archive.manifest.groups]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], [8, 8, 4]),
        (["-2"], [16, 4]),
        (["-9"], [20]),
        (["--level", "7"], [16, 4]),
        (["--group-size", "1"], [1] * 20),
        (["-9", "--group-size", "6"], [6, 6, 6, 2]),
    ],
)
def test_levels_and_group_sizes_say_how_many_segments_learn_together(here, options, expected):
    assert run(["compress", "data", "out.zip", "-q", *options]) == 0
    assert group_sizes("out.zip") == expected
    assert run(["evaluate", "out.zip", "data"]) == 0


@pytest.mark.parametrize("options", [{"level": 0}, {"level": 10}, {"group_size": 0}, {"group_size": 65}])
def test_impossible_levels_and_group_sizes_are_refused(here, options):
    with pytest.raises(InputError, match="expected 1"):
        vqcomp.compress("data", "out.zip", **options)
    assert files_in(here) == {f"data/{i:02}.npy" for i in range(20)}


def test_large_frames_learn_together_in_smaller_groups_whatever_the_level(here):
    Path("large").mkdir()
    for i in range(6):
        np.save(f"large/{i}.npy", np.full((1, 64, 64), 1023 if i else 0, np.int16))
    assert run(["compress", "large", "out.zip", "-q", "-9", "--no-verify", "--model", "none"]) == 0
    assert group_sizes("out.zip") == [4, 2]


def test_a_higher_level_never_weighs_fewer_models():
    counts = [float("inf") if level.models is None else level.models for level in LEVELS.values()]
    assert counts == sorted(counts) and counts[0] == 0


def test_the_first_level_weighs_nothing(here, monkeypatch):
    monkeypatch.setattr("vqcomp.choice.Estimator", None)
    assert run(["compress", "data", "out.zip", "-q", "-1"]) == 0


def test_a_zip_without_a_decoder_is_smaller_and_still_read_by_vqcomp(here, capsys):
    assert run(["compress", "data", "with.zip", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert run(["compress", "data", "without.zip", "--no-decoder", "--json"]) == 0
    bare = json.loads(capsys.readouterr().out)
    assert bare["runtime_bytes"] == 0
    assert whole["zip_bytes"] - bare["zip_bytes"] > whole["runtime_bytes"]
    assert not any(name.endswith("decompress.py") for name in zipfile.ZipFile("without.zip").namelist())
    assert run(["test", "without.zip"]) == 0
    zipfile.ZipFile("without.zip").extractall("unpacked")
    assert run(["test", "unpacked"]) == 0
    assert run(["evaluate", "without.zip", "data"]) == 0


def test_a_decoder_that_outweighs_the_data_is_told(here, capsys):
    assert run(["compress", "data", "out.zip"]) == 0
    assert "the decoder outweighs the data" in capsys.readouterr().err
    assert run(["compress", "data", "out.zip", "-f", "--no-decoder"]) == 0
    assert "outweighs" not in capsys.readouterr().err


def test_a_model_that_outweighs_the_data_is_told(here, tiny_model, capsys):
    np.save("one.npy", tokens((40, 3, 4)))
    assert run(["compress", "one.npy", "out.zip", "--model", str(tiny_model), "--no-decoder"]) == 0
    assert "the model outweighs the data" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "quiet", "lines"), [(0, [], True), (60, [], False), (0, ["-q"], False)])
def test_where_there_is_no_terminal_a_line_tells_of_progress_now_and_then(
    here, capsys, monkeypatch, seconds, quiet, lines
):
    monkeypatch.setattr("vqcomp.cli.progress.LINE_SECONDS", seconds)
    assert run(["compress", "data", "out.zip", "--no-decoder", *quiet]) == 0
    shown = capsys.readouterr().err
    last = r"verifying: 100 % of 480 tokens, 20 of 20 segments, about 0 s to go"
    assert (last in shown) == lines
    if not lines:
        assert shown == ""


def test_a_zip_goes_to_standard_output_and_its_summary_does_not(here):
    command = [sys.executable, "-m", "vqcomp", "compress", "data", "-", "--model", "none"]
    done = subprocess.run(command, capture_output=True, check=True)
    Path("out.zip").write_bytes(done.stdout)
    assert b"Compression rate" in done.stderr
    assert run(["evaluate", "out.zip", "data"]) == 0
    assert run(["compress", "data", "file.zip", "--model", "none", "-q"]) == 0
    assert Path("file.zip").read_bytes() == done.stdout
    assert not Path("-").exists()


@pytest.mark.parametrize(("arguments", "missing"), [([], "DATA and OUT"), (["data"], "OUT")])
def test_what_is_missing_is_named(here, capsys, arguments, missing):
    assert run(["compress", *arguments]) == 2
    assert f"missing {missing}" in capsys.readouterr().err


def test_the_exit_code_and_json_say_that_something_was_skipped(here, capsys):
    Path("data/bad.npy").write_bytes(b"no array")
    assert run(["compress", "data", "out.zip"]) == 1
    assert "--skip-bad" in capsys.readouterr().err
    assert run(["compress", "data", "out.zip", "--skip-bad", "--json"]) == 4
    shown = capsys.readouterr()
    assert json.loads(shown.out)["skipped"] == 1
    assert "bad.npy" in shown.err
    assert run(["evaluate", "out.zip", "data"]) == 1
    assert run(["evaluate", "out.zip", "data", "--skip-bad", "--json"]) == 4
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["skipped"] == 1


def test_an_output_that_cannot_be_written_is_found_before_the_work(here, monkeypatch):
    monkeypatch.setattr("vqcomp.api.find_segments", None)
    with pytest.raises(InputError, match="cannot be written"):
        vqcomp.compress("data", "x" * 300)
    with pytest.raises(InputError, match="no such folder"):
        vqcomp.compress("data", "nowhere/out.zip")


def test_list_marks_sizes_that_are_shares_and_says_what_reading_one_takes(here, capsys):
    assert run(["compress", "data", "out.zip", "-q"]) == 0
    assert run(["list", "out.zip"]) == 0
    shown = capsys.readouterr().out
    assert "~" in shown and "up to 8 segments share a stream" in shown
    assert run(["compress", "data", "alone.zip", "-q", "--group-size", "1"]) == 0
    assert run(["list", "alone.zip"]) == 0
    assert "~" not in capsys.readouterr().out
