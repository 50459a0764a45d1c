"""A compression goes on after whatever ended it, to the bytes that an undisturbed one has."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import files_in, tokens
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import random_tensors, tiny_config

import vqcomp
from vqcomp import InputError
from vqcomp.archive.journal import MAGIC, Journal, journal_path
from vqcomp.choice import Chooser
from vqcomp.cli import run
from vqcomp.model_files import read_model_file
from vqcomp.runtime.engine import Engine
from vqcomp.runtime.exact import make_ops
from vqcomp.runtime.loading import self_test
from vqcomp.runtime.weights import write_model

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
    out, chance, killed = tmp_path / "out.zip", random.Random(number), 0
    command = [*COMMAND, str(data), str(out), *OPTIONS, "--resume"]
    for _ in range(3):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 30
        size = journal_path(out).stat().st_size if journal_path(out).exists() else 0
        while process.poll() is None and time.monotonic() < until:
            if journal_path(out).exists() and journal_path(out).stat().st_size > size + chance.randrange(2000):
                process.send_signal(number)
                killed += 1
                break
            time.sleep(0.01)
        process.wait(timeout=60)
        assert files_in(tmp_path) <= {"out.zip", "out.zip.partial"}
    assert killed
    if not out.exists():  # else it was too fast for the last signal
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


@pytest.mark.parametrize("cut", [1, 150, 100_000])
def test_a_torn_end_of_the_journal_costs_only_the_work_that_it_held(data, undisturbed, tmp_path, monkeypatch, cut):
    out = tmp_path / "out.zip"
    journal = stopped_after(3, data, out, monkeypatch)
    os.truncate(journal, max(1, journal.stat().st_size - cut))
    assert run(["compress", str(data), str(out), *OPTIONS, "--resume"]) == 0
    assert out.read_bytes() == undisturbed


ABOUT = {"vqcomp": "1", "--adapt": True, "segments": {"a": [1, 2], "b": [3]}}


def written(out, streams, about=ABOUT):
    """Begin, or go on with, a journal, append what of `streams` is missing, and return how many were there."""
    journal = Journal(out, about)
    there = journal.done
    assert journal.verified == 0
    assert [journal.stream(i) for i in range(there)] == streams[:there]
    if journal.model is None:
        journal.choose("mine", b"model\n\0")
    assert journal.model == ("mine", b"model\n\0")
    for stream in streams[there:]:
        journal.append(stream)
    journal.close()
    return there


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(streams=st.lists(st.binary(max_size=40), min_size=1, max_size=4))
def test_a_record_that_is_torn_at_any_byte_never_happened_and_those_before_it_did(tmp_path, streams):
    out = tmp_path / "out.zip"
    journal_path(out).unlink(missing_ok=True)
    assert written(out, streams) == 0
    whole = journal_path(out).read_bytes()
    for length in range(len(whole) - len(streams[-1]) - 13, len(whole)):  # 13: a record's head, and its kind
        journal_path(out).write_bytes(whole[:length])
        assert written(out, streams) == len(streams) - 1
        assert journal_path(out).read_bytes() == whole


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_flipped_bit_costs_work_but_gives_no_wrong_stream(tmp_path, data):
    out, streams = tmp_path / "out.zip", [b"first", b"", b"third" * 9]
    journal_path(out).unlink(missing_ok=True)
    written(out, streams)
    whole = journal_path(out).read_bytes()
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    flipped = bytearray(whole)
    flipped[bit // 8] ^= 1 << bit % 8
    journal_path(out).write_bytes(flipped)
    if bit // 8 < len(MAGIC):
        with pytest.raises(InputError, match="another file"):
            Journal(out, ABOUT)
        assert journal_path(out).read_bytes() == flipped
    else:
        assert written(out, streams) < len(streams)
        assert journal_path(out).read_bytes() == whole


def test_what_was_verified_is_not_verified_again(data, undisturbed, tmp_path, monkeypatch):
    out, verify, verified = tmp_path / "out.zip", Journal.verify, []

    def counting(self, stop):
        if len(verified) == stop:
            raise KeyboardInterrupt
        verified.append(self.verified)
        verify(self)

    for stop, code in ((5, 130), (12, 130), (SEGMENTS, 0)):
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "verify", lambda self, stop=stop: counting(self, stop))
            assert run(["compress", str(data), str(out), *OPTIONS, "--resume"]) == code
    assert verified == list(range(SEGMENTS // 2))  # each of the groups once
    assert out.read_bytes() == undisturbed


def test_a_group_that_does_not_come_back_is_found_after_others_were_verified(data, tmp_path, monkeypatch):
    out, verify = tmp_path / "out.zip", Journal.verify

    def breaking(self):
        verify(self)
        if self.verified == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "verify", breaking)
        assert run(["compress", str(data), str(out), *OPTIONS, "--resume"]) == 130
    stream = Journal.stream
    monkeypatch.setattr(Journal, "stream", lambda self, i: stream(self, 7 if i == 8 else i))
    assert run(["compress", str(data), str(out), *OPTIONS, "--resume"]) == 3
    assert files_in(tmp_path) == set()


def test_a_file_that_is_no_journal_is_not_touched(data, tmp_path, capsys):
    (tmp_path / "out.zip.partial").write_bytes(b"half of a download")
    assert run(["compress", str(data), str(tmp_path / "out.zip"), *OPTIONS, "--resume"]) == 1
    assert "expected a journal" in capsys.readouterr().err
    assert (tmp_path / "out.zip.partial").read_bytes() == b"half of a download"
    assert files_in(tmp_path) == {"out.zip.partial"}


def test_the_model_is_chosen_and_trained_once(data, tmp_path, monkeypatch):
    out, calls = tmp_path / "out.zip", []
    path = tmp_path / "own.vqm"
    config = tiny_config(height=4, width=4)
    tensors = random_tensors(config)
    path.write_bytes(write_model(config, tensors, self_test(Engine(config, tensors, make_ops("numpy")))))

    def choose(self, *_):
        calls.append(1)
        return read_model_file(path)

    monkeypatch.setattr(Chooser, "choose", choose)
    options = [*OPTIONS[2:], "--no-verify"]  # without --model: auto
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", interrupted)
        assert run(["compress", str(data), str(out), *options, "--resume"]) == 130
    path.unlink()
    assert run(["compress", str(data), str(out), *options, "--resume"]) == 0
    assert len(calls) == 1
    with vqcomp.open(out) as archive:
        assert archive.manifest.model


def interrupted(*_):
    raise KeyboardInterrupt


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
    (copy / "08.npy").unlink()
    np.save(copy / "99.npy", array)
    capsys.readouterr()
    assert run(["compress", str(copy), str(tmp_path / "out.zip"), *OPTIONS, "--resume"]) == 1
    assert "changed: 07.npy; segments gone: 08.npy; segments new: 99.npy" in capsys.readouterr().err


def test_another_model_of_the_same_name_is_named(tmp_path, tiny_model, monkeypatch, capsys):
    folder, model, out = tmp_path / "data", tmp_path / "own.vqm", tmp_path / "out.zip"
    folder.mkdir()
    for i in range(6):
        np.save(folder / f"{i}.npy", tokens((6, 3, 4), seed=i))
    model.write_bytes(tiny_model.read_bytes())
    options = ["--model", str(model), "--batch-size", "2", "-q", "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", interrupted)
        assert run(["compress", str(folder), str(out), *options]) == 130
    config = tiny_config()
    tensors = random_tensors(config, seed=5)
    model.write_bytes(write_model(config, tensors, self_test(Engine(config, tensors, make_ops("numpy")))))
    capsys.readouterr()
    assert run(["compress", str(folder), str(out), *options]) == 1
    assert "model changed: own" in capsys.readouterr().err


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
@pytest.mark.parametrize("limit", [0, 300, 6000, 12000])
def test_after_a_full_disk_it_goes_on(data, undisturbed, tmp_path, limit):
    out = tmp_path / "out.zip"
    limited = f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
    code = limited + "from vqcomp.cli import run; sys.exit(run(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, "compress", str(data), str(out), *OPTIONS, "--resume"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert files_in(tmp_path) == ({"out.zip.partial"} if limit >= 6000 else set())
    assert run(["compress", str(data), str(out), *OPTIONS, "--resume"]) == 0
    assert out.read_bytes() == undisturbed
    assert files_in(tmp_path) == {"out.zip"}
