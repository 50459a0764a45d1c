"""Shards are read as they are published, in any order of members, and nothing bad in them goes unnoticed."""

from __future__ import annotations

import gzip
import json
import random
import re
import shutil
import subprocess
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
from conftest import files_in, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import npy, sample, samples, segments, special, tar_bytes, write_shard, write_zip

import vqcomp
from vqcomp.cli import run
from vqcomp.data import containers
from vqcomp.data.sources import find_segments
from vqcomp.data.specs import COMMAVQ
from vqcomp.runtime.errors import InputError


def arrays_of(found):
    return {s.name: s.array() for s in found.segments}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("seed", range(4))
def test_members_in_any_order_give_every_segment_under_its_file_name(tmp_path, seed):
    expected = segments(5)
    members = samples(expected)
    random.Random(seed).shuffle(members)
    found = find_segments(write_shard(tmp_path / "data-0000.tar.gz", members))
    assert_same(arrays_of(found), expected)
    assert [s.maximum() for s in found.segments] == [int(s.array().max()) for s in found.segments]
    np.testing.assert_array_equal(
        found.segments[0].tokens_of(COMMAVQ)[..., 0].reshape(12, 8, 16), found.segments[0].array()
    )


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
def test_tars_may_be_gzipped_or_not_whatever_their_name(tmp_path, name):
    expected = segments(2)
    for data in (tar_bytes(samples(expected)), gzip.compress(tar_bytes(samples(expected)))):
        (tmp_path / name).write_bytes(data)
        assert_same(arrays_of(find_segments(tmp_path / name)), expected)


def test_segments_read_backwards_are_the_same(tmp_path):
    expected = segments(4)
    found = find_segments(write_shard(tmp_path / "a.tar.gz", samples(expected))).segments
    assert_same({s.name: s.array() for s in reversed(found)}, expected)


def test_a_shard_is_decompressed_once_to_look_through_it_and_once_to_read_it(tmp_path, monkeypatch):
    expected = segments(30)
    path = write_shard(tmp_path / "a.tar.gz", samples(expected))
    opened, size, read = [], len(tar_bytes(samples(expected))), [0]
    original = gzip._GzipReader.read

    def count(self, *args):
        data = original(self, *args)
        read[0] += len(data)
        return data

    monkeypatch.setattr(gzip._GzipReader, "read", count)
    found = find_segments(path)
    found.maxima(lambda segment: opened.append(segment))
    assert size <= read[0] < 1.2 * size + 100_000
    for segment in found.segments:
        segment.array()
    assert read[0] < 2.2 * size + 200_000


def test_older_zips_keep_the_names_of_their_members(tmp_path):
    expected = {f"{name}.npy": array for name, array in segments(3).items()}
    path = write_zip(tmp_path / "data_0_to_2500.zip", [(name, npy(a)) for name, a in expected.items()])
    assert_same(arrays_of(find_segments(path)), expected)


def test_a_folder_of_shards_zips_and_arrays_is_one_data_set(tmp_path):
    first, second, third = segments(2), segments(2, first=2), segments(2, first=4)
    write_shard(tmp_path / "data-0001.tar.gz", samples(second))
    write_shard(tmp_path / "data-0000.tar.gz", samples(first))
    write_zip(tmp_path / "old/data_0_to_2500.zip".replace("/", "-"), [(n, npy(a)) for n, a in third.items()])
    # Members of zips are known by their suffix alone.
    assert_same(
        arrays_of(find_segments([tmp_path / "data-0000.tar.gz", tmp_path / "data-0001.tar.gz"])), first | second
    )
    write_zip(tmp_path / "old.zip", [(f"{n}.npy", npy(a)) for n, a in third.items()])
    write_zip(tmp_path / "pose_data_0_to_2500.zip", [("a.npy", npy(np.zeros((12, 6))))])
    (tmp_path / "single.npy").write_bytes(npy(tokens((3, 8, 16))))
    found = find_segments(tmp_path)
    expected = first | second | {f"{n}.npy": a for n, a in third.items()} | {"single.npy": tokens((3, 8, 16))}
    assert_same(arrays_of(found), expected)
    assert [s.name for s in found.segments][:4] == [*first, *second], "shards come in order, and segments as they lie"
    assert found.left_out == {
        "data-0000.tar.gz: *.json": 2,
        "data-0000.tar.gz: *.pose.npy": 2,
        "data-0001.tar.gz: *.json": 2,
        "data-0001.tar.gz: *.pose.npy": 2,
        "old-data_0_to_2500.zip": 1,
        "pose_data_0_to_2500.zip": 1,
    }


def test_archives_in_a_folder_are_left_out(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.npy").write_bytes(npy(tokens((3, 8, 16))))
    vqcomp.compress(data, data / "a.zip", model="none")
    assert find_segments(data).left_out == {"a.zip": 1}


def broken(members, change):
    """Members with one changed: replaced by None or by other members."""
    result = []
    for name, data in members:
        for kind, new in change.items():
            if name.endswith(kind):
                result += new
                break
        else:
            result.append((name, data))
    return result


GOOD = segments(3)
NAME = "f" * 32 + "_1"
BAD = {
    "a json without file_name": ([("k.token.npy", npy(tokens((2, 8, 16)))), ("k.json", b"{}")], "k.json: .*file_name"),
    "a json that is a list": ([("k.token.npy", npy(tokens((2, 8, 16)))), ("k.json", b"[]")], "k.json: .*file_name"),
    "a file_name that is a number": (
        [("k.token.npy", npy(tokens((2, 8, 16)))), ("k.json", b'{"file_name":3}')], "k.json: .*string.* 3"),
    "a json that is none": ([("k.token.npy", npy(tokens((2, 8, 16)))), ("k.json", b"{")], "k.json: expected JSON"),
    "no json": ([("k.token.npy", npy(tokens((2, 8, 16))))], r"k.token.npy: expected a k\.json"),
    "no tokens": ([("k.json", json.dumps({"file_name": NAME}).encode())], r"k\.json: expected a k\.token\.npy"),
    "a member twice": (sample(NAME, tokens((2, 8, 16)), "k") * 2, "k.json: two members"),
    "a file_name twice": (sample(next(iter(GOOD)), tokens((2, 8, 16)), "k"), "k.token.npy.*have the same name"),
    "an unsafe file_name": (sample("../" + NAME, tokens((2, 8, 16)), "k"), r"k.token.npy: .*'\.\./f"),
    "a file_name that clashes": (sample("decompress.py", tokens((2, 8, 16)), "k"), "k.token.npy: .*clashes"),
    "tokens that are floats": (
        [("k.token.npy", npy(np.zeros((2, 8, 16)))), *sample(NAME, tokens((2, 8, 16)), "k")[:2]],
        "k.token.npy: expected an array of integers"),
    "tokens that are cut": (
        [("k.token.npy", npy(tokens((2, 8, 16)))[:-8]), *sample(NAME, tokens((2, 8, 16)), "k")[:2]],
        "k.token.npy: the array is truncated"),
    "tokens and more": (
        [("k.token.npy", npy(tokens((2, 8, 16))) + b"x"), *sample(NAME, tokens((2, 8, 16)), "k")[:2]],
        "k.token.npy: expected nothing after"),
    "negative ids": (
        [("k.token.npy", npy(tokens((2, 8, 16)) - 9)), *sample(NAME, tokens((2, 8, 16)), "k")[:2]],
        r"k.token.npy: expected ids in 0\.\.65535, found -9"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("where", ["before", "after"])
def test_a_bad_sample_is_refused_by_file_and_member_or_skipped(tmp_path, kind, where):
    bad, message = BAD[kind]
    members = bad + samples(GOOD) if where == "before" else samples(GOOD) + bad
    path = write_shard(tmp_path / "data-0000.tar.gz", members)
    with pytest.raises(InputError, match=re.escape(str(path)) + ": .*" + message):
        find_segments(path)
    found = find_segments(path, skip_bad=True)
    assert any(re.search(message, line) and str(path) in line for line in found.skipped), found.skipped
    kept = arrays_of(found)
    # Of two with one name, the first is kept.
    same = set(GOOD) - ({next(iter(GOOD))} if kind == "a file_name twice" and where == "before" else set())
    assert_same({name: kept[name] for name in same}, {name: GOOD[name] for name in same})
    assert kept.keys() - GOOD.keys() == ({NAME} if kind == "a member twice" and NAME in kept else set())


def test_compressing_bad_shards_leaves_nothing_or_does_the_rest_and_lists_what_it_skipped(tmp_path, capsys):
    path = write_shard(tmp_path / "data-0000.tar.gz", samples(GOOD) + BAD["no json"][0])
    (tmp_path / "big.npy").write_bytes(npy(np.full((2, 8, 16), 1 << 16)))
    arguments = ["compress", str(path), str(tmp_path / "big.npy"), str(tmp_path / "out.zip"), "--model", "none", "-q"]
    assert run(arguments) == 1
    assert re.search(r"error: .*data-0000\.tar\.gz: k\.token\.npy: expected", capsys.readouterr().err)
    assert files_in(tmp_path) == {"data-0000.tar.gz", "big.npy"}
    assert run([*arguments, "--skip-bad"]) == 4
    listed = capsys.readouterr().err.splitlines()
    assert len(listed) == 2
    assert re.search(r"skipped: .*data-0000\.tar\.gz: k\.token\.npy: expected", listed[0])
    assert re.search(r"skipped: .*big\.npy: expected ids in 0\.\.65535, found 65536", listed[1])
    with vqcomp.open(tmp_path / "out.zip") as archive:
        assert_same(dict(archive), GOOD)
    assert run(["compress", str(tmp_path / "big.npy"), str(tmp_path / "no.zip"), "--skip-bad"]) == 1
    assert re.search(r"everything was skipped.*big\.npy", capsys.readouterr().err)
    (tmp_path / "empty").mkdir()
    assert run(["compress", str(tmp_path / "empty"), str(tmp_path / "no.zip")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'empty'}: found no segments")


def test_the_same_name_in_two_shards_is_refused_by_both_or_skipped_once(tmp_path):
    write_shard(tmp_path / "data-0000.tar.gz", samples(GOOD))
    write_shard(tmp_path / "data-0001.tar.gz", samples(dict(list(GOOD.items())[:1])))
    with pytest.raises(InputError, match=r"data-0001\.tar\.gz: .*token\.npy: duplicate names"):
        find_segments(tmp_path)
    found = find_segments(tmp_path, skip_bad=True)
    assert_same(arrays_of(found), GOOD)
    assert len(found.skipped) == 1


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.95, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_shard_is_refused_or_gives_what_lies_before_the_cut(tmp_path, share, zipped):
    data = tar_bytes(samples(GOOD))
    # Python's tars end with padding, of which the first block of zeros must be left for the end to be known.
    end = len(data.rstrip(b"\0"))
    data = gzip.compress(data, mtime=0) if zipped else data
    path = tmp_path / "data-0000.tar.gz"
    path.write_bytes(data[: int((len(data) if zipped else end) * share)])
    with pytest.raises(InputError, match=r"data-0000\.tar\.gz.*(truncated|damaged|No such)"):
        find_segments(path)
    try:
        found = find_segments(path, skip_bad=True)
    except InputError as error:
        assert share < 0.5
        assert "data-0000.tar.gz" in str(error)
        return
    for name, array in arrays_of(found).items():
        np.testing.assert_array_equal(array, GOOD[name])
    assert found.skipped


def test_a_tar_without_its_end_or_with_a_damaged_header_is_refused(tmp_path):
    data = bytearray(tar_bytes(samples(GOOD)))
    path = tmp_path / "a.tar"
    second = bytes(data).index(f"key_of_{list(GOOD)[1]}".encode())
    path.write_bytes(bytes(data[:second]))
    with pytest.raises(InputError, match=r"a\.tar: .*truncated or damaged after the member key_of_0+_0\.token\.npy"):
        find_segments(path)
    data[second] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.tar: .*truncated or damaged after"):
        find_segments(path)
    assert_same(arrays_of(find_segments(path, skip_bad=True)), dict(list(GOOD.items())[:1]))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_flipped_byte_is_refused_or_changes_no_token(tmp_path_factory, data):
    """gzip checks everything but what decides nothing, such as the time in its header."""
    members = samples(segments(2, frames=2))
    whole = bytearray(gzip.compress(tar_bytes(members), mtime=0))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "flipped.tar.gz"
    path.write_bytes(whole)
    try:
        found = arrays_of(find_segments(path))
    except InputError as error:
        assert "flipped.tar.gz" in str(error)
    else:
        assert_same(found, segments(2, frames=2))


def test_a_damaged_member_of_a_zip_is_refused_or_skipped_alone(tmp_path):
    arrays = {f"{name}.npy": array for name, array in GOOD.items()}
    path = write_zip(tmp_path / "old.zip", [(n, npy(a)) for n, a in arrays.items()])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"old\.zip: 0+1_1\.npy: "):
        find_segments(path)
    found = find_segments(path, skip_bad=True)
    assert_same(arrays_of(found), {n: a for n, a in arrays.items() if not n.startswith("0" * 31 + "1")})
    path.write_bytes(data[: len(data) // 3])
    with pytest.raises(InputError, match=r"old\.zip: the file is truncated or damaged"):
        find_segments(path)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.lists(st.booleans(), min_size=4, max_size=4))
def test_tars_after_one_another_are_read_to_the_end(tmp_path_factory, counts, zipped):
    """As `cat a.tgz b.tgz` makes them; each may be empty, and a .tar may be padded."""
    expected, whole = segments(sum(counts)), b""
    names = list(expected)
    for i, count in enumerate(counts):
        members = samples({name: expected[name] for name in names[:count]})
        names = names[count:]
        part = tar_bytes(members)
        whole += gzip.compress(part, mtime=0) if zipped[0] else part + bytes(512) * zipped[i]
    path = tmp_path_factory.getbasetemp() / "several.tar.gz"
    path.write_bytes(whole)
    if expected:
        found = find_segments(path, keep_all=True)
        assert_same(arrays_of(found), expected)
        others = {name: data for name, data in samples(expected) if not name.endswith(".token.npy")}
        assert {f.name: b"".join(f.pieces()) for f in found.files} == others
    else:
        with pytest.raises(InputError, match="several"):
            find_segments(path)


def test_what_follows_a_tar_and_is_none_is_refused(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes(samples(GOOD)) + b"more" * 1000)
    with pytest.raises(InputError, match=r"a\.tar: the file is truncated or damaged after the member"):
        find_segments(path)
    assert_same(arrays_of(find_segments(path, skip_bad=True)), GOOD)


@pytest.mark.parametrize("zipped", [True, False])
def test_hard_links_are_what_they_lead_to(tmp_path, zipped):
    name, array = next(iter(GOOD.items()))
    members = [*samples(GOOD), ("k.json", json.dumps({"file_name": NAME}).encode()), ("n", b"n")]
    links = [
        special("k.token.npy", tarfile.LNKTYPE, f"key_of_{name}.token.npy"),
        special("k.pose.npy", tarfile.LNKTYPE, f"key_of_{name}.pose.npy"),
        special("l.token.npy", tarfile.LNKTYPE, "k.token.npy"),
        special("l.json", tarfile.LNKTYPE, "k2.json"),
    ]
    second = ("k2.json", json.dumps({"file_name": "e" * 32 + "_1"}).encode())
    data = tar_bytes([*members, second], links)
    path = tmp_path / "data-0000.tar.gz"
    path.write_bytes(gzip.compress(data) if zipped else data)
    with pytest.raises(InputError, match=r"k2\.json: expected a k2\.token\.npy"):
        find_segments(path)
    found = find_segments(path, skip_bad=True, keep_all=True)
    assert_same(arrays_of(found), {**GOOD, NAME: array, "e" * 32 + "_1": array})
    assert [s.maximum() for s in found.segments] == [int(s.array().max()) for s in found.segments]
    kept = {f.name: b"".join(f.pieces()) for f in found.files}
    assert kept["k.pose.npy"] == dict(members)[f"key_of_{name}.pose.npy"]
    assert kept["l.json"] == second[1]
    assert kept["n"] == b"n"


UNREADABLE = {
    "a symbolic link": lambda name: special(name, tarfile.SYMTYPE, "elsewhere"),
    "a device": lambda name: special(name, tarfile.CHRTYPE),
    "a named pipe": lambda name: special(name, tarfile.FIFOTYPE),
    "a hard link to what is not before it": lambda name: special(name, tarfile.LNKTYPE, "nothing"),
    "a sparse file": lambda name: special(name, tarfile.GNUTYPE_SPARSE),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_members_that_cannot_be_read_are_refused_if_of_a_sample_and_else_noted_by_name(tmp_path, kind):
    make = UNREADABLE[kind]
    path = tmp_path / "data-0000.tar"
    path.write_bytes(tar_bytes(samples(GOOD), [make("notes/other")]))
    for keep_all in (False, True):
        found = find_segments(path, keep_all=keep_all)
        assert_same(arrays_of(found), GOOD)
        assert found.left_out[f"data-0000.tar: notes/other ({kind})"] == 1
        assert found.left_out_count == (1 if keep_all else 1 + 2 * len(GOOD))
    path.write_bytes(tar_bytes([*samples(GOOD), sample(NAME, tokens((2, 8, 16)), "k")[0]], [make("k.token.npy")]))
    with pytest.raises(InputError, match=rf"tar: k\.token\.npy: expected a regular file, found {kind}"):
        find_segments(path)
    found = find_segments(path, skip_bad=True)
    assert_same(arrays_of(found), GOOD)
    assert len(found.skipped) == 1


def test_a_link_in_a_zip_is_not_taken_for_an_array(tmp_path):
    path = write_zip(tmp_path / "old.zip", [("a.npy", npy(tokens((2, 8, 16))))])
    link = zipfile.ZipInfo("b.npy")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "a.npy")
    with pytest.raises(InputError, match=r"old\.zip: b\.npy: expected a regular file, found a symbolic link"):
        find_segments(path)
    assert [s.name for s in find_segments(path, skip_bad=True).segments] == ["a.npy"]


def test_a_sparse_member_of_a_real_tar_is_not_taken_for_its_stored_bytes(tmp_path):
    if not shutil.which("tar"):
        pytest.skip("needs GNU tar")
    folder = tmp_path / "data"
    folder.mkdir()
    with open(folder / "a.npy", "wb") as handle:
        np.save(handle, np.ones((1, 8, 16), np.int64))
        handle.truncate(1 << 24)
    for form in ("gnu", "pax"):
        command = ["tar", f"--format={form}", "-S", "-cf", str(tmp_path / "a.tar"), "a.npy"]
        if subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode:
            pytest.skip("needs GNU tar")
        if (tmp_path / "a.tar").stat().st_size > 1 << 20:
            pytest.skip("the file system has no sparse files")
        with pytest.raises(InputError, match=r"a\.tar: a\.npy: expected a regular file, found a sparse file"):
            find_segments(tmp_path / "a.tar")


def test_other_members_are_counted_when_left_out_and_come_back_when_kept(tmp_path, capsys):
    members = samples(GOOD)
    write_shard(tmp_path / "data/x/data-0000.tar.gz", [*members, ("readme", b"words")])
    write_zip(tmp_path / "data/old.zip", [("b.npy", npy(tokens((2, 8, 16)))), ("docs/about.txt", b"about")])
    data, archive = str(tmp_path / "data"), str(tmp_path / "out.zip")
    assert run(["compress", data, archive, "--model", "none", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["left_out"] == 2 * len(GOOD) + 2
    assert f"left out, no tokens: {2 * len(GOOD) + 2} files" in printed.err
    assert run(["compress", data, archive, "--model", "none", "-f", "-v"]) == 0
    printed = capsys.readouterr().err
    assert "left out, no tokens: x/data-0000.tar.gz: *.pose.npy (3 members)" in printed
    assert "left out, no tokens: old.zip: *.txt" in printed
    assert run(["compress", data, archive, "--model", "none", "-f", "--keep-all"]) == 0
    assert "left out" not in capsys.readouterr().err
    assert run(["evaluate", archive, data]) == 0
    vqcomp.decompress(archive, tmp_path / "back")
    expected = {name: content for name, content in members if not name.endswith(".token.npy")}
    expected |= {"readme": b"words", "docs/about.txt": b"about"}
    assert files_in(tmp_path / "back") == {*expected, *GOOD, "b.npy"}
    for name, content in expected.items():
        assert (tmp_path / "back" / name).read_bytes() == content


def test_kept_members_that_clash_are_refused_by_both_names_or_skipped_once(tmp_path):
    for i in (0, 1):
        shard = samples(segments(1, first=i))
        write_shard(tmp_path / f"data-000{i}.tar.gz", [*shard, ("readme", b"%d" % i)])
    find_segments(tmp_path)
    with pytest.raises(InputError, match=r"data-0001\.tar\.gz: readme: duplicate names: 'readme' and 'readme'"):
        find_segments(tmp_path, keep_all=True)
    found = find_segments(tmp_path, keep_all=True, skip_bad=True)
    assert len(found.skipped) == 1
    assert [b"".join(f.pieces()) for f in found.files if f.name == "readme"] == [b"0"]


def test_a_shard_that_is_not_there_is_called_missing(tmp_path):
    for name in ("data-0000.tar.gz", "data-0000.tar", "old.zip"):
        with pytest.raises(InputError, match=re.escape(str(tmp_path / name)) + ": missing: there is no such file") as e:
            find_segments(tmp_path / name)
        assert "damaged" not in str(e.value)


def test_a_shard_that_changes_after_it_was_looked_through_is_refused(tmp_path):
    path = write_shard(tmp_path / "data-0000.tar.gz", samples(GOOD))
    found = find_segments(path, keep_all=True)
    found.segments[0].pack._handle.close()
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"data-0000\.tar\.gz: key.*cannot be read"):
        found.segments[0].array()
    with pytest.raises(InputError, match=r"data-0000\.tar\.gz: key.*cannot be read"):
        list(found.files[0].pieces())


def test_errors_name_the_option_that_cures_them_and_the_summary_counts_what_it_skipped(tmp_path, capsys):
    path = write_shard(tmp_path / "data-0000.tar.gz", samples(GOOD) + BAD["no json"][0])
    with pytest.raises(InputError, match=r"--skip-bad .* leaves it out and does the rest") as error:
        vqcomp.compress(path, tmp_path / "out.zip", model="none")
    assert str(error.value).count("--skip-bad") == 1
    assert run(["compress", str(path), str(tmp_path / "out.zip"), "--model", "none", "--skip-bad", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["skipped"] == 1
    (tmp_path / "bad.npy").write_bytes(b"")
    with pytest.raises(InputError, match=r"empty file$"):
        vqcomp.compress(tmp_path / "bad.npy", tmp_path / "no.zip", model="none")
    with pytest.raises(InputError, match=r"missing: .*check the path$"):
        vqcomp.compress(tmp_path / "data-0001.tar.gz", tmp_path / "no.zip", model="none")


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_a_file_name_that_is_no_string_is_shown_as_json_has_it(tmp_path_factory, value):
    members = [("k.token.npy", npy(tokens((2, 8, 16)))), ("k.json", json.dumps({"file_name": value}).encode())]
    path = write_shard(tmp_path_factory.getbasetemp() / "json.tar.gz", members)
    with pytest.raises(InputError, match=r"k\.json: expected a string as file_name") as error:
        find_segments(path)
    assert str(error.value).rpartition("found ")[2][:57] == json.dumps(value)[:57]


def test_what_holds_no_tokens_is_refused_by_itself(tmp_path):
    path = write_shard(tmp_path / "a.tar.gz", [("readme.txt", b"none here")])
    with pytest.raises(InputError, match=r"a\.tar\.gz: expected .*found none"):
        find_segments(path)


def test_containers_are_closed(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in (
            write_shard(tmp_path / "a.tar.gz", samples(GOOD)),
            write_zip(tmp_path / "b.zip", [("a.npy", npy(tokens((2, 8, 16))))]),
        ):
            found = find_segments(path)
            pack = found.segments[0].pack
            assert isinstance(pack, containers.Tar | containers.Zip)
            del found, pack
