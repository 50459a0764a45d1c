"""Archives: what goes in comes out, damage is found and bounded, and nothing malformed is trusted."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from conftest import files_in, tokens
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vqcomp
from vqcomp import ArchiveError, DamageError, FormatError, InputError, ModelError, UnsafeNameError, api
from vqcomp.archive.validation import parse_untrusted
from vqcomp.archive.writer import Writer
from vqcomp.runtime import layout as format
from vqcomp.runtime.codec import Codec
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.kinds import ADAPTIVE
from vqcomp.runtime.manifest import CHECK, Coding, _column, parse
from vqcomp.runtime.spec import TokenSpec

QUICK = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
MANY = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


def arrays():
    """Eleven segments in three streams of the network and two of the adaptive codec, of two grids."""
    small = {f"small/{i}.npy": tokens((1 + i, 3, 4), seed=i) for i in range(3)}
    other = {f"other/{i}": tokens((2, 2, 3), 40, "<i4", i) for i in range(8)}
    return {**small, **other, "wide": tokens((3, 3, 4), 300, ">u2")}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, tiny_model):
    path = tmp_path_factory.mktemp("mixed") / "mixed.zip"
    vqcomp.compress(arrays(), path, model=tiny_model, adapt=False)
    return path


def unpack(path, folder):
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return folder


def forge(path, folder, edit):
    """The archive unpacked, with a manifest that `edit` has changed and whose checksum is right."""
    unpack(path, folder)
    manifest = folder / format.MANIFEST
    table = json.loads(manifest.read_bytes())
    del table["check"]
    table = edit(table) or table
    body = json.dumps(table, separators=(",", ":")).encode()[:-1]
    manifest.write_bytes(body + CHECK.format(hashlib.sha256(body).hexdigest()).encode())
    return folder


def decode_all(path):
    """(arrays by name, names that were lost)."""
    lost = {}
    with vqcomp.open(path) as archive:
        return dict(archive.decode(damaged=lost)), lost


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


# ---- round trips

any_array = st.builds(
    lambda frames, grid, flat, dtype, most, seed: tokens(
        (frames, grid[0] * grid[1]) if flat else (frames, *grid), min(most, np.iinfo(dtype).max) + 1, dtype, seed
    ),
    frames=st.integers(1, 6),
    grid=st.sampled_from([(3, 4), (4, 3), (8, 16), (1, 1), (2, 5)]),
    flat=st.booleans(),
    dtype=st.sampled_from(["|u1", "|i1", "<i2", ">u2", "<i4", ">i8", "<u8"]),
    most=st.sampled_from([0, 1, 69, 70, 255, 1023, 65535]),
    seed=st.integers(0, 99),
)
any_name = st.text(st.sampled_from("abcé. -_漢"), min_size=1, max_size=8).filter(lambda n: n not in (".", ".."))


@given(data=st.dictionaries(any_name, any_array, min_size=1, max_size=10), batch_size=st.sampled_from([1, 3, 16]))
@QUICK
def test_any_tokens_come_back_exactly_whichever_codec_they_fit(tmp_path, tiny_model, data, batch_size):
    data = {n: a for n, a in data.items() if a.ndim == 3 or a.shape[1] in (12, 128)}
    if not data or len({n.casefold() for n in data}) < len(data):
        return
    out = tmp_path / "out.zip"
    fits = any(a.shape[1:] in ((3, 4), (12,)) and a.max() < 70 for a in data.values())
    vqcomp.compress(
        data,
        out,
        model=tiny_model if fits else "none",
        grid=(3, 4),
        compute=Compute(batch_size=batch_size),
        force=True,
        verify=False,
    )
    with vqcomp.open(out) as archive:
        assert_same(dict(archive.decode()), data)
        assert archive.tokens == sum(a.size for a in data.values())
    unpacked = unpack(out, tmp_path / "unpacked")
    assert_same(decode_all(unpacked)[0], data)
    shutil.rmtree(unpacked)


def test_one_archive_holds_several_shapes_and_codecs(mixed):
    assert_same(decode_all(mixed)[0], arrays())
    with vqcomp.open(mixed) as archive:
        assert sorted(c.kind.name for c in archive.manifest.codings) == ["adaptive", "adaptive", "gpt"]
        assert [(c.spec.height, c.spec.width) for c in archive.manifest.codings] == [(2, 3), (3, 4), (3, 4)]


def test_learning_on_top_of_the_network_is_a_codec_of_its_own(tmp_path, tiny_model):
    vqcomp.compress(arrays(), tmp_path / "out.zip", model=tiny_model)
    with vqcomp.open(tmp_path / "out.zip") as archive:
        assert sorted(c.kind.name for c in archive.manifest.codings) == ["adaptive", "adaptive", "mixed"]
        done = []
        assert_same(dict(archive.decode(advance=done.append)), arrays())
        assert sum(done) == archive.tokens


def test_equal_input_gives_equal_bytes_in_any_batch(tmp_path, mixed, tiny_model):
    for batch_size in (1, 3, 100):
        again = tmp_path / f"{batch_size}.zip"
        vqcomp.compress(arrays(), again, model=tiny_model, adapt=False, compute=Compute(batch_size=batch_size))
        assert again.read_bytes() == mixed.read_bytes()


def test_files_and_arrays_in_memory_give_equal_bytes(tmp_path, mixed, tiny_model):
    for name, array in arrays().items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as handle:
            np.save(handle, array)
    vqcomp.compress(tmp_path / "data", tmp_path / "out.zip", model=tiny_model, adapt=False)
    assert (tmp_path / "out.zip").read_bytes() == mixed.read_bytes()


def test_the_zip_has_fixed_entries_times_and_attributes(mixed):
    with zipfile.ZipFile(mixed) as archive:
        entries = archive.infolist()
    assert [e.filename for e in entries] == [
        "decompress.py", "vqcomp/runtime.bz2", "vqcomp/model.vqm", "vqcomp/streams.bin", "vqcomp/manifest.json",
    ]  # fmt: skip
    assert {e.date_time for e in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {(e.create_system, e.external_attr) for e in entries} == {(3, 0o100644 << 16)}


def test_summary_adds_up(tmp_path, tiny_model):
    data = {"a": tokens((5, 8, 16), 1024), "b": tokens((4, 3, 4))}
    out = tmp_path / "out.zip"
    summary = vqcomp.compress(data, out, model=tiny_model)
    assert (summary.segments, summary.tokens) == (2, 5 * 128 + 4 * 12)
    assert summary.raw_bytes == -(-(5 * 128 * 10 + 4 * 12 * 7) // 8)
    assert summary.zip_bytes == out.stat().st_size
    assert summary.weights_bytes == tiny_model.stat().st_size
    assert summary.rate == summary.raw_bytes / summary.zip_bytes
    assert summary.payload_bits_per_token == 8 * summary.payload_bytes / summary.tokens
    with zipfile.ZipFile(out) as archive:
        assert summary.payload_bytes == archive.getinfo(format.STREAMS).file_size
        compressed = sum(e.compress_size for e in archive.infolist())
    assert 0 < summary.rest_bytes < 2000
    assert summary.rest_bytes > summary.zip_bytes - compressed


# ---- random access


def test_segments_are_read_by_name_and_only_their_streams_are_decoded(mixed, monkeypatch):
    with vqcomp.open(mixed) as archive:
        assert len(archive) == 12
        assert set(archive) == set(arrays())
        assert "small/1.npy" in archive
        asked = []
        monkeypatch.setattr(archive, "_stream", lambda g, read=archive._stream: asked.append(g) or read(g))
        assert_same({"small/1.npy": archive["small/1.npy"]}, {"small/1.npy": arrays()["small/1.npy"]})
        assert len(asked) == 1
        for i in range(8):
            np.testing.assert_array_equal(archive[f"other/{i}"], arrays()[f"other/{i}"])
        assert len(asked) == 2
        with pytest.raises(KeyError):
            archive["nothing"]


def test_an_array_that_was_read_belongs_to_the_caller(mixed):
    with vqcomp.open(mixed) as archive:
        archive["other/1"][:] = 0
        np.testing.assert_array_equal(archive["other/1"], arrays()["other/1"])


def test_decoding_some_names_yields_those_in_the_archives_order(mixed):
    with vqcomp.open(mixed) as archive:
        names = ["small/2.npy", "other/7", "other/0"]
        found = dict(archive.decode(names))
        assert list(found) == [n for n in archive if n in names]
        assert_same(found, {n: arrays()[n] for n in found})
        with pytest.raises(InputError, match="no segment nothing"):
            next(archive.decode(["nothing"]))


def test_progress_counts_every_token_once(mixed):
    done = []
    with vqcomp.open(mixed) as archive:
        for _ in archive.decode(advance=done.append):
            pass
        assert sum(done) == archive.tokens


# ---- damage


def flipped(path, bit, out):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    out.write_bytes(content)
    return out


@given(data=st.data())
@MANY
def test_no_flipped_bit_of_a_zip_gives_wrong_tokens(tmp_path, mixed, data):
    bit = data.draw(st.integers(0, 8 * mixed.stat().st_size - 1))
    damaged = flipped(mixed, bit, tmp_path / "damaged.zip")
    expected = arrays()
    try:
        found, lost = decode_all(damaged)
    except (ArchiveError, ModelError) as error:
        assert str(damaged) in str(error)
        return
    assert found.keys() | lost.keys() == expected.keys()
    assert_same(found, {n: expected[n] for n in found})


@given(data=st.data())
@QUICK
def test_check_finds_any_flipped_bit_of_the_contents(tmp_path, mixed, data):
    with zipfile.ZipFile(mixed) as archive:
        entry = data.draw(st.sampled_from(archive.infolist()))
    with open(mixed, "rb") as handle:
        handle.seek(entry.header_offset + 26)
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", handle.read(4)))
    # Deflated data may end within a byte, whose other bits mean nothing.
    padding = 8 if entry.compress_type == zipfile.ZIP_DEFLATED else 0
    bit = data.draw(st.integers(8 * start, 8 * (start + entry.compress_size) - padding - 1))
    with pytest.raises(ArchiveError):
        api.check(flipped(mixed, bit, tmp_path / "damaged.zip"))


@given(data=st.data())
@MANY
def test_no_flipped_bit_of_an_unpacked_archive_gives_wrong_tokens(tmp_path, mixed, data):
    folder = tmp_path / "unpacked"
    if not folder.exists():
        unpack(mixed, folder)
    path = folder / data.draw(st.sampled_from([format.MANIFEST, format.MODEL, format.STREAMS]))
    content = path.read_bytes()
    flipped(path, data.draw(st.integers(0, 8 * len(content) - 1)), path)
    try:
        found, lost = decode_all(folder)
        assert lost
        assert found.keys() | lost.keys() == arrays().keys()
        assert_same(found, {n: arrays()[n] for n in found})
    except ArchiveError as error:
        assert str(folder) in str(error)
    finally:
        path.write_bytes(content)


def test_damage_in_a_stream_is_named_and_the_others_still_decode(tmp_path, mixed):
    with vqcomp.open(mixed) as archive:
        start, groups, segments = archive._start, archive.manifest.groups, archive.segments
    for group in groups:
        members = {segments[i].name for i in group.segments}
        for byte in {0, group.size // 2, group.size - 1}:
            damaged = flipped(mixed, 8 * (start + group.offset + byte) + byte % 8, tmp_path / "damaged.zip")
            found, lost = decode_all(damaged)
            assert lost.keys() == members
            assert found.keys() == arrays().keys() - members
            with vqcomp.open(damaged) as archive:
                with pytest.raises(DamageError, match="checksum"):
                    archive[min(members)]
                healthy = min(found)
                np.testing.assert_array_equal(archive[healthy], arrays()[healthy])
                with pytest.raises(DamageError) as error:
                    list(archive.decode())
            assert all(repr(name) in str(error.value) for name in members)
            with pytest.raises(DamageError, match=rf"{len(members)} of 12 files") as error:
                api.check(damaged)
            assert all(name in str(error.value) for name in members)


def test_damage_in_the_model_or_its_loss_loses_only_what_it_codes(tmp_path, mixed):
    folder = unpack(mixed, tmp_path / "unpacked")
    model = folder / format.MODEL
    for harm, message in (
        (lambda: flipped(model, 1000, model), "model.vqm is damaged"),
        (lambda: model.write_bytes(b""), "model.vqm is damaged"),
        (lambda: model.write_bytes(bytes(1 << 20)), "model.vqm is damaged"),
        (model.unlink, "no vqcomp/model.vqm inside"),
    ):
        harm()
        found, lost = decode_all(folder)
        assert lost.keys() == {n for n in arrays() if n.startswith("small")}
        assert all(message in reason for reason in lost.values())
        assert_same(found, {n: arrays()[n] for n in found})


def test_one_name_may_be_given_as_a_string(tmp_path, mixed):
    assert vqcomp.decompress(mixed, tmp_path, "other/3") == ["other/3"]
    assert files_in(tmp_path) == {"other/3"}


@given(data=st.data())
@QUICK
def test_a_truncated_zip_is_refused(tmp_path, mixed, data):
    content = mixed.read_bytes()
    path = tmp_path / "short.zip"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(FormatError, match=r"short\.zip"):
        vqcomp.open(path)


@pytest.mark.parametrize("entry", [format.MANIFEST, format.STREAMS, format.MODEL])
@pytest.mark.parametrize("length", [0, 1, -1])
def test_truncated_entries_are_refused(tmp_path, mixed, entry, length):
    folder = unpack(mixed, tmp_path / "unpacked")
    path = folder / entry
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ArchiveError, match=entry):
        api.check(folder)


def test_a_codec_that_gives_wrong_tokens_is_found_by_their_checksum(mixed, monkeypatch):
    from vqcomp.runtime.gpt import GPTCodec

    decode = GPTCodec.decode
    monkeypatch.setattr(
        GPTCodec, "decode", lambda *a: [[t ^ (np.arange(t.size) == 5).reshape(t.shape) for t in g] for g in decode(*a)]
    )
    found, lost = decode_all(mixed)
    assert lost.keys() == {n for n in arrays() if n.startswith("small")}
    assert set(lost.values()) == {"the tokens' checksum does not match"}
    assert_same(found, {n: arrays()[n] for n in found})


def test_compress_does_not_report_success_if_the_archive_does_not_decode(tmp_path, monkeypatch):
    from vqcomp.runtime.adapt import AdaptiveCodec

    decode = AdaptiveCodec.decode
    monkeypatch.setattr(AdaptiveCodec, "decode", lambda *a: [[1 - t for t in g] for g in decode(*a)])
    data = {"a": tokens((3, 2, 2), 2)}
    with pytest.raises(DamageError, match="'a'"):
        vqcomp.compress(data, tmp_path / "out.zip", model="none")
    assert files_in(tmp_path) == set()
    vqcomp.compress(data, tmp_path / "out.zip", model="none", verify=False)
    assert files_in(tmp_path) == {"out.zip"}


# ---- malformed archives


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip at all" * 100, b"\x93NUMPY"])
def test_other_files_are_no_archives(tmp_path, content):
    path = tmp_path / "x.zip"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"x\.zip: expected a zip written by vqcomp"):
        vqcomp.open(path)


def test_other_zips_folders_and_missing_files_are_no_archives(tmp_path):
    with pytest.raises(InputError, match=r"missing: there is no such file"):
        vqcomp.open(tmp_path / "missing")
    with pytest.raises(FormatError, match=r"no vqcomp/manifest\.json inside"):
        vqcomp.open(tmp_path)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(FormatError, match=r"other\.zip: no vqcomp/manifest\.json inside"):
        vqcomp.open(tmp_path / "other.zip")


@pytest.mark.parametrize("version", [0, format.FORMAT + 1, str(format.FORMAT), None, True, [format.FORMAT]])
def test_unknown_format_versions_are_refused_before_anything_else(tmp_path, mixed, version):
    folder = forge(mixed, tmp_path / "forged", lambda t: {"format": version})
    with pytest.raises(FormatError, match=rf"expected format {format.FORMAT}, found .*wrote it"):
        vqcomp.open(folder)


@pytest.mark.parametrize(
    "name",
    ["../a", "a/../../b", "/a", "a//b", "./a", "", "C:/a", "c:a", "a\\b", "\\\\host\\a", "decompress.py",
     "DECOMPRESS.PY", "vqcomp/streams.bin", "Vqcomp/x", "a\0", "a\nb", "\udc80"],
)  # fmt: skip
def test_names_that_leave_the_output_folder_are_refused(tmp_path, mixed, name):
    def rename(table):
        table["segments"]["name"][3] = name

    folder = forge(mixed, tmp_path / "forged", rename)
    with pytest.raises(UnsafeNameError):
        vqcomp.open(folder)


@pytest.mark.parametrize("name", ["other/0", "OTHER/0", "other", "other/0/a"])
def test_names_that_clash_are_refused(tmp_path, mixed, name):
    def rename(table):
        assert table["segments"]["name"][0] == "other/0"
        table["segments"]["name"][5] = name

    with pytest.raises(FormatError, match="duplicate names"):
        vqcomp.open(forge(mixed, tmp_path / "forged", rename))


def change(*keys):
    """An edit that sets the last but one of `keys` to the last."""

    def edit(table):
        for key in keys[:-2]:
            table = table[key]
        table[keys[-2]] = keys[-1]

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        change("segments", "dtype", {"all": "<f4"}),
        change("segments", "dtype", {"all": "O"}),
        change("segments", "dtype", {"all": "<i2,<i2"}),
        change("segments", "dtype", {"all": 2}),
        change("segments", "dtype", {"all": "<m8"}),
        change("segments", "shape", {"all": [2, 3, 4]}),
        change("segments", "shape", {"all": [0, 2, 3]}),
        change("segments", "shape", {"all": []}),
        change("segments", "shape", {"all": 3}),
        change("segments", "shape", 0, [1 << 40, 2, 3]),
        change("segments", "shape", 0, [2.0, 2, 3]),
        change("segments", "shape", 0, [-2, 2, 3]),
        change("segments", "crc32", [1]),
        change("segments", "crc32", {"one": 1}),
        change("segments", "crc32", {"all": "x"}),
        change("segments", "name", "abc"),
        change("segments", "name", {"all": "a"}),
        change("segments", "name", 0, 7),
        change("segments", "name", []),
        change("segments", {}),
        change("segments", []),
        change("groups", "count", 0),
        change("groups", "count", 10**12),
        change("groups", "count", -1),
        change("groups", "segments", {"all": 1}),
        change("groups", "segments", {"all": 10**9}),
        change("groups", "segments", 0, 0),
        change("groups", "spec", {"all": 9}),
        change("groups", "spec", {"all": -1}),
        change("groups", "spec", {"all": 0}),
        change("groups", "bytes", {"all": -4}),
        change("groups", "bytes", {"all": True}),
        change("groups", "bytes", 0, 10**6),
        change("groups", {}),
        change("specs", []),
        change("specs", 0, "codec", "other"),
        change("specs", 0, "codec", "gpt-2"),
        change("specs", 0, "height", 0),
        change("specs", 0, "height", 1.5),
        change("specs", 0, "factors", []),
        change("specs", 0, "factors", [1]),
        change("specs", 0, "factors", [1 << 17]),
        change("specs", 0, {}),
        change("specs", {}),
        change("model", None),
        change("model", {}),
        change("model", {"bytes": "9", "sha256": ""}),
        lambda t: {k: v for k, v in t.items() if k != "sha256"},
        lambda t: {k: v for k, v in t.items() if k != "segments"},
        lambda t: {"format": format.FORMAT},
    ],
)
def test_malformed_manifests_are_refused(tmp_path, mixed, edit):
    with pytest.raises(FormatError, match="forged: vqcomp/"):
        vqcomp.open(forge(mixed, tmp_path / "forged", edit))


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 10_000])
def test_manifests_that_are_no_tables_are_refused(content):
    with pytest.raises(ArchiveError):
        parse_untrusted(content)


def test_the_decoder_that_trusts_its_manifest_reads_in_it_what_vqcomp_reads(tmp_path, mixed):
    content = (unpack(mixed, tmp_path / "unpacked") / format.MANIFEST).read_bytes()
    assert parse(content) == parse_untrusted(content)
    assert parse(content).to_bytes() == content


def test_an_archive_whose_whole_hash_is_wrong_is_refused(tmp_path, mixed):
    folder = forge(mixed, tmp_path / "forged", change("sha256", "0" * 64))
    with pytest.raises(DamageError, match="hash of all tokens"):
        api.check(folder)


def test_entries_beyond_their_limits_are_refused(tmp_path, mixed, monkeypatch):
    monkeypatch.setattr("vqcomp.runtime.layout.MANIFEST_LIMIT", 100)
    for path in (mixed, unpack(mixed, tmp_path / "unpacked")):
        with pytest.raises(FormatError, match=r"manifest\.json: expected at most 100 bytes"):
            vqcomp.open(path)


def test_compressed_streams_are_refused_with_the_way_out(tmp_path, mixed):
    path = tmp_path / "again.zip"
    with zipfile.ZipFile(mixed) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
    with pytest.raises(FormatError, match="unzip it and open the folder"):
        vqcomp.open(path)


def test_a_zip_that_was_packed_again_with_other_dates_and_order_still_opens(tmp_path, mixed):
    path = tmp_path / "again.zip"
    with zipfile.ZipFile(mixed) as old, zipfile.ZipFile(path, "w") as new:
        for entry in reversed(old.namelist()):
            new.writestr(entry, old.read(entry))
    assert_same(decode_all(path)[0], arrays())


# ---- writing


def test_columns_of_one_value_are_stored_once():
    assert _column([]) == []
    assert _column([3, 3]) == {"all": 3}
    assert _column([[1, 2], [1, 2]]) == {"all": [1, 2]}
    assert _column([3, 4]) == [3, 4]


def test_large_archives_get_64_bit_sizes_and_open_alike(tmp_path):
    array = np.zeros((1, 4, 1), np.int32)
    sizes = []
    for max_tokens in (1 << 20, 1 << 29):
        path = tmp_path / f"{max_tokens}.zip"
        with Writer(path, [Coding(TokenSpec(2, 2, (2,)), ADAPTIVE)], None, max_tokens=max_tokens) as writer:
            writer.add(0, ["a"], [np.dtype("<i2")], [(1, 2, 2)], [array], b"abcd")
        with vqcomp.open(path) as archive:
            assert archive._stream(archive.manifest.groups[0]) == b"abcd"
        sizes.append(path.stat().st_size)
    assert sizes[1] > sizes[0]


class Plain(Codec):
    """A codec that stores tokens as they are, to look at what surrounds codecs."""

    group_size = group_limit = 1

    def encode(self, groups, progress=None):
        return [np.concatenate(group).astype("<i4").tobytes() for group in groups]

    def decode(self, streams, frames, progress=None):
        return [[np.frombuffer(s, "<i4").reshape(sum(f), -1, 1)] for s, f in zip(streams, frames)]


def test_memory_is_bounded_by_the_batch_not_by_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr("vqcomp.encoding.make_codec", lambda *a, **k: Plain())
    monkeypatch.setattr("vqcomp.runtime.reader.codec_of", lambda *a, **k: Plain())
    data = tmp_path / "data"
    data.mkdir()
    peaks = []
    for count in (4, 24):
        for i in range(count):
            np.save(data / f"{i}.npy", tokens((10, 8, 16)).repeat(20, 0).repeat(20, 1))
        tracemalloc.start()
        vqcomp.compress(data, tmp_path / "out.zip", model="none", compute=Compute(batch_size=2), force=True)
        vqcomp.decompress(tmp_path / "out.zip", tmp_path / str(count), compute=Compute(batch_size=2))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_a_segment_takes_less_than_2_kb_of_memory_whatever_their_number(tmp_path, monkeypatch):
    monkeypatch.setattr("vqcomp.encoding.make_codec", lambda *a, **k: Plain())
    monkeypatch.setattr("vqcomp.runtime.reader.codec_of", lambda *a, **k: Plain())
    data, peaks, counts = tmp_path / "data", [], (100, 600)
    data.mkdir()
    for count in counts:
        for i in range(len(list(data.iterdir())), count):
            np.save(data / f"{i:032x}.npy", tokens((1, 2, 4), seed=i))
        tracemalloc.start(1)
        vqcomp.compress(data, tmp_path / "out.zip", model="none", compute=Compute(batch_size=2), force=True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 2000 * (counts[1] - counts[0])


def test_a_model_that_fits_nothing_is_refused_and_one_that_fits_some_codes_those(tmp_path, tiny_model):
    with pytest.raises(InputError, match=r"predicts frames of 3x4 of 70 ids, the data have 2x2 of 68 ids"):
        vqcomp.compress({"a": tokens((2, 2, 2))}, tmp_path / "out.zip", model=tiny_model)
    with pytest.raises(ModelError, match="no model unheard of"):
        vqcomp.compress({"a": tokens((2, 2, 2))}, tmp_path / "out.zip", model="unheard of")
    bad = tmp_path / "bad.vqm"
    bad.write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"bad\.vqm: not a vqcomp model"):
        vqcomp.compress({"a": tokens((2, 2, 2))}, tmp_path / "out.zip", model=bad)
    assert files_in(tmp_path) == {"bad.vqm"}


@pytest.mark.parametrize("content", [None, b"BZh9 something else"])
def test_a_folder_whose_decoder_is_gone_or_damaged_does_not_pass(tmp_path, mixed, content):
    folder = unpack(mixed, tmp_path / "unpacked")
    api.check(folder)
    (folder / format.RUNTIME).unlink()
    if content:
        (folder / format.RUNTIME).write_bytes(content)
    with pytest.raises(DamageError, match=r"runtime\.bz2 is damaged or missing"):
        api.check(folder)
