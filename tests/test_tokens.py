"""Where segments come from: everything that is an array of ids is found, and everything else is told apart clearly."""

from __future__ import annotations

import io
import os
import pickle
import re

import numpy as np
import pytest
from conftest import files_in, tokens
from hypothesis import given, settings
from hypothesis import strategies as st

import vqcomp
from vqcomp.data.sources import find_segments
from vqcomp.data.specs import COMMAVQ, find_specs
from vqcomp.data.synthetic import write_synthetic
from vqcomp.runtime.errors import InputError
from vqcomp.runtime.spec import TokenSpec

DTYPES = ["|u1", "|i1", "<u2", ">u2", "<i2", ">i2", "<i4", ">i4", "<u4", ">u4", "<i8", ">i8", "<u8", ">u8"]


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as handle:
        np.save(handle, array, allow_pickle=True)
    return path


def find(data, grid=None):
    """(segments, names of files left out)"""
    found = find_segments(data, grid)
    return found.segments, list(found.left_out)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_integer_dtype_and_order_is_read_exactly(tmp_path, dtype, order):
    array = np.asarray(tokens((5, 8, 16), 128, dtype), order=order)
    ((segment,), _) = find(write(tmp_path / "a.npy", array))
    assert (segment.dtype.str, segment.shape, segment.grid) == (dtype, (5, 8, 16), (8, 16))
    np.testing.assert_array_equal(segment.array(), array)
    assert segment.array().dtype.str == dtype
    assert segment.maximum() == array.max()
    np.testing.assert_array_equal(segment.tokens_of(COMMAVQ)[..., 0].reshape(5, 8, 16), array)


def test_a_header_of_version_2_is_read(tmp_path):
    array = tokens((3, 8, 16))
    with open(tmp_path / "a.npy", "wb") as handle:
        np.lib.format.write_array(handle, array, version=(2, 0))
    ((segment,), _) = find(tmp_path)
    np.testing.assert_array_equal(segment.array(), array)


def test_files_are_found_at_any_depth_by_suffix_or_content_and_others_are_left_out(tmp_path):
    for name in ("b.npy", "a/c.npy", "a/b/c/d.NPY", "e", "a.token.npy", ".hidden.npy"):
        write(tmp_path / name, tokens((2, 8, 16)))
    (tmp_path / "notes.txt").write_text("not tokens")
    (tmp_path / "a/empty").touch()
    segments, skipped = find(tmp_path)
    names = [s.name for s in segments]
    assert names == sorted(["b.npy", "a/c.npy", "a/b/c/d.NPY", "e", "a.token.npy", ".hidden.npy"])
    assert sorted(skipped) == ["a/empty", "notes.txt"]


def test_a_single_file_has_its_own_name(tmp_path):
    ((segment,), skipped) = find(write(tmp_path / "x" / "only", tokens((2, 128))))
    assert (segment.name, segment.grid, skipped) == ("only", (8, 16), [])


def test_only_headers_are_read_to_find_segments(tmp_path, monkeypatch):
    write(tmp_path / "a.npy", tokens((4, 8, 16)))
    monkeypatch.setattr(np, "fromfile", None)
    assert find(tmp_path)[0][0].shape == (4, 8, 16)


def test_links_to_folders_are_followed_and_loops_are_refused(tmp_path):
    write(tmp_path / "elsewhere/a.npy", tokens((2, 8, 16)))
    data = tmp_path / "data"
    data.mkdir()
    (data / "link").symlink_to(tmp_path / "elsewhere")
    assert [s.name for s in find(data)[0]] == ["link/a.npy"]
    (tmp_path / "elsewhere/back").symlink_to(data)
    with pytest.raises(InputError, match="leads back"):
        find(data)


def test_the_grid_of_flat_frames_is_given_or_known(tmp_path):
    flat = write(tmp_path / "flat.npy", tokens((2, 12)))
    assert find(flat, (3, 4))[0][0].grid == (3, 4)
    with pytest.raises(InputError, match=r"flat\.npy: 12 tokens per frame, but no --grid"):
        find(flat)
    with pytest.raises(InputError, match=r"12 tokens per frame, but --grid is 5x5"):
        find(flat, (5, 5))
    known = write(tmp_path / "known.npy", tokens((2, 128)))
    assert find(known)[0][0].grid == (8, 16)
    assert find(known, (3, 4))[0][0].grid == (8, 16)
    assert find(known, (16, 8))[0][0].grid == (16, 8)


class Bomb:
    """Unpickling it would raise AssertionError."""

    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


WRONG_ARRAYS = {
    "floats": (np.zeros((2, 8, 16)), "array of integers, found float64"),
    "objects": (np.array([[[Bomb()]]]), "objects, which are never unpickled"),
    "complex": (np.zeros((2, 8, 16), complex), "array of integers, found complex128"),
    "booleans": (np.zeros((2, 8, 16), bool), "array of integers, found bool"),
    "records": (np.zeros((2, 8, 16), [("a", "i2")]), "array of integers, found"),
    "unicode records": (np.zeros((2, 8, 16), [("ä", "i2")]), "expected"),
    "times": (np.zeros((2, 8, 16), "m8[s]"), "array of integers, found timedelta"),
    "a number": (np.int16(3), r"shape \(T, H, W\)"),
    "one dimension": (np.zeros(128, int), r"shape \(T, H, W\) or \(T, H \* W\), found \(128,\)"),
    "four dimensions": (np.zeros((1, 1, 8, 16), int), r"found \(1, 1, 8, 16\)"),
    "no frames": (np.zeros((0, 8, 16), int), r"at least one frame.*\(0, 8, 16\)"),
    "no tokens": (np.zeros((4, 0, 16), int), "at least one frame of at least one token"),
}


@pytest.mark.parametrize("kind", WRONG_ARRAYS)
def test_arrays_that_hold_no_ids_are_refused_by_name(tmp_path, kind):
    array, message = WRONG_ARRAYS[kind]
    path = write(tmp_path / "bad file.npy", array)
    with pytest.raises(InputError, match=message) as error:
        find(tmp_path)
    assert str(path) in str(error.value)


def npy():
    buffer = io.BytesIO()
    np.save(buffer, tokens((4, 8, 16)))
    return buffer.getvalue()


WRONG_FILES = {
    "empty": (b"", "found an empty file"),
    "text": (b"hello", "found other data"),
    "pickle": (pickle.dumps(Bomb()), "found other data"),
    "magic alone": (b"\x93NUMPY", "header cannot be read"),
    "cut in the header": (npy()[:40], "header cannot be read"),
    "header of nonsense": (npy()[:10] + b"!" * 200, "header cannot be read"),
    "header that calls": (npy().replace(b"'descr'", b"print(1"), "header cannot be read"),
    "unknown version": (b"\x93NUMPY\x09\x00" + npy()[8:], "header"),
    "cut in the data": (npy()[:-1], r"expected 1152 bytes for \(4, 8, 16\) int16, found 1151; the file is truncated"),
    "a truth value for a number": (npy().replace(b"(4, 8, 16), }", b"(True, 8, 16)}"), "shape is not of integers"),
    "without data": (npy()[:128], "the file is truncated"),
    "two arrays": (npy() * 2, "remove what follows"),
}


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_files_that_are_not_whole_npy_files_are_refused_by_name(tmp_path, kind):
    content, message = WRONG_FILES[kind]
    path = tmp_path / "bad.npy"
    path.write_bytes(content)
    for data in (path, tmp_path):
        with pytest.raises(InputError, match=message) as error:
            find(data)
        assert str(path) in str(error.value)


@given(st.data())
@settings(deadline=None)
def test_damaged_headers_never_raise_anything_but_input_errors(tmp_path_factory, data):
    content = bytearray(npy())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(6, 127))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    path.write_bytes(content)
    try:
        ((segment,), _) = find(path)
    except InputError as error:
        assert str(path) in str(error)
    else:
        assert segment.array().shape == segment.shape


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.full((2, 8, 16), -1), "found -1"),
        (np.full((2, 8, 16), 65536), "found 65536"),
        (np.full((2, 8, 16), 2**64 - 1, np.uint64), "found 18446744073709551615"),
    ],
)
def test_ids_out_of_range_are_refused_by_name(tmp_path, array, found):
    path = write(tmp_path / "a.npy", array)
    ((segment,), _) = find(path)
    with pytest.raises(InputError, match=rf"a\.npy: expected ids in 0\.\.65535, {found}"):
        segment.maximum()


def test_missing_empty_and_special_inputs_are_refused(tmp_path):
    with pytest.raises(InputError, match="missing: missing: there is no such file"):
        find(tmp_path / "missing")
    with pytest.raises(InputError, match="it is empty"):
        find(tmp_path)
    with pytest.raises(InputError, match="it is empty"):
        find({})
    (tmp_path / "notes.txt").write_text("not tokens")
    with pytest.raises(InputError, match="found none"):
        find(tmp_path)
    with pytest.raises(InputError, match="found none"):
        find(tmp_path / "notes.txt")
    (tmp_path / "gone.npy").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"gone\.npy: missing: this link leads to a file that does not exist"):
        find(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_named_like_a_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(InputError, match=r"pipe\.npy: expected a regular file, found a named pipe"):
        find(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip", "pipe", "val/metadata.json", "val/video.bin", "val/actions"])
def test_pipes_are_never_opened_whatever_is_read(tmp_path, name):
    """Reading one would wait forever."""
    write(tmp_path / "good.npy", tokens((2, 8, 16)))
    if name.startswith("val/"):
        write_synthetic(tmp_path / "val", 4, version="v0.0.1")
        (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    if name == "pipe":
        assert find(tmp_path)[1] == ["pipe"]
        with pytest.raises(InputError, match="pipe: expected a regular file, found a named pipe"):
            find_segments(tmp_path, keep_all=True)
    else:
        with pytest.raises(InputError, match=re.escape(name) + ": expected a regular file, found a named pipe"):
            find(tmp_path)
    with pytest.raises(InputError, match="expected a regular file, found a named pipe"):
        find(tmp_path / name)
    found = find_segments(tmp_path, skip_bad=True)
    assert [s.name for s in found.segments] == ["good.npy"]
    assert len(found.skipped) == (name != "pipe")


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="needs devices")
@pytest.mark.parametrize("name", ["a.npy", "a.tar.gz"])
def test_devices_are_never_opened(tmp_path, name):
    (tmp_path / name).symlink_to("/dev/null")
    with pytest.raises(InputError, match=re.escape(name) + ": expected a regular file, found a device"):
        find(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files_and_folders_are_refused_by_name(tmp_path):
    path = write(tmp_path / "sub" / "a.npy", tokens((2, 8, 16)))
    path.chmod(0)
    with pytest.raises(InputError, match=r"a\.npy: cannot be read: Permission denied"):
        find(tmp_path)
    path.parent.chmod(0)
    with pytest.raises(InputError, match=r"sub: cannot be read: Permission denied"):
        find(tmp_path)
    path.parent.chmod(0o700)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["A.npy", "a.npy"], "duplicate names: 'A.npy' and 'a.npy'"),
        (["x/a", "X/A"], "duplicate names"),
        (["e\u0301", "\xe9"], "duplicate names"),
        (["a", "a/b"], "duplicate names: 'a' is a file"),
        (["decompress.py"], "clashes"),
        (["vqcomp/a.npy"], "clashes"),
        (["VQComp/a.npy"], "clashes"),
        (["a\\b"], "absolute path, or one of Windows"),
        (["C:a"], "absolute path, or one of Windows"),
        (["/etc/passwd"], "absolute path"),
        (["../a"], "part that is empty"),
        (["a/../b"], "part that is empty"),
        (["a//b"], "part that is empty"),
        ([""], "is empty"),
        (["a\nb"], "control characters"),
        (["a\0b"], "control characters"),
        (["a\udcff"], "not Unicode"),
        (["x/" + "a" * 256], "too long: expected at most 255 bytes of UTF-8 between slashes"),
        (["\u00e9" * 128 + "/x"], "too long: .*found 256 and 258"),
        (["a/" * 1024 + "a"], "too long: .*2048 in all, found 1 and 2049"),
    ],
)
def test_names_that_cannot_be_restored_everywhere_are_refused(names, message):
    with pytest.raises(InputError, match=message):
        find({name: tokens((1, 2, 2)) for name in names})


def test_the_longest_names_that_are_taken_can_be_restored(tmp_path):
    names = ["a" * 255, "\u00e9" * 127 + "b", "/".join(["c" * 200] * 8)]
    data = {name: tokens((1, 2, 2)) for name in names}
    vqcomp.compress(data, tmp_path / "a.zip", model="none")
    assert vqcomp.decompress(tmp_path / "a.zip", tmp_path / "back") == sorted(names)
    assert files_in(tmp_path / "back") == set(names)


@pytest.mark.parametrize(
    ("data", "grid", "message"),
    [
        ({5: tokens((1, 2, 2))}, None, "expected names of type str, found one of type int"),
        ({None: tokens((1, 2, 2))}, None, "expected names of type str, found one of type NoneType"),
        ({"a": [[1], [1, 2]]}, None, "'a': expected an array of integers"),
        (tokens((1, 2, 2)), None, "an array needs a name"),
        (5, None, "data: expected a path"),
        ([5], None, "data: expected a path"),
        ({"a": tokens((1, 16))}, (4.0, 4.0), r"grid: expected two positive integers \(H, W\)"),
        ({"a": tokens((1, 16))}, (4, -4), "grid: expected two positive integers"),
        ({"a": tokens((1, 16))}, (4, 2, 2), "grid: expected two positive integers"),
        ({"a": tokens((1, 16))}, 16, "grid: expected two positive integers"),
        ({"a": tokens((1, 16))}, "4x", "grid: expected two positive integers"),
    ],
)
def test_arguments_of_other_types_are_refused(data, grid, message):
    with pytest.raises(InputError, match=message):
        find_segments(data, grid)


def test_a_grid_may_be_of_any_integers():
    assert find({"a": tokens((1, 16))}, [np.int64(2), 8])[0][0].grid == (2, 8)


def test_other_files_of_a_folder_are_kept_on_request(tmp_path):
    data = tmp_path / "data"
    write(data / "a.npy", tokens((2, 8, 16)))
    (data / "notes").mkdir()
    (data / "notes/readme.txt").write_text("not tokens")
    (data / "empty").touch()
    (data / "pose.zip").write_bytes(b"")  # said to hold no tokens by its name
    assert find(data)[1] == ["empty", "notes/readme.txt", "pose.zip"]
    summary = vqcomp.compress(data, tmp_path / "few.zip", model="none")
    assert (summary.left_out, summary.skipped) == (3, 0)
    summary = vqcomp.compress(data, tmp_path / "all.zip", model="none", keep_all=True)
    assert (summary.left_out, summary.skipped) == (0, 0)
    vqcomp.decompress(tmp_path / "all.zip", tmp_path / "back")
    names = files_in(data)
    assert files_in(tmp_path / "back") == names
    for name in names - {"a.npy"}:
        assert (tmp_path / "back" / name).read_bytes() == (data / name).read_bytes()
    for archive in ("few.zip", "all.zip"):
        vqcomp.evaluate(tmp_path / archive, data)
    (data / "notes/readme.txt").write_text("other words")
    vqcomp.evaluate(tmp_path / "few.zip", data)
    with pytest.raises(InputError, match=r"does not hold what .*readme\.txt does"):
        vqcomp.evaluate(tmp_path / "all.zip", data)


def test_values_that_change_between_two_looks_are_noticed(tmp_path):
    path = write(tmp_path / "a.npy", tokens((4, 8, 16)))
    ((segment,), _) = find(path)
    spec = TokenSpec(8, 16, (segment.maximum() + 1,))
    write(path, np.full((4, 8, 16), 1000, "<i2"))
    with pytest.raises(InputError, match="the file changed"):
        segment.tokens_of(spec)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="got shorter"):
        segment.array()
    path.unlink()
    with pytest.raises(InputError, match="missing"):
        segment.array()


@settings(deadline=None)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=4), st.data())
def test_ids_are_what_their_factors_join_to(factors, data):
    spec = TokenSpec(2, 3, tuple(factors))
    ids = np.array(data.draw(st.lists(st.integers(0, spec.vocabulary - 1), min_size=6, max_size=6))).reshape(1, 6)
    split = spec.split(ids)
    assert split.shape == (1, 6, len(factors))
    assert (split < factors).all()
    np.testing.assert_array_equal(spec.join(split), ids)


def test_factors_of_an_id_vary_fastest_first():
    ((segment,), _) = find({"a": np.array([[[0, 1], [512, 1025]]])})
    found = segment.tokens_of(TokenSpec(2, 2, (512, 128)))
    np.testing.assert_array_equal(found, [[[0, 0], [1, 0], [0, 1], [1, 2]]])


@given(st.lists(st.tuples(st.sampled_from([(8, 16), (3, 4), (2, 2)]), st.integers(0, 65535)), min_size=1))
def test_specs_fit_their_segments_and_known_ones_come_first(items):
    arrays = {str(i): np.full((1, *grid), maximum) for i, (grid, maximum) in enumerate(items)}
    segments = [find({name: array})[0][0] for name, array in arrays.items()]
    known = [TokenSpec(3, 4, (70,)), COMMAVQ]
    specs = find_specs(segments, [m for _, m in items], known)
    for (grid, maximum), spec in zip(items, specs):
        assert (spec.height, spec.width) == grid
        assert maximum < spec.vocabulary <= 65536
        assert all(2 <= factor <= 65536 for factor in spec.factors)
        fitting = [k for k in known if (k.height, k.width) == grid and maximum < k.vocabulary]
        assert spec == fitting[0] if fitting else spec not in known
    # Segments of a grid that fit no known spec share one.
    assert len(set(specs)) <= len(known) + 3
