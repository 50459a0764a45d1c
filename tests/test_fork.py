"""A codec in forked processes, and its thread: it has an owner, an end, and no error is lost in it."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from golden import CONFIG, model
from networks import random_segment

import vqcomp
from vqcomp.runtime.adapt import AdaptiveCodec
from vqcomp.runtime.background import Background
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.errors import DamageError
from vqcomp.runtime.kinds import MIXED, make_codec

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
WAIT = 120
"""Seconds after which a process that hangs is given up."""


class Tokens:
    """A torch data set of an archive's segments."""

    def __init__(self, archive: vqcomp.Archive) -> None:
        self.archive, self.names = archive, list(archive)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.archive[self.names[index]]


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("device", ["cpu", "numpy"])
def test_workers_of_a_data_loader_read_an_archive_that_their_parent_has_read(tmp_path, tiny_model, device):
    data = pytest.importorskip("torch.utils.data")
    segments = {f"{i:02}": random_segment(CONFIG.spec, 6, seed=i).reshape(6, 3, 4) for i in range(20)}
    vqcomp.compress(segments, tmp_path / "out.zip", model=tiny_model, compute=Compute(device), verify=False)
    with vqcomp.open(tmp_path / "out.zip", Compute(device)) as archive:
        assert [coding.kind for coding in archive.manifest.codings] == [MIXED] and len(archive.manifest.groups) == 3
        np.testing.assert_array_equal(archive["00"], segments["00"])
        loader = data.DataLoader(
            Tokens(archive), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=WAIT
        )
        for found, expected in zip(loader, segments.values(), strict=True):
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(archive["19"], segments["19"])


def groups(count: int) -> list[list[np.ndarray]]:
    return [[random_segment(CONFIG.spec, 4, seed=i)] for i in range(count)]


def mixed() -> AdaptiveCodec:
    codec = make_codec(CONFIG.spec, model(), adapt=True, compute=Compute("numpy"))
    assert isinstance(codec, AdaptiveCodec)
    return codec


@pytest.mark.parametrize("method", ["start", "predict"])
@pytest.mark.parametrize("error", [MemoryError("no room"), DamageError("broken")], ids=str)
def test_an_error_of_the_network_is_raised_and_the_codec_recovers(monkeypatch, method, error):
    codec = mixed()
    streams = codec.encode(groups(2))
    calls = []

    def fail(*_):
        calls.append(threading.current_thread())
        raise error

    for action in (lambda: codec.encode(groups(1)), lambda: codec.decode(streams[:1], [[4]])):
        with monkeypatch.context() as patch:
            patch.setattr(codec.network, method, fail)
            with pytest.raises(type(error), match=str(error)):
                action()
    assert calls and threading.main_thread() not in calls
    assert codec.encode(groups(2)) == streams
    codec.close()


def test_closing_a_codec_ends_its_thread_and_it_can_be_used_again():
    codec, before = mixed(), threading.active_count()
    streams = codec.encode(groups(1))
    assert threading.active_count() == before + 1
    codec.close()
    assert threading.active_count() == before
    codec.close()
    assert codec.encode(groups(1)) == streams
    codec.close()


def test_a_codec_without_a_network_has_no_thread():
    codec, before = make_codec(CONFIG.spec, None), threading.active_count()
    codec.encode(groups(1))
    assert threading.active_count() == before


def test_closing_does_not_wait_for_what_has_not_begun():
    background, begun, hold, done = Background(), threading.Event(), threading.Event(), []
    first = background.submit(lambda: begun.set() or hold.wait())
    second = background.submit(done.append, 1)
    begun.wait()
    threading.Timer(0.1, hold.set).start()
    background.close()
    assert first.result() and second.cancelled() and not done


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_a_thread_of_its_own():
    background = Background()
    assert background.submit(os.getpid).result() == os.getpid()
    child = os.fork()
    if child == 0:
        try:
            own = background.submit(os.getpid).result(WAIT) == os.getpid()
            background.close()
            os._exit(0 if own else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert background.submit(os.getpid).result() == os.getpid()
    background.close()
