"""1X's folders: read as they are, cut where segments end, restored byte for byte."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import files_in, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import random_tensors, tiny_config

import vqcomp
from vqcomp.archive.validation import parse_untrusted
from vqcomp.cli import run
from vqcomp.data.onex import open_video
from vqcomp.data.onex_sharded import VideoShard
from vqcomp.data.onex_write import write_shard, write_shards_metadata, write_video
from vqcomp.data.sources import find_segments
from vqcomp.data.synthetic import write_synthetic
from vqcomp.runtime import files, manifest
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.engine import Engine
from vqcomp.runtime.errors import DamageError, InputError
from vqcomp.runtime.exact import make_ops
from vqcomp.runtime.loading import self_test
from vqcomp.runtime.spec import TokenSpec
from vqcomp.runtime.weights import write_model

NUMPY = Compute("numpy")

VERSIONS = ["v2.0", "v1.1", "v1.0", "v0.0.1"]
SMALL = {"vocab_size": 1 << 18, "hz": 30}


def contents(folder):
    return {name: (folder / name).read_bytes() for name in files_in(folder)}


def write_small(folder, frames=9, cuts=(4, 5), side=3, **metadata):
    """A folder of small frames in clips that end at `cuts`."""
    ids = np.random.default_rng(0).integers(0, 1 << 18, (frames, side, side)).astype(np.uint32)
    segment_ids = np.zeros(frames, np.int32)
    for cut in cuts:
        segment_ids[cut:] += 7
    write_video(folder, ids, segment_ids, {**SMALL, **metadata}, {"joint_pos": np.ones((frames, 21))})
    return ids


@pytest.mark.parametrize("version", VERSIONS)
def test_a_folder_comes_back_byte_for_byte(tmp_path, version):
    write_synthetic(tmp_path / "val", frames=7, clips=2, version=version)
    (tmp_path / "val/notes").mkdir()
    (tmp_path / "val/notes/empty").touch()
    summary = vqcomp.compress(tmp_path / "val", tmp_path / "out.zip", model="none")
    names = vqcomp.decompress(tmp_path / "out.zip", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "val")
    assert sorted(names) == sorted(files_in(tmp_path / "val"))
    assert vqcomp.evaluate(tmp_path / "out.zip", tmp_path / "val").rate == summary.rate
    vqcomp.check(tmp_path / "out.zip")
    bits = {"v0.0.1": 10, "v2.0": 9 + 7}.get(version, 18)
    video = tmp_path / "val" / ("video_0.bin" if version == "v2.0" else "video.bin")
    others = sum(len(data) for name, data in contents(tmp_path / "val").items() if name != video.name)
    values = video.stat().st_size // (2 if version == "v0.0.1" else 4)
    assert summary.raw_bytes == values * bits // 8 + others


@pytest.mark.parametrize(("version", "spec"), [
    ("v1.1", TokenSpec(16, 16, (512, 512))),
    ("v1.0", TokenSpec(16, 16, (512, 512))),
    ("v0.0.1", TokenSpec(20, 20, (1000,))),
])  # fmt: skip
def test_the_published_layouts_are_told_apart(tmp_path, version, spec):
    write_synthetic(tmp_path, frames=6, version=version)
    video = open_video(tmp_path)
    assert (video.spec, video.frames, video.hz) == (spec, 6, 30.0)
    assert video.dtype == ("<u2" if version == "v0.0.1" else "<u4")
    assert "token_dtype" not in json.loads((tmp_path / "metadata.json").read_bytes()) or version == "v1.1"


def test_sample_data_can_be_a_folder_of_1x(tmp_path, capsys):
    arguments = ["sample-data", "--layout", "1x", "--segments", "2", "--frames", "5", "--seed", "3"]
    for name in ("a", "b"):
        assert run([*arguments, str(tmp_path / name)]) == 0
    assert "2 synthetic segments" in capsys.readouterr().err
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert [len(clip) for clip in open_video(tmp_path / "a").clips] == [5, 5]
    assert run([*arguments, str(tmp_path / "a")]) == 1
    assert "exists already" in capsys.readouterr().err
    assert run([*arguments, str(tmp_path / "a"), "-f"]) == 0


def test_sample_data_can_be_a_folder_of_1x_of_version_2(tmp_path, capsys):
    arguments = ["sample-data", "--layout", "1x-v2", "--segments", "2", "--frames", "40", str(tmp_path / "val")]
    assert run(arguments) == 0
    names = {"metadata.json", "metadata_0.json", "video_0.bin", "segment_idx_0.bin", "states_0.bin"}
    assert files_in(tmp_path / "val") == names
    # 80 frames are 5 blocks; the second segment begins at frame 40, in the third.
    assert [s.shape for s in find_segments(tmp_path / "val").segments] == [(9, 32, 32), (6, 32, 32)]
    assert run(arguments) == 1
    assert "exists already" in capsys.readouterr().err


def test_ids_are_split_into_the_factors_of_the_metric():
    ids = np.array([0, 511, 512, 1000, (1 << 18) - 1])
    np.testing.assert_array_equal(TokenSpec(1, 1, (512, 512)).split(ids), np.stack([ids % 512, ids // 512], -1))


def test_every_run_of_a_segment_id_is_a_segment_of_its_own(tmp_path):
    ids = write_small(tmp_path, 9, cuts=(4, 5))
    # An id that comes back is another clip: 0 0 0 0 7 0 0 0 0.
    (tmp_path / "segment_ids.bin").write_bytes(np.array([0] * 4 + [7] + [0] * 4, "<i4").tobytes())
    found = find_segments(tmp_path)
    assert [s.name for s in found.segments] == ["video.bin#0", "video.bin#1", "video.bin#2"]
    assert [len(s.array()) for s in found.segments] == [4, 1, 4]
    np.testing.assert_array_equal(np.concatenate([s.array() for s in found.segments]), ids)
    assert sorted(f.name for f in found.files) == ["actions/joint_pos.bin", "metadata.json", "segment_ids.bin"]


def small_model(path):
    config = tiny_config(height=3, width=3, factors=(512, 512))
    tensors = random_tensors(config)
    path.write_bytes(write_model(config, tensors, self_test(Engine(config, tensors, make_ops("numpy")))))
    return path


def test_no_prediction_crosses_a_boundary(tmp_path):
    """A clip is coded to the same bytes whatever comes before it."""
    ids = write_small(tmp_path / "a", 9, cuts=(4,))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    changed = ids.copy()
    changed[:4] = 5
    (tmp_path / "b/video.bin").write_bytes(changed.tobytes())
    model, streams = small_model(tmp_path / "m.vqm"), []
    for name in ("a", "b"):
        vqcomp.compress(tmp_path / name, tmp_path / f"{name}.zip", model=model, adapt=False, compute=NUMPY)
        with vqcomp.open(tmp_path / f"{name}.zip") as archive:
            groups = archive.manifest.groups
            handle, start, _ = archive.open_stored("vqcomp/streams.bin")
            with handle:
                handle.seek(start + groups[1].offset)
                streams.append(handle.read(groups[1].size))
        assert len(groups) == 2
    assert streams[0] == streams[1]


def test_a_network_codes_two_factors_and_the_zip_restores_itself(tmp_path):
    write_small(tmp_path / "val")
    vqcomp.compress(tmp_path / "val", tmp_path / "out.zip", model=small_model(tmp_path / "m.vqm"), compute=NUMPY)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    hide = "import runpy, sys; sys.modules['vqcomp'] = None; sys.argv[:] = ['decompress.py', '--device', 'numpy']; "
    program = hide + "runpy.run_path('decompress.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "unpacked", capture_output=True, text=True, check=False,
        env={"OUTPUT_DIR": str(tmp_path / "back"), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "restored 4 files" in done.stderr
    assert contents(tmp_path / "back") == contents(tmp_path / "val")


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_every_video_comes_back(tmp_path_factory, segment_ids, side, wide, seed):
    folder = tmp_path_factory.mktemp("video")
    random = np.random.default_rng(seed)
    shape, vocabulary = (len(segment_ids), side, side), 1 << 18 if wide else 300
    ids = random.integers(0, vocabulary, shape).astype(np.uint32 if wide else np.uint16)
    dtype = {"token_dtype": ids.dtype.name}
    write_video(folder / "val", ids, np.array(segment_ids), {"vocab_size": vocabulary, "hz": 30, **dtype})
    vqcomp.compress(folder / "val", folder / "out.zip", model="none")
    vqcomp.decompress(folder / "out.zip", folder / "back")
    assert contents(folder / "back") == contents(folder / "val")


def test_folders_lie_beside_each_other_and_beside_arrays(tmp_path):
    data = tmp_path / "data"
    write_small(data / "train_v1.1", 5, cuts=(2,))
    write_small(data / "val_v1.1", 4, cuts=())
    with open(data / "a.npy", "wb") as handle:
        np.save(handle, tokens((4, 3, 4)))
    vqcomp.compress(data, tmp_path / "out.zip", model="none")
    vqcomp.decompress(tmp_path / "out.zip", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(data)
    with vqcomp.open(tmp_path / "out.zip") as archive:
        assert sorted(archive) == ["a.npy", "train_v1.1/video.bin#0", "train_v1.1/video.bin#1", "val_v1.1/video.bin#0"]


def test_one_file_or_one_clip_can_be_restored(tmp_path, capsys):
    ids = write_small(tmp_path / "val")
    vqcomp.compress(tmp_path / "val", tmp_path / "out.zip", model="none")
    for name in ("video.bin", "segment_ids.bin", "actions/joint_pos.bin"):
        assert vqcomp.decompress(tmp_path / "out.zip", tmp_path / "one" / name, only=[name]) == [name]
        assert contents(tmp_path / "one" / name) == {name: (tmp_path / "val" / name).read_bytes()}
    assert vqcomp.decompress(tmp_path / "out.zip", tmp_path / "clip", only=["video.bin#2"]) == ["video.bin#2"]
    np.testing.assert_array_equal(np.load(tmp_path / "clip/video.bin#2"), ids[5:])
    with pytest.raises(InputError, match="no video in the archive"):
        vqcomp.decompress(tmp_path / "out.zip", tmp_path / "none", only=["video"])
    assert not (tmp_path / "none").exists()
    with vqcomp.open(tmp_path / "out.zip") as archive:
        np.testing.assert_array_equal(archive["video.bin#0"], ids[:4])
    assert run(["list", str(tmp_path / "out.zip"), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [f["name"] for f in table["files"]] == ["actions/joint_pos.bin", "metadata.json", "segment_ids.bin"]
    assert run(["list", str(tmp_path / "out.zip")]) == 0
    assert "actions/joint_pos.bin" in capsys.readouterr().out


def test_existing_files_are_not_overwritten_unless_asked(tmp_path):
    write_small(tmp_path / "val")
    vqcomp.compress(tmp_path / "val", tmp_path / "out.zip", model="none")
    for name in ("video.bin", "metadata.json"):
        back = tmp_path / ("back" + name)
        back.mkdir()
        (back / name).write_text("mine")
        with pytest.raises(InputError, match=name + ": exists already"):
            vqcomp.decompress(tmp_path / "out.zip", back)
        assert contents(back) == {name: b"mine"}
        vqcomp.decompress(tmp_path / "out.zip", back, force=True)
        assert contents(back) == contents(tmp_path / "val")


def flip(path, entry, offset):
    """Change a byte of an entry that is stored in a zip."""
    with vqcomp.open(path) as archive:
        handle, start, _ = archive.open_stored(entry)
        handle.close()
    data = bytearray(path.read_bytes())
    data[start + offset] ^= 0x10
    path.write_bytes(data)


def test_a_damaged_file_is_named_and_the_others_are_restored(tmp_path):
    write_small(tmp_path / "val")
    vqcomp.compress(tmp_path / "val", tmp_path / "out.zip", model="none")
    with vqcomp.open(tmp_path / "out.zip") as archive:
        flip(tmp_path / "out.zip", "vqcomp/files.bin", archive.kept[1].offset + archive.kept[1].stored // 2)
    with pytest.raises(DamageError, match=r"1 of 4 files.*\n.*metadata\.json: "):
        vqcomp.decompress(tmp_path / "out.zip", tmp_path / "back")
    expected = contents(tmp_path / "val")
    del expected["metadata.json"]
    assert contents(tmp_path / "back") == expected
    with pytest.raises(DamageError, match=r"metadata\.json"):
        vqcomp.check(tmp_path / "out.zip")


def test_a_damaged_clip_takes_its_file_along_but_not_the_other_clips(tmp_path):
    ids = write_small(tmp_path / "val")
    model = small_model(tmp_path / "m.vqm")
    vqcomp.compress(tmp_path / "val", tmp_path / "out.zip", model=model, adapt=False, compute=NUMPY)
    with vqcomp.open(tmp_path / "out.zip") as archive:
        flip(tmp_path / "out.zip", "vqcomp/streams.bin", archive.manifest.groups[1].offset)
    with pytest.raises(DamageError, match=r"1 of 4.*\n.*video\.bin: .*video\.bin#1: its stream's checksum"):
        vqcomp.decompress(tmp_path / "out.zip", tmp_path / "back", compute=NUMPY)
    expected = contents(tmp_path / "val")
    del expected["video.bin"]
    assert contents(tmp_path / "back") == expected
    vqcomp.decompress(tmp_path / "out.zip", tmp_path / "clip", only=["video.bin#2"], compute=NUMPY)
    np.testing.assert_array_equal(np.load(tmp_path / "clip/video.bin#2"), ids[5:])


@pytest.mark.parametrize("change", [
    {"files": {"count": 1, "name": ["../x"], "bytes": [1], "crc32": [0], "stored": [9]}},
    {"files": {"count": 1, "name": ["a.npy"], "bytes": [1], "crc32": [0], "stored": [9]}},
    {"files": {"count": 2, "name": ["x"], "bytes": [1], "crc32": [0], "stored": [9]}},
    {"files": {"count": 1, "name": ["x"], "bytes": [-1], "crc32": [0], "stored": [9]}},
    {"raw": {"count": 1, "name": ["x"], "first": [0], "segments": [2]}},
    {"raw": {"count": 1, "name": ["x"], "first": [0], "segments": [0]}},
    {"raw": {"count": 1, "name": ["a.npy/x"], "first": [0], "segments": [1]}},
    {"raw": {"count": 2, "name": ["x", "y"], "first": [0, 0], "segments": [1, 1]}},
    {"raw": {"count": 1, "name": ["x"], "first": ["0"], "segments": [1]}},
])  # fmt: skip
def test_a_manifest_with_impossible_files_is_refused(tmp_path, change):
    from hashlib import sha256

    from vqcomp.runtime import layout as format
    from vqcomp.runtime.errors import ArchiveError

    vqcomp.compress({"a.npy": tokens((2, 3, 4))}, tmp_path / "a.zip", model="none")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        table = json.loads(archive.read(format.MANIFEST))
    del table["check"]
    body = json.dumps({**table, **change}, separators=(",", ":")).encode()[:-1]
    with pytest.raises(ArchiveError):
        parse_untrusted(body + manifest.CHECK.format(sha256(body).hexdigest()).encode())


def test_a_file_that_unpacks_to_more_than_it_should_is_refused_early(tmp_path):
    write_small(tmp_path / "val")
    (tmp_path / "val/zeros").write_bytes(bytes(1 << 22))
    vqcomp.compress(tmp_path / "val", tmp_path / "out.zip", model="none")
    with vqcomp.open(tmp_path / "out.zip") as archive:
        kept = next(f for f in archive.kept if f.name == "zeros")
        taken = 0
        with pytest.raises(DamageError, match="zeros"):
            for piece in files.contents(archive, kept._replace(size=100)):
                taken += len(piece)
        assert taken <= files.PIECE


def test_archives_of_arrays_carry_nothing_for_other_files(tmp_path):
    vqcomp.compress({"a.npy": tokens((2, 3, 4))}, tmp_path / "a.zip", model="none")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert "vqcomp/files.bin" not in archive.namelist()
        assert not {"files", "raw"} & json.loads(archive.read("vqcomp/manifest.json")).keys()


def edit_metadata(**changes):
    def change(folder):
        path = folder / "metadata.json"
        table = {**json.loads(path.read_bytes()), **changes}
        path.write_text(json.dumps({k: v for k, v in table.items() if v is not None}))

    return change


def beyond(folder):
    ids = np.fromfile(folder / "video.bin", "<u4")
    ids[40] = 1 << 18
    ids.tofile(folder / "video.bin")


BAD = {
    "no metadata": (lambda f: (f / "metadata.json").unlink(), r"metadata\.json: missing; 1X's folders hold"),
    "metadata that are no JSON": (lambda f: (f / "metadata.json").write_text("{"), r"metadata\.json: expected"),
    "metadata that are a list": (lambda f: (f / "metadata.json").write_text("[]"), r"metadata\.json: expected"),
    "no num_images": (edit_metadata(num_images=None), r"metadata\.json: expected num_images"),
    "a fraction of s": (edit_metadata(s=1.5), r"metadata\.json: expected s to be a positive integer, found 1\.5"),
    "no vocab_size": (edit_metadata(vocab_size=None), r"metadata\.json: expected vocab_size"),
    "a vocabulary without factors": (edit_metadata(vocab_size=100_003), r"metadata\.json: vocab_size 100003"),
    "an unknown token_dtype": (edit_metadata(token_dtype="float32"), r'metadata\.json: unknown token_dtype "float32"'),
    "more frames than there are": (edit_metadata(num_images=10), r"video\.bin: expected 360 bytes .*found 324"),
    "a cut video": (lambda f: (f / "video.bin").write_bytes(b"123"), r"video\.bin: expected 324 bytes .*found 3"),
    "no video": (lambda f: (f / "video.bin").unlink(), r"video\.bin: missing"),
    "no segment_ids": (lambda f: (f / "segment_ids.bin").unlink(), r"segment_ids\.bin: missing"),
    "cut segment_ids": (lambda f: (f / "segment_ids.bin").write_bytes(b"1"), r"segment_ids\.bin: expected 36 bytes"),
    "ids beyond the vocabulary": (beyond, r"video\.bin, frames 4 to 4: expected ids in 0\.\.262143, found 262144"),
    "a vocabulary that is too small": (edit_metadata(vocab_size=1000), r"video\.bin.*: expected ids in 0\.\.999"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_folder_is_refused_by_file_or_skipped_as_a_whole(tmp_path, kind):
    spoil, message = BAD[kind]
    write_small(tmp_path / "data/bad")
    spoil(tmp_path / "data/bad")
    with pytest.raises(InputError, match=message):
        vqcomp.compress(tmp_path / "data/bad", tmp_path / "out.zip", model="none")
    with open(tmp_path / "data/good.npy", "wb") as handle:
        np.save(handle, tokens((2, 3, 4)))
    with pytest.raises(InputError, match=message):
        vqcomp.compress(tmp_path / "data", tmp_path / "out.zip", model="none")
    assert files_in(tmp_path) == {f"data/{name}" for name in files_in(tmp_path / "data")}
    lines: list[str] = []
    vqcomp.compress(tmp_path / "data", tmp_path / "out.zip", model="none", skip_bad=True, report=lines.append)
    assert any(re.match(r"skipped: .*data/bad/", line) and re.search(message, line) for line in lines)
    assert vqcomp.decompress(tmp_path / "out.zip", tmp_path / "back") == ["good.npy"]


def write_shards(folder, frames=(40, 17, 1), nested=True, seed=0):
    """A folder of v2.0 with shards of so many frames, each of which is a segment but for its first 5 frames."""
    random = np.random.default_rng(seed)
    for number, count in enumerate(frames):
        ids = random.integers(0, 64_000, (-(-count // 17), 3, 32, 32))
        ids[:, :, 1:] = ids[:, :, :1]  # something to learn, for speed
        segment_ids = (np.arange(count) >= 5) + 2 * number
        write_shard(folder, number, ids, segment_ids, random.normal(size=(count, 25)), nested=nested)
    write_shards_metadata(folder, len(frames), sum(frames))


@pytest.mark.parametrize("nested", [True, False])
def test_a_folder_of_shards_comes_back_byte_for_byte(tmp_path, nested):
    write_shards(tmp_path / "data/train_v2.0", nested=nested)
    (tmp_path / "data/train_v2.0/notes").write_text("kept, too")
    names = files_in(tmp_path / "data")
    assert ("train_v2.0/videos/video_2.bin" if nested else "train_v2.0/video_2.bin") in names
    for data in (tmp_path / "data", tmp_path / "data/train_v2.0"):
        summary = vqcomp.compress(data, tmp_path / "out.zip", model="none", force=True)
        assert summary.tokens == (3 + 1 + 1) * 3 * 32 * 32
        assert summary.left_out == 0
        restored = vqcomp.decompress(tmp_path / "out.zip", tmp_path / "back" / data.name)
        assert contents(tmp_path / "back" / data.name) == contents(data)
        assert sorted(restored) == sorted(files_in(data))
        vqcomp.evaluate(tmp_path / "out.zip", data)


def test_every_id_of_a_shard_has_factors_of_its_own(tmp_path):
    ids = (np.arange(21 * 3 * 32 * 32) % 64_000).reshape(21, 3, 32, 32)
    write_shard(tmp_path / "val", 0, ids, np.zeros(21 * 17), np.zeros((21 * 17, 25)))
    write_shards_metadata(tmp_path / "val", 1, 21 * 17)
    (segment,) = find_segments(tmp_path / "val").segments
    assert segment.spec == TokenSpec(32, 32, (512, 125))
    tokens = segment.tokens_of(segment.spec)
    assert (tokens.max((0, 1)) == (511, 124)).all()
    np.testing.assert_array_equal(segment.spec.join(tokens).reshape(ids.shape), ids)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=120))
def test_shards_are_cut_at_the_first_block_after_each_cut_of_the_video(segment_ids):
    shard = VideoShard(Path(), len(segment_ids), np.array(segment_ids, np.int32))
    grids = [i for clip in shard.clips for i in clip]
    assert grids == list(range(3 * shard.blocks)), "clips follow one another and leave nothing out"
    assert all(len(clip) > 0 and clip.start % 3 == clip.stop % 3 == 0 for clip in shard.clips)
    starts = {clip.start // 3 for clip in shard.clips}
    cuts = [i for i in range(1, len(segment_ids)) if segment_ids[i] != segment_ids[i - 1]]
    assert starts == {0} | {-(-cut // 17) for cut in cuts if -(-cut // 17) < shard.blocks}


def edit_shard(**changes):
    def change(folder):
        path = folder / "metadata/metadata_1.json"
        path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))

    return change


def beyond_shard(folder):
    ids = np.fromfile(folder / "videos/video_1.bin", "<i4")
    ids[40] = 64_000
    ids.tofile(folder / "videos/video_1.bin")


BAD_SHARDS = {
    "no metadata": (lambda f: (f / "metadata/metadata_1.json").unlink(), r"metadata_1\.json: missing"),
    "metadata that are a list": (
        lambda f: (f / "metadata/metadata_1.json").write_text("[1]"), r"metadata_1\.json: .*object, found \[1\]"),
    "no number of frames": (
        edit_shard(shard_num_frames=None), r"metadata_1\.json: expected shard_num_frames .*, found null"),
    "a truth value": (edit_shard(shard_num_frames=True), "expected shard_num_frames .*, found true"),
    "another number of frames": (edit_shard(shard_num_frames=18), r"segment_idx_1\.bin: expected 72 bytes.*found 68"),
    "no video": (lambda f: (f / "videos/video_1.bin").unlink(), r"videos/video_1\.bin: missing"),
    "a cut video": (
        lambda f: (f / "videos/video_1.bin").write_bytes(b"123"), r"video_1\.bin: expected 12288 bytes.*found 3"),
    "no segments": (lambda f: (f / "segment_indices/segment_idx_1.bin").unlink(), r"segment_idx_1\.bin: missing"),
    "ids beyond the vocabulary": (beyond_shard, r"video_1\.bin, frames 0 to 2: expected ids in 0\.\.63999, found 64"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_SHARDS)
def test_a_bad_shard_is_refused_by_file_or_skipped_with_what_lies_beside_it(tmp_path, kind):
    spoil, message = BAD_SHARDS[kind]
    write_shards(tmp_path / "data")
    expected = {n: data for n, data in contents(tmp_path / "data").items() if "_1." not in n}
    spoil(tmp_path / "data")
    with pytest.raises(InputError, match=message):
        vqcomp.compress(tmp_path / "data", tmp_path / "out.zip", model="none")
    lines: list[str] = []
    summary = vqcomp.compress(tmp_path / "data", tmp_path / "out.zip", model="none", skip_bad=True, report=lines.append)
    assert summary.skipped == 1
    (line,) = [line for line in lines if line.startswith("skipped: ")]
    assert re.search(message, line)
    vqcomp.decompress(tmp_path / "out.zip", tmp_path / "back")
    assert contents(tmp_path / "back") == expected


def test_shards_that_are_not_there_are_counted_in_one_error(tmp_path):
    write_shards(tmp_path / "data")
    write_shards_metadata(tmp_path / "data", 100, 1000)
    with pytest.raises(InputError, match=r"videos/video_3\.bin: missing, as are 96 others of the 100 shards"):
        find_segments(tmp_path / "data")
    found = find_segments(tmp_path / "data", skip_bad=True)
    assert len(found.skipped) == 1
    assert {s.file for s in found.segments} == {f"videos/video_{i}.bin" for i in range(3)}


@pytest.mark.parametrize(("content", "message"), [
    (None, "missing"),
    ("{", "expected a JSON object"),
    ("[" * 100_000, "expected a JSON object"),
    ("[]", "expected a JSON object, found"),
    ("{}", "expected num_shards to be a positive integer, found none"),
    ('{"num_shards": "3"}', 'expected num_shards to be a positive integer, found "3"'),
    ('{"num_shards": 1e3}', "expected num_shards to be a positive integer, found 1000.0"),
    ('{"num_shards": 1000000000}', "expected num_shards to be at most"),
])  # fmt: skip
def test_metadata_of_shards_that_make_no_sense_are_refused_by_file(tmp_path, content, message):
    write_shards(tmp_path / "data", nested=False)
    (tmp_path / "data/metadata.json").unlink()
    if content is not None:
        (tmp_path / "data/metadata.json").write_text(content)
    with pytest.raises(InputError, match=rf"metadata\.json: {message}"):
        find_segments(tmp_path / "data")
    with pytest.raises(InputError, match=r"everything was skipped as bad; the first: .*metadata\.json"):
        find_segments(tmp_path / "data", skip_bad=True)


def test_the_layouts_are_not_taken_for_each_other(tmp_path):
    write_shards(tmp_path / "v2")
    with pytest.raises(InputError, match=r"metadata\.json: expected one video .* found the shards of v2\.0"):
        open_video(tmp_path / "v2")


def test_a_folder_inside_another_has_its_own_files(tmp_path):
    write_small(tmp_path / "data")
    write_small(tmp_path / "data/older", 4, cuts=())
    write_shards(tmp_path / "data/newer", frames=(3,), nested=False)
    vqcomp.compress(tmp_path / "data", tmp_path / "out.zip", model="none")
    vqcomp.decompress(tmp_path / "out.zip", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "data")
    with vqcomp.open(tmp_path / "out.zip") as archive:
        assert {f.name for f in archive.manifest.raw} == {"video.bin", "older/video.bin", "newer/video_0.bin"}
