"""Groups that several processes code side by side: the same bytes, the same tokens, and an end to all of it."""

import multiprocessing
import os
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from golden import CONFIG, model
from networks import random_segment

import vqcomp
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.errors import DamageError, InputError
from vqcomp.runtime.kinds import make_codec
from vqcomp.runtime.workers import Workers


@pytest.fixture(scope="module", params=["adaptive", "mixed"])
def codecs(request):
    """The same codec, alone and in two processes."""
    data = model() if request.param == "mixed" else None
    alone, shared = (make_codec(CONFIG.spec, data, adapt=True, compute=Compute("numpy", jobs=jobs)) for jobs in (1, 2))
    assert isinstance(shared, Workers) and shared.group_size == alone.group_size
    yield alone, shared
    shared.close()


def groups(sizes):
    return [[random_segment(CONFIG.spec, 3 + n, 10 * g + n) for n in range(size)] for g, size in enumerate(sizes)]


def test_processes_give_the_bytes_of_one(codecs):
    alone, shared = codecs
    tokens, counted = groups([2, 1, 3]), []
    streams = shared.encode(tokens, counted.append)
    assert streams == alone.encode(tokens)
    assert sum(counted) == sum(s.size for g in tokens for s in g)
    decoded = shared.decode(streams, [[len(s) for s in g] for g in tokens])
    assert all(np.array_equal(a, b) for x, y in zip(tokens, decoded, strict=True) for a, b in zip(x, y, strict=True))


def test_errors_in_a_process_are_those_of_the_codec(codecs):
    _, shared = codecs
    with pytest.raises(DamageError, match="32-bit words"):
        shared.decode([b"odd"], [[3]])
    assert shared.encode(groups([1])), "the processes go on"


def test_a_process_that_is_killed_is_reported():
    others = multiprocessing.active_children()
    shared = make_codec(CONFIG.spec, None, compute=Compute(jobs=2))
    assert shared.encode(groups([1, 1]))
    for process in set(multiprocessing.active_children()) - set(others):
        process.kill()
    with pytest.raises(InputError, match="ended from outside"):
        shared.encode(groups([1, 1]))
    shared.close()


def test_closing_ends_the_processes():
    others = multiprocessing.active_children()
    shared = make_codec(CONFIG.spec, None, compute=Compute(jobs=2))
    assert shared.encode(groups([1, 1]))
    started = set(multiprocessing.active_children()) - set(others)
    shared.close()
    assert started
    # Not join: the pool's own thread may take the exit status first, and tell a moment later.
    until = time.monotonic() + 60
    while any(process.is_alive() for process in started):
        assert time.monotonic() < until, "a process goes on"
        time.sleep(0.05)


def test_an_archive_of_several_groups_decodes_itself_in_processes(tmp_path):
    shape = (3, CONFIG.height, CONFIG.width)
    data = {f"{i}.npy": random_segment(CONFIG.spec, 3, i).reshape(shape) for i in range(9)}
    vqcomp.compress(data, tmp_path / "one.zip", model="none")
    vqcomp.compress(data, tmp_path / "two.zip", model="none", compute=Compute(jobs=2))
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    zipfile.ZipFile(tmp_path / "two.zip").extractall(tmp_path / "zip")
    command = [sys.executable, "decompress.py", "--jobs", "2"]
    subprocess.run(command, cwd=tmp_path / "zip", env={**os.environ, "VQCOMP_NO_PIP": "1"}, check=True, timeout=120)
    for name, array in data.items():
        assert np.array_equal(np.load(tmp_path / "zip" / "decompressed" / name), array)


SCRIPT = """
import numpy as np
import vqcomp
print("the script runs")
vqcomp.compress({str(i): np.full((3, 2, 3), i, np.int16) for i in range(20)}, "out.zip", compute=vqcomp.Compute(jobs=2))
"""


def test_a_script_needs_no_guard_for_several_processes(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "the script runs\n"), done.stderr
    with vqcomp.open(tmp_path / "out.zip") as archive:
        assert len(archive) == 20


def test_progress_comes_from_within_a_processs_share(monkeypatch):
    monkeypatch.setattr("vqcomp.runtime.workers.POLL", 0.01)
    shared = make_codec(CONFIG.spec, None, compute=Compute(jobs=2))
    told = []
    shared.encode([[random_segment(CONFIG.spec, 64, g)] for g in range(2)], told.append)
    shared.close()
    assert len(told) > 2
    assert sum(told) == 2 * 64 * CONFIG.positions


@pytest.mark.parametrize(("network", "jobs"), [(False, 6), (True, 3)])
def test_jobs_left_open_keep_all_cpus_busy(monkeypatch, network, jobs):
    monkeypatch.setattr("vqcomp.runtime.compute.cpus", lambda: 6)
    assert Compute().with_jobs(network).processes == jobs
    assert Compute(jobs=2).with_jobs(network).processes == 2
