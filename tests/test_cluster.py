"""Groups coded on a cluster of Ray's: the same bytes, also when a worker is lost; clear errors where there is none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import tokens

import vqcomp
from vqcomp import DependencyError
from vqcomp.cli import run
from vqcomp.runtime.compute import Compute

DATA = {f"{i:02}.npy": tokens((12, 4, 4), seed=i) for i in range(24)}


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two workers on this machine."""
    ray = pytest.importorskip("ray", reason="no Ray: pip install 'vqcomp[cluster]'")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def compressed(path, **options):
    vqcomp.compress(DATA, path, model="none", group_size=2, **options)
    return path.read_bytes()


def test_a_cluster_gives_the_bytes_of_one_process(cluster, tmp_path):
    alone = compressed(tmp_path / "alone.zip", compute=Compute(jobs=1))
    assert compressed(tmp_path / "spread.zip", cluster="auto") == alone
    assert run(["test", str(tmp_path / "alone.zip"), "--cluster", "auto", "-q"]) == 0
    assert (
        run(["decompress", str(tmp_path / "alone.zip"), "-o", str(tmp_path / "back"), "--cluster", "auto", "-q"]) == 0
    )
    assert sorted(os.listdir(tmp_path / "back")) == sorted(DATA)


def test_a_lost_workers_groups_are_coded_elsewhere(cluster, tmp_path):
    alone = compressed(tmp_path / "alone.zip", compute=Compute(jobs=1))
    killed, over = [], threading.Event()

    def kill():
        while not over.wait(0.2) and not killed:
            for actor in cluster.util.state.list_workers(filters=[("worker_type", "=", "WORKER")], limit=100):
                if actor.is_alive and not killed:
                    killed.append(actor.pid)
                    os.kill(actor.pid, signal.SIGKILL)

    pytest.importorskip("ray.util.state")
    thread = threading.Thread(target=kill)
    thread.start()
    try:
        assert compressed(tmp_path / "spread.zip", cluster="auto") == alone
    finally:
        over.set()
        thread.join()


def test_a_cluster_that_cannot_be_reached_is_an_error(tmp_path):
    pytest.importorskip("ray", reason="no Ray: pip install 'vqcomp[cluster]'")
    np.save(tmp_path / "a.npy", DATA["00.npy"])
    command = [sys.executable, "-m", "vqcomp", "compress", "a.npy", "out.zip", "--cluster", "ray://127.0.0.1:1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "error: --cluster" in done.stderr and "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["a.npy"]


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DependencyError, match=r"vqcomp\[cluster\]"):
        vqcomp.compress(DATA, tmp_path / "out.zip", model="none", cluster="local")
