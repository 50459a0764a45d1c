"""Groups coded on a cluster of Ray's: the same bytes, also when a worker is lost; clear errors where there is none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import files_in, tokens

import vqcomp
from vqcomp import Compute, DamageError, DependencyError, InputError
from vqcomp.archive.journal import journal_path
from vqcomp.cli import run
from vqcomp.cluster import codec, worker

DATA = {f"{i:02}.npy": tokens((40, 4, 4), seed=i) for i in range(24)}
ONE = Compute(threads=1)
"""A CPU for each task."""


@pytest.fixture(scope="module")
def ray():
    return pytest.importorskip("ray", reason="no Ray: pip install 'vqcomp[cluster]'")


@pytest.fixture(scope="module")
def cluster(ray):
    """A cluster of two workers on this machine."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return compressed(tmp_path_factory.mktemp("alone") / "alone.zip", compute=Compute(jobs=1))


def compressed(path, **options):
    vqcomp.compress(DATA, path, model="none", group_size=2, **options)
    return path.read_bytes()


def workers_at_work():
    """Process ids of this test's Ray workers that run a task of vqcomp's."""
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,command="], capture_output=True, text=True, check=True)
    rows = [line.split(None, 2) for line in table.stdout.splitlines()]
    parents, found = {pid: parent for pid, parent, *_ in rows}, []
    for pid, _, *command in rows:
        above = pid
        while above not in ("0", str(os.getpid())):
            above = parents.get(above, "0")
        if above != "0" and command and command[0].startswith("ray::vqcomp"):
            found.append(int(pid))
    return found


def test_a_cluster_gives_the_bytes_of_one_process(cluster, alone, tmp_path):
    assert compressed(tmp_path / "out.zip", cluster="auto", compute=ONE) == alone
    out = str(tmp_path / "out.zip")
    for name, array in DATA.items():
        np.save(tmp_path / name, array)
    assert run(["test", out, "--cluster", "auto", "-q"]) == 0
    assert run(["evaluate", out, *(str(tmp_path / name) for name in DATA), "--cluster", "auto", "-q"]) == 0
    assert run(["decompress", out, "-o", str(tmp_path / "back"), "--cluster", "auto", "-q"]) == 0
    assert files_in(tmp_path / "back") == set(DATA)
    assert all(np.array_equal(np.load(tmp_path / "back" / name), array) for name, array in DATA.items())


@pytest.mark.parametrize("adapt", [True, False])
def test_a_network_travels_along(cluster, tiny_model, tmp_path, adapt):
    data = {str(i): tokens((2 + i, 3, 4), seed=i) for i in range(5)} | {"other": tokens((3, 2, 3), 40)}
    for name, more in (("alone", {}), ("spread", {"cluster": "auto"})):
        vqcomp.compress(data, tmp_path / name, model=tiny_model, adapt=adapt, compute=ONE, **more)
    assert (tmp_path / "alone").read_bytes() == (tmp_path / "spread").read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_a_lost_workers_groups_are_coded_elsewhere(cluster, alone, tmp_path):
    killed, over = [], threading.Event()

    def kill():
        while not over.wait(0.01) and len(killed) < 2:
            for pid in workers_at_work()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                over.wait(0.3)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        assert compressed(tmp_path / "out.zip", cluster="auto", compute=ONE) == alone
    finally:
        over.set()
        thread.join()
    assert killed


def test_no_more_groups_are_in_memory_than_keep_the_workers_busy(cluster, tmp_path):
    with codec.connect("auto", Compute(threads=1, jobs=3)) as spread:
        coder = spread.codec(vqcomp.runtime.spec.TokenSpec(4, 4, (70,)), None, adapt=True, compute=ONE)
        taken, done = [], 0

        def groups():
            for i in range(12):
                taken.append(i)
                assert len(taken) - done <= 3
                yield [tokens((4, 16, 1), seed=i, dtype="<i4")]

        for _ in coder.encoded(groups()):
            done += 1
        assert done == 12


def test_a_damaged_stream_costs_its_segments_alone(cluster, alone, tmp_path):
    path = tmp_path / "damaged.zip"
    path.write_bytes(alone)
    with vqcomp.open(path) as archive:
        group = archive.manifest.groups[3]
        expected = {archive.segments[i].name for i in group.segments}
        at = archive._start + group.offset
    damaged = bytearray(alone)
    damaged[at] ^= 1
    path.write_bytes(damaged)
    restored, lost = vqcomp.api.restore_files(path, tmp_path / "back", cluster="auto", compute=ONE)
    assert set(lost) == expected and {*restored, *lost} == set(DATA)
    with pytest.raises(DamageError, match=min(expected)):
        vqcomp.check(path, cluster="auto", compute=ONE)


def test_a_cluster_that_loses_every_worker_is_an_error_and_the_journal_goes_on(cluster, alone, tmp_path, monkeypatch):
    count = tmp_path / "count"

    def make_task():
        def task(*arguments):
            with open(count, "a") as handle:
                handle.write("x")
            if os.path.getsize(count) > 5:
                os._exit(1)
            from vqcomp.cluster.worker import run

            return run(*arguments)

        return task

    out = tmp_path / "out.zip"
    with monkeypatch.context() as patch:
        patch.setattr(codec, "_make_task", make_task)
        with pytest.raises(InputError, match=r"lost 4 times.*--batch-size"):
            compressed(out, cluster="auto", compute=Compute(threads=1, jobs=1))
    assert files_in(tmp_path) == {"count", journal_path(out).name}
    notes = []
    assert compressed(out, resume=True, report=notes.append) == alone
    assert any("5 groups of an earlier run are done" in note for note in notes)


def test_another_vqcomp_on_a_worker_is_an_error(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(codec, "code_digest", lambda: "another")
    with pytest.raises(DependencyError, match="has another vqcomp"):
        compressed(tmp_path / "out.zip", cluster="auto", compute=ONE)


def test_a_worker_without_vqcomp_is_an_error(ray, tmp_path):
    shadow = tmp_path / "shadow" / "vqcomp"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text("raise ImportError('No module named vqcomp')\n")
    code = (
        "import os, sys, vqcomp.cluster.worker, numpy, ray\n"
        f"os.environ['PYTHONPATH'] = {str(shadow.parent)!r}\n"
        "ray.init('local', num_cpus=1, include_dashboard=False, log_to_driver=False)\n"
        "from vqcomp.cli import run\n"
        "sys.exit(run(['compress', 'a.npy', 'out.zip', '--model', 'none', '--cluster', 'auto']))\n"
    )
    np.save(tmp_path / "a.npy", DATA["00.npy"])
    # From a folder that does not hold vqcomp: Ray hands the caller's path on.
    (tmp_path / "main.py").write_text(code)
    command = [sys.executable, "main.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert "vqcomp cannot be imported there" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (Compute("cuda", threads=1), "a GPU; no machine has these"),
        (Compute(threads=64), "takes 64 CPUs; no machine has these"),
        (Compute("cuda:1"), "say --device cuda"),
    ],
)
def test_tasks_for_which_no_machine_has_room_are_an_error(cluster, tmp_path, monkeypatch, compute, message):
    monkeypatch.setattr(codec, "PATIENCE", 0.0)
    monkeypatch.setattr(codec, "_LOOK", 0.1)
    with pytest.raises(InputError, match=message):
        compressed(tmp_path / "out.zip", cluster="auto", compute=compute)
    assert not (tmp_path / "out.zip").exists()


def test_a_worker_that_runs_out_of_memory_says_what_to_do(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(worker, "_codec", fail)
    kind, message = worker.run(worker.code_digest(), "encode", ((4, 4, (70,)), True, "cpu", 1, 16), None, [[]])
    assert kind == "InputError" and "out of memory; try a smaller --batch-size" in message


@pytest.mark.skipif(sys.platform != "linux", reason="Ray watches memory on Linux alone")
def test_workers_that_ray_ends_for_lack_of_memory_are_an_error_and_the_journal_goes_on(ray, alone, tmp_path):
    for name, array in DATA.items():
        np.save(tmp_path / name, array)
    paths = [str(tmp_path / name) for name in [*DATA, "out.zip"]]
    command = ["compress", *paths, "--model", "none", "--group-size", "2", "-j", "1", "-q", "--resume"]
    # Then the machine counts as full from the start, and whatever works is ended.
    full = {**os.environ, "RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "20"}
    spread = [sys.executable, "-m", "vqcomp", *command, "--cluster", "local", "-T", "1"]
    done = subprocess.run(spread, env=full, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    assert "its machine ran out of memory" in done.stderr and "Traceback" not in done.stderr
    assert files_in(tmp_path) == {*DATA, "out.zip.partial"}
    assert run(command) == 0
    assert (tmp_path / "out.zip").read_bytes() == alone


@pytest.mark.parametrize("address", ["somewhere", "ray://", "http://host:80", "host", ""])
def test_an_address_that_is_none_is_an_error(tmp_path, address):
    with pytest.raises(InputError, match="expected auto, local, HOST:PORT"):
        compressed(tmp_path / "out.zip", cluster=address)


@pytest.mark.parametrize("address", ["ray://127.0.0.1:1", "127.0.0.1:1"])
def test_a_cluster_that_cannot_be_reached_is_an_error(ray, tmp_path, address):
    np.save(tmp_path / "a.npy", DATA["00.npy"])
    command = [sys.executable, "-m", "vqcomp", "compress", "a.npy", "out.zip", "--cluster", address]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert f"error: --cluster {address}" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out.zip").exists()


@pytest.fixture
def connecting_raises(ray, monkeypatch):
    """To call with the error that Ray raises when it is to connect."""

    def prepare(error):
        def init(*_, **__):
            raise error

        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setattr(ray, "init", init)

    return prepare


def test_no_cluster_on_this_machine_is_an_error(connecting_raises, tmp_path):
    connecting_raises(ConnectionError("Could not find any running Ray instance. Please specify the one to connect to."))
    with pytest.raises(InputError, match=r"--cluster auto: cannot be reached.*`ray start --head` starts one"):
        compressed(tmp_path / "out.zip", cluster="auto")


def test_a_ray_that_was_never_tried_is_an_error(ray, tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "__version__", "3.0.1")
    with pytest.raises(DependencyError, match=r"below 3, found 3\.0\.1"):
        compressed(tmp_path / "out.zip", cluster="local")


def test_a_cluster_with_another_ray_is_an_error(connecting_raises, tmp_path):
    connecting_raises(
        RuntimeError("Version mismatch: The cluster was started with:\n  Ray: 2.0.0\nThis process:\n  Ray: 2.9.0")
    )
    with pytest.raises(DependencyError, match=r"another version of Ray or Python.*Ray: 2\.0\.0"):
        compressed(tmp_path / "out.zip", cluster="auto")


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DependencyError, match=r"vqcomp\[cluster\]"):
        compressed(tmp_path / "out.zip", cluster="local")
