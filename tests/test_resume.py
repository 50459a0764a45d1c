"""A compression goes on after whatever ended it, to the bytes that an undisturbed one has."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import files_in, tokens
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vqcomp
from vqcomp import InputError
from vqcomp.archive.journal import Journal, journal_path
from vqcomp.cli import run

SEGMENTS = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for i in range(SEGMENTS):
        np.save(folder / f"{i:02}.npy", tokens((24, 4, 4), seed=i))
    return folder


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out.zip"
    vqcomp.compress(data, out, model="none", group_size=2, compute=vqcomp.Compute(jobs=1, batch_size=2))
    return out.read_bytes()


COMMAND = [sys.executable, "-m", "vqcomp", "compress"]
OPTIONS = ["--model", "none", "--group-size", "2", "-j", "1", "--batch-size", "2", "-q"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_killed_again_and_again_ends_in_the_bytes_of_an_undisturbed_one(
    data, undisturbed, tmp_path, number
):
    out, chance = tmp_path / "out.zip", random.Random(number)
    command = [*COMMAND, str(data), str(out), *OPTIONS, "--resume"]
    for _ in range(3):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 30
        size = journal_path(out).stat().st_size if journal_path(out).exists() else 0
        while process.poll() is None and time.monotonic() < until:
            if journal_path(out).exists() and journal_path(out).stat().st_size > size + chance.randrange(2000):
                process.send_signal(number)
                break
            time.sleep(0.01)
        process.wait(timeout=60)
        assert files_in(tmp_path) <= {"out.zip", "out.zip.partial"}
    subprocess.run(command, check=True, timeout=120)
    assert out.read_bytes() == undisturbed
    assert files_in(tmp_path) == {"out.zip"}


def stopped_after(count, data, out, monkeypatch):
    """Leave the journal of a run that broke off after so many groups."""
    append, done = Journal.append, []

    def breaking(self, stream):
        if len(done) == count:
            raise KeyboardInterrupt
        done.append(stream)
        append(self, stream)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", breaking)
        assert run(["compress", str(data), str(out), *OPTIONS, "--resume"]) == 130
    return journal_path(out)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.integers(1, 400))
def test_a_torn_end_of_the_journal_costs_only_the_work_that_it_held(data, undisturbed, tmp_path, cut):
    out = tmp_path / f"{time.monotonic_ns()}.zip"
    with pytest.MonkeyPatch.context() as patch:
        journal = stopped_after(3, data, out, patch)
    os.truncate(journal, max(1, journal.stat().st_size - cut))
    assert run(["compress", str(data), str(out), *OPTIONS, "--resume"]) == 0
    assert out.read_bytes() == undisturbed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--group-size", "4"], "group"),
        (["--no-adapt"], "adapt"),
        (["--no-decoder"], "decoder"),
    ],
)
def test_an_option_that_has_changed_is_named(data, tmp_path, monkeypatch, capsys, change, message):
    out = tmp_path / "out.zip"
    journal = stopped_after(2, data, out, monkeypatch)
    before = journal.read_bytes()
    assert run(["compress", str(data), str(out), *OPTIONS, *change, "--resume"]) == 1
    assert message in capsys.readouterr().err
    assert journal.read_bytes() == before and not out.exists()


def test_data_that_have_changed_are_named(data, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in data.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    stopped_after(2, copy, tmp_path / "out.zip", monkeypatch)
    array = np.load(copy / "07.npy")
    array[3, 2, 1] ^= 1
    np.save(copy / "07.npy", array)
    assert run(["compress", str(copy), str(tmp_path / "out.zip"), *OPTIONS, "--resume"]) == 1
    assert "07.npy" in capsys.readouterr().err


def test_without_resume_a_partial_that_lies_there_is_named_and_left_alone(
    data, undisturbed, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out.zip"
    journal = stopped_after(2, data, out, monkeypatch)
    before = journal.read_bytes()
    capsys.readouterr()
    assert run(["compress", str(data), str(out), *[o for o in OPTIONS if o != "-q"]]) == 0
    assert "out.zip.partial" in capsys.readouterr().err
    assert journal.read_bytes() == before
    assert out.read_bytes() == undisturbed


def test_two_runs_with_the_same_output_are_refused(data, tmp_path):
    out = tmp_path / "out.zip"
    journal = Journal(out, {"vqcomp": "x"})
    with pytest.raises(InputError, match="another"):
        vqcomp.compress(data, out, model="none", resume=True)
    journal.remove()


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX limits")
def test_after_a_full_disk_it_goes_on(data, undisturbed, tmp_path):
    out = tmp_path / "out.zip"
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)); "
    code = limited + "from vqcomp.cli import run; sys.exit(run(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "compress", str(data), str(out), *OPTIONS, "--resume"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert not out.exists()
    assert run(["compress", str(data), str(out), *OPTIONS, "--resume"]) == 0
    assert out.read_bytes() == undisturbed
    assert files_in(Path(tmp_path)) == {"out.zip"}
