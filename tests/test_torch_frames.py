"""vqcomp.torch.Frames: the windows of archives, folders and shards are those of their arrays, whoever reads them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import tokens
from layouts import samples, write_shard

import vqcomp
from vqcomp.data.synthetic import write_synthetic
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.errors import InputError

torch = pytest.importorskip("torch")
from torch.utils.data import DataLoader, DistributedSampler

from vqcomp.torch import Frames

LENGTHS = (9, 3, 20, 8, 7, 12, 30, 5, 16, 11)
ARRAYS = {f"{i:02}": tokens((n, 8, 16), 1024, ["<i2", ">i4"][i % 2], i) for i, n in enumerate(LENGTHS)}


def windows(frames: int, stride: int) -> np.ndarray:
    """(windows, frames, 8, 16)"""
    return np.stack(
        [a[t : t + frames].astype(np.int64) for a in ARRAYS.values() for t in range(0, len(a) - frames + 1, stride)]
    )


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("frames")
    (folder / "npy").mkdir()
    for i, (name, array) in enumerate(ARRAYS.items()):
        with open(folder / "npy" / name, "wb") as handle:
            np.save(handle, np.asfortranarray(array) if i == 2 else array)
    write_shard(folder / "shard.tar.gz", samples(ARRAYS))
    compute = Compute("numpy", 1, jobs=1)
    vqcomp.compress(ARRAYS, folder / "learned.zip", model="none", compute=compute, verify=False)
    vqcomp.compress(ARRAYS, folder / "network.zip", model="commavq-pico", adapt=False, compute=compute, verify=False)
    return {p.name: p for p in folder.iterdir()}


KINDS = ("npy", "shard.tar.gz", "learned.zip", "network.zip")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("frames", "stride"), [(8, None), (5, 2), (1, 1)])
def test_windows_are_those_of_the_arrays(places, kind, frames, stride):
    data, expected = Frames(places[kind], frames, stride=stride), windows(frames, stride or frames)
    assert len(data) == len(expected)
    for i in np.random.RandomState(0).permutation(len(data)):
        assert data[i].dtype == torch.int64
        np.testing.assert_array_equal(data[i], expected[i])
    np.testing.assert_array_equal(data[-1], expected[-1])
    for index in (len(data), -len(data) - 1):
        with pytest.raises(IndexError):
            data[index]


METHODS = ["spawn"] if sys.platform == "win32" else ["fork", "spawn"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["learned.zip", "npy"])
def test_workers_give_what_one_process_gives(places, kind, method):
    data = Frames(places[kind], 8)
    data[3]  # so that the parent has an open file and decoded groups
    loader = DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context=method, timeout=120)
    np.testing.assert_array_equal(torch.cat(list(loader)), windows(8, 8))
    np.testing.assert_array_equal(data[0], windows(8, 8)[0])


def test_processes_of_a_distributed_sampler_share_the_windows_out(places):
    data = Frames(places["learned.zip"], 4)
    found = [
        torch.cat(list(DataLoader(data, 3, sampler=DistributedSampler(data, 2, rank, shuffle=True))))
        for rank in range(2)
    ]
    expected = sorted(w.tobytes() for w in windows(4, 4))
    both = sorted({w.numpy().tobytes() for w in torch.cat(found)})
    assert both == sorted(set(expected))


@pytest.mark.parametrize("kind", ["learned.zip", "shard.tar.gz"])
def test_no_more_is_kept_than_was_said(places, kind):
    largest = 8 * max(a.nbytes for a in ARRAYS.values())  # a group's eight segments at the most
    for limit in (0, 20_000, 1 << 30):
        data = Frames(places[kind], 2, cache_bytes=limit)
        for i in np.random.RandomState(1).permutation(len(data))[:20]:
            np.testing.assert_array_equal(data[i], windows(2, 2)[i])
            assert data._cache.size <= max(limit, largest)
    assert data._cache.size <= sum(a.nbytes for a in ARRAYS.values())


def test_a_group_that_fits_is_decoded_once(places, monkeypatch):
    from vqcomp.archive.as_data import Stored

    decoded: list[int] = []
    decode = Stored._decode
    monkeypatch.setattr(Stored, "_decode", lambda self, group: decoded.append(group) or decode(self, group))
    data = Frames(places["learned.zip"], 2)
    for i in np.random.RandomState(2).permutation(len(data)):
        data[i]
    assert sorted(decoded) == [0, 1]


def test_windows_of_1x_are_read_out_of_the_video(tmp_path):
    write_synthetic(tmp_path / "robot", frames=40, clips=2)
    video = np.fromfile(tmp_path / "robot/video.bin", "<u4").reshape(40, 16, 16)
    data = Frames(tmp_path / "robot", 10)
    np.testing.assert_array_equal(torch.stack([data[i] for i in range(len(data))]).reshape(40, 16, 16), video)


def test_what_cannot_be_windows_is_an_error(places, tmp_path):
    with pytest.raises(InputError, match="no segment has a window of 31 frames; the longest has 30"):
        Frames(places["npy"], 31)
    with pytest.raises(InputError, match="frames: expected an integer of at least 1, found 0"):
        Frames(places["npy"], 0)
    with pytest.raises(InputError, match="expected frames of one grid, found 2x2 and 3x4"):
        Frames({"a": tokens((3, 3, 4)), "b": tokens((3, 2, 2))}, 2)
