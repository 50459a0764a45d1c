"""An archive is data: what went into it can be compressed again, trained on, and compared with, out of the zip."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import files_in, tokens
from hypothesis import given, settings
from hypothesis import strategies as st

import vqcomp
from vqcomp.archive.as_data import find_segments, is_archive
from vqcomp.cli import run
from vqcomp.data.cache import Cache
from vqcomp.data.synthetic import write_synthetic
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.errors import InputError

ONE = Compute("numpy", 1, jobs=1)


def arrays(count: int = 11) -> dict[str, np.ndarray]:
    """Segments of two grids and several dtypes and shapes, in more than one group."""
    made = {f"b/{i:02}.npy": tokens((4 + i, 3, 4), 70, ["<i2", ">i4", "|u1"][i % 3], i) for i in range(count)}
    made["flat.npy"] = tokens((5, 128), 1000, "<i8", 99)
    made["a grid of its own.npy"] = tokens((6, 2, 2), 9, "<u2", 98)
    return made


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    vqcomp.compress(arrays(), tmp_path / "in.zip", model="none", compute=ONE)
    return tmp_path / "in.zip"


def same(path: Path, expected: dict[str, np.ndarray]) -> None:
    with vqcomp.open(path, ONE) as opened:
        assert set(opened) == set(expected)
        for name, array in opened.decode():
            assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape)
            np.testing.assert_array_equal(array, expected[name])


def test_compressing_an_archive_again_gives_the_bytes_that_its_data_give(archive, tmp_path):
    vqcomp.compress(archive, tmp_path / "again.zip", model="none", compute=ONE)
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()


def test_an_archive_can_be_compressed_by_another_model(archive, tiny_model, tmp_path):
    for adapt in (True, False):
        out = tmp_path / f"{adapt}.zip"
        vqcomp.compress(archive, out, model=tiny_model, adapt=adapt, compute=ONE)
        same(out, arrays())
    # And back, from an archive in which every segment has a stream of its own.
    vqcomp.compress(tmp_path / "False.zip", tmp_path / "back.zip", model="none", compute=Compute("numpy", 1, jobs=2))
    same(tmp_path / "back.zip", arrays())


def test_archives_and_other_data_go_together(archive, tmp_path):
    np.save(tmp_path / "more.npy", tokens((3, 3, 4)))
    vqcomp.compress([archive, tmp_path / "more.npy"], tmp_path / "both.zip", model="none", compute=ONE)
    same(tmp_path / "both.zip", arrays() | {"more.npy": tokens((3, 3, 4))})


def test_an_archive_inside_a_folder_of_data_is_no_data(archive, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    np.save(folder / "x.npy", tokens((3, 3, 4)))
    vqcomp.compress(folder, folder / "out.zip", model="none", compute=ONE)
    summary = vqcomp.compress(folder, folder / "out.zip", model="none", compute=ONE, force=True)
    assert (summary.segments, summary.left_out) == (1, 1)
    vqcomp.evaluate(folder / "out.zip", folder, compute=ONE)


@pytest.mark.parametrize("version", ["v1.1", "v2.0"])
def test_raw_files_and_kept_files_come_back_through_a_second_archive(version, tmp_path):
    write_synthetic(tmp_path / "robot", frames=40, clips=3, version=version)
    (tmp_path / "robot/notes.txt").write_text("kept")
    vqcomp.compress(tmp_path / "robot", tmp_path / "a.zip", model="none", compute=ONE, keep_all=True)
    vqcomp.compress(tmp_path / "a.zip", tmp_path / "b.zip", model="none", compute=ONE)
    assert (tmp_path / "b.zip").read_bytes() == (tmp_path / "a.zip").read_bytes()
    vqcomp.decompress(tmp_path / "b.zip", tmp_path / "back", compute=ONE)
    assert files_in(tmp_path / "back") == files_in(tmp_path / "robot")
    for name in files_in(tmp_path / "back"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "robot" / name).read_bytes()


def test_evaluate_compares_an_archive_with_an_archive(archive, tmp_path):
    vqcomp.evaluate(archive, archive, compute=ONE)
    changed = arrays()
    changed["b/03.npy"][2, 1, 1] ^= 1
    vqcomp.compress(changed, tmp_path / "changed.zip", model="none", compute=ONE)
    with pytest.raises(InputError, match=r"in\.zip: b/03\.npy does: 1 of 84 tokens"):
        vqcomp.evaluate(tmp_path / "changed.zip", archive, compute=ONE)


def test_training_on_an_archive_is_training_on_its_data(tmp_path, capsys):
    pytest.importorskip("torch")
    data = {f"{i}.npy": tokens((60, 3, 4), 11, seed=i) for i in range(2)}
    (tmp_path / "data").mkdir()
    for name, array in data.items():
        np.save(tmp_path / "data" / name, array)
    vqcomp.compress(data, tmp_path / "in.zip", model="none", compute=ONE)
    options = ["--preset", "pico", "--steps", "2", "--held-out", "10", "--device", "cpu", "-T", "1", "-q"]
    for source in ("data", "in.zip"):
        assert run(["train", str(tmp_path / source), "-o", str(tmp_path / f"{source}.vqm"), *options]) == 0
    assert (tmp_path / "data.vqm").read_bytes() == (tmp_path / "in.zip.vqm").read_bytes()


def test_output_must_not_replace_the_archive_that_is_read(archive):
    with pytest.raises(InputError, match="would replace the input"):
        vqcomp.compress(archive, archive, model="none", compute=ONE, force=True)


def test_a_damaged_stream_is_named_and_can_be_skipped(archive, tmp_path):
    with vqcomp.open(archive) as opened:
        group = opened.manifest.groups[0]
        handle, start, _ = opened.open_stored("vqcomp/streams.bin")
        handle.close()
        lost = {opened.segments[i].name for i in group.segments}
    data = bytearray(archive.read_bytes())
    data[start + group.offset + 2] ^= 4
    archive.write_bytes(data)
    with pytest.raises(InputError, match=r"in\.zip: .*its stream's checksum does not match.*--skip-bad"):
        vqcomp.compress(archive, tmp_path / "out.zip", model="none", compute=ONE)
    assert not (tmp_path / "out.zip").exists()
    summary = vqcomp.compress(archive, tmp_path / "out.zip", model="none", compute=ONE, skip_bad=True)
    assert summary.skipped == len(lost)
    same(tmp_path / "out.zip", {n: a for n, a in arrays().items() if n not in lost})


def test_a_damaged_manifest_is_an_error_that_names_the_archive(archive, tmp_path):
    with vqcomp.open(archive) as opened:
        info = opened._info("vqcomp/manifest.json")
        at = opened._data_start(info) + info.compress_size // 2
    data = bytearray(archive.read_bytes())
    data[at] ^= 4
    archive.write_bytes(data)
    with pytest.raises(InputError, match=r"in\.zip"):
        vqcomp.compress(archive, tmp_path / "out.zip", model="none", compute=ONE)


@settings(max_examples=30, deadline=None)
@given(cut=st.floats(0, 0.999))
def test_half_an_archive_is_no_data(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("half")
    vqcomp.compress({"a.npy": tokens((3, 3, 4))}, folder / "a.zip", model="none", compute=ONE, verify=False)
    data = (folder / "a.zip").read_bytes()
    (folder / "half.zip").write_bytes(data[: int(cut * len(data))])
    assert not is_archive(folder / "half.zip")
    with pytest.raises(InputError, match=r"half\.zip"):
        find_segments(folder / "half.zip")
    shutil.rmtree(folder)


def test_a_commavq_zip_of_npy_files_is_still_a_shard(tmp_path):
    from layouts import npy, write_zip

    write_zip(tmp_path / "old.zip", [("x.npy", npy(tokens((3, 8, 16))))])
    assert not is_archive(tmp_path / "old.zip")
    assert [s.name for s in find_segments(tmp_path / "old.zip").segments] == ["x.npy"]


@pytest.mark.parametrize("limit", [0, 1000, 1 << 30])
def test_segments_come_in_any_order_whatever_is_kept_at_hand(archive, limit):
    cache = Cache(limit)
    segments = find_segments(archive, compute=ONE, cache=cache).segments
    expected = arrays()
    with vqcomp.open(archive) as opened:
        largest = max(sum(expected[opened.segments[i].name].nbytes for i in g.segments) for g in opened.manifest.groups)
    for i in np.random.RandomState(0).permutation(len(segments)):
        np.testing.assert_array_equal(segments[i].array(), expected[segments[i].name])
        # Where groups happen to be read in order, two of them come at a time.
        assert cache.size <= max(limit, 2 * largest)


def test_found_segments_can_be_pickled(archive):
    segments = find_segments(archive, compute=ONE).segments
    segments[0].array()
    data = pickle.dumps(segments)
    assert len(data) < 20_000  # without what has been decoded, and without the manifest
    for segment in pickle.loads(data):
        np.testing.assert_array_equal(segment.array(), arrays()[segment.name])
