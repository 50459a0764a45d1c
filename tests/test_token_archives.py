"""Archives by an external network: named by hash and not carried, found again, and the same everywhere."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, files_in
from gpt2s import CONFIG, CONFIG_JSON, SPEC, arrays, network, safetensors, save
from hubserver import COMMIT, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_gpt2 import Reference, decode

import vqcomp
from vqcomp.api import imagine as imagine_tokens
from vqcomp.archive.writer import Writer
from vqcomp.cli import run
from vqcomp.cluster.codec import ClusterCodec
from vqcomp.external_models import TokenOptions, find_external
from vqcomp.runtime import layout, token_external, token_memory
from vqcomp.runtime.codec import lockstep
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.errors import DamageError, FormatError, InputError, ModelError, PlatformError
from vqcomp.runtime.exact import make_ops
from vqcomp.runtime.kinds import KINDS, make_codec
from vqcomp.runtime.spec import TokenSpec
from vqcomp.runtime.token_codec import TokenCodec
from vqcomp.runtime.token_config import Precision, TokenConfig
from vqcomp.runtime.token_engine import TokenGPT
from vqcomp.runtime.token_external import External, parse_external, self_test
from vqcomp.runtime.token_mixed import PlaceMixer, TokenMixedCodec
from vqcomp.runtime.token_windows import TokenWindows
from vqcomp.world.imagine import TokenImaginer
from vqcomp.world.sampling import Sampling

MODEL = network()
ARRAYS = arrays(MODEL)
HUB = "someone/small"
KIND = pytest.mark.parametrize("adapt", [True, False], ids=["token-mixed", "token"])
BACKEND = pytest.mark.parametrize("device", ["numpy", "cpu"])


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    """No test finds a network that the machine's user has."""
    monkeypatch.delenv("VQCOMP_MODEL", raising=False)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A folder with model.safetensors and config.json."""
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "config.json").write_text(json.dumps(CONFIG_JSON))
    (folder / "model.safetensors").write_bytes(safetensors(ARRAYS))
    return folder


@pytest.fixture(scope="session")
def data(checkpoint, tmp_path_factory):
    """Segments that the network foresees: it has drawn them."""
    folder = tmp_path_factory.mktemp("data")
    windows = TokenWindows(TokenGPT(CONFIG, ARRAYS.__getitem__, make_ops("cpu")), SPEC, 3)
    drawn = TokenImaginer(windows).imagine(np.zeros((0, 12, 1), np.int32), 14, 3, Sampling(), 8, lambda n: None)
    for i, length in enumerate((14, 5, 9)):
        np.save(folder / f"{i}.npy", drawn[i, :length, :, 0].reshape(-1, 3, 4).astype(np.int16))
    return folder


@pytest.fixture(scope="session")
def archives(checkpoint, data, tmp_path_factory):
    """Zips by whether what coded them learns."""
    folder = tmp_path_factory.mktemp("archives")
    paths = {adapt: folder / f"{adapt}.zip" for adapt in (True, False)}
    for adapt, path in paths.items():
        summary = vqcomp.compress(data, path, model=checkpoint, adapt=adapt)
        assert summary.payload_bits_per_token < 6.1, "the network predicts, or nothing here is a test"
    return paths


def described(path) -> dict:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(layout.MODEL))


def loaded(data: Path) -> dict[str, np.ndarray]:
    return {path.name: np.load(path) for path in data.iterdir()}


def segments(data: Path) -> list[np.ndarray]:
    return [array.reshape(len(array), 12, 1).astype(np.int32) for array in loaded(data).values()]


def model_of(checkpoint, **options) -> tuple[bytes, Compute]:
    model, path = find_external(checkpoint, [(3, 4)], TokenOptions(**options), Compute("numpy"))
    return model.data, Compute("numpy", model=str(path))


# ---- round trips


@KIND
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_the_commands_find_the_network_where_they_are_told(
    file, adapt, checkpoint, data, tmp_path, monkeypatch, capsys
):
    folder = checkpoint
    if file.endswith(".bin"):
        (folder := tmp_path / "bin").mkdir()
        save(folder, MODEL.state_dict())
    out = tmp_path / "out.zip"
    options = ["--model", folder, *([] if adapt else ["--no-adapt"])]
    assert run([*map(str, ["compress", data, out, *options, "-q"])]) == 0
    assert described(out)["file"] == file
    for command in (["test", out], ["evaluate", out, data], ["decompress", out, "-o", tmp_path / "told"]):
        assert run([*map(str, [*command, "--model", folder])]) == 0
    monkeypatch.setenv("VQCOMP_MODEL", str(folder / file))
    assert run([*map(str, ["decompress", out, "-o", tmp_path / "variable"])]) == 0
    for restored in ("told", "variable"):
        for name, array in loaded(data).items():
            np.testing.assert_array_equal(np.load(tmp_path / restored / name), array)


@KIND
def test_list_needs_no_network_and_names_it(adapt, archives, checkpoint, capsys):
    path = checkpoint / "model.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert run(["list", str(archives[adapt])]) == 0
    text = capsys.readouterr().out
    assert f"model not in the zip: model.safetensors, {path.stat().st_size:,} bytes, sha256 {digest};" in text
    assert "weights of 14 bits, activations of 15, 3 frames kept" in text
    assert run(["list", "--json", str(archives[adapt])]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["external"] == described(archives[adapt])


@KIND
def test_the_zip_names_the_network_and_does_not_carry_it(adapt, archives, checkpoint):
    table = described(archives[adapt])
    assert table["sha256"] == hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert archives[adapt].stat().st_size < (checkpoint / "model.safetensors").stat().st_size / 10
    with zipfile.ZipFile(archives[adapt]) as archive:
        manifest = json.loads(archive.read(layout.MANIFEST))
        assert manifest["model"]["sha256"] == hashlib.sha256(archive.read(layout.MODEL)).hexdigest()
        assert str(checkpoint) not in str([archive.read(name) for name in archive.namelist()]), "no path of a machine"


@KIND
def test_every_backend_batch_and_number_of_processes_gives_the_same_bytes(adapt, archives, checkpoint, data, tmp_path):
    expected = archives[adapt].read_bytes()
    for i, compute in enumerate([Compute("numpy"), Compute("cpu", 1, 1, 1), Compute("cpu", 2, 3, 2)]):
        vqcomp.compress(data, tmp_path / f"{i}.zip", model=checkpoint, adapt=adapt, compute=compute)
        assert (tmp_path / f"{i}.zip").read_bytes() == expected, compute


@KIND
def test_an_archive_is_data_too(adapt, archives, checkpoint, data, tmp_path, monkeypatch):
    monkeypatch.setenv("VQCOMP_MODEL", str(checkpoint))
    vqcomp.compress(archives[adapt], tmp_path / "again.zip", model=checkpoint, adapt=adapt)
    assert (tmp_path / "again.zip").read_bytes() == archives[adapt].read_bytes()
    with vqcomp.open(archives[adapt]) as archive:
        np.testing.assert_array_equal(archive["1.npy"], loaded(data)["1.npy"])


def test_a_run_that_broke_off_goes_on_to_the_same_bytes(archives, checkpoint, data, tmp_path):
    options = {"model": checkpoint, "adapt": False, "compute": Compute(batch_size=1)}
    with pytest.MonkeyPatch.context() as patch:
        add = Writer.add
        patch.setattr(Writer, "add", lambda self, *a: add(self, *a) if not self.groups else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            vqcomp.compress(data, tmp_path / "out.zip", **options)
    lines: list[str] = []
    vqcomp.compress(data, tmp_path / "out.zip", resume=True, report=lines.append, **options)
    assert "as chosen before" in str(lines)
    assert (tmp_path / "out.zip").read_bytes() == archives[False].read_bytes()
    with pytest.raises(ZeroDivisionError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "add", lambda self, *a: 1 / 0)
        vqcomp.compress(data, tmp_path / "more.zip", **options)
    with pytest.raises(InputError, match="was begun with other input, model or options"):
        vqcomp.compress(data, tmp_path / "more.zip", resume=True, token_options=TokenOptions(keep_frames=1), **options)


def test_tokens_of_another_grid_are_coded_without_the_network(checkpoint, data, tmp_path):
    other = {"other.npy": np.arange(24).reshape(2, 2, 6).astype(np.int16), **loaded(data)}
    wide = {"wide.npy": np.arange(400).reshape(2, 10, 20).astype(np.int16)}
    vqcomp.compress({**other, **wide}, tmp_path / "out.zip", model=checkpoint)
    with vqcomp.open(tmp_path / "out.zip", Compute(model=str(checkpoint))) as archive:
        kinds = {s.name: archive.manifest.coding_of(s).kind.name for s in archive.segments}
        for name, array in {**other, **wide}.items():
            np.testing.assert_array_equal(archive[name], array)
    assert kinds["wide.npy"] == "adaptive"
    assert "token-mixed" in kinds.values()


@KIND
@pytest.mark.parametrize("precision", [(7, 8), (7, 15), (14, 8)])
@pytest.mark.parametrize("keep", [0, 5])
def test_precision_and_kept_frames_are_the_archives_own(adapt, precision, keep, checkpoint, data, tmp_path):
    out = tmp_path / "out.zip"
    chosen = ["--precision", "{},{}".format(*precision), "--keep-frames", str(keep)]
    options = ["--model", str(checkpoint), "-q", *chosen, *([] if adapt else ["--no-adapt"])]
    assert run(["compress", str(data), str(out), *options]) == 0  # which decodes and compares
    table = described(out)
    assert (table["weight_bits"], table["activation_bits"], table["keep"]) == (*precision, keep)


# ---- decompress.py


@pytest.fixture
def unpacked(archives, tmp_path):
    def unpack(adapt) -> Path:
        with zipfile.ZipFile(archives[adapt]) as archive:
            archive.extractall(tmp_path / "unpacked")
        return tmp_path / "unpacked"

    return unpack


def decompress(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VQCOMP_MODEL")}
    return subprocess.run(
        [sys.executable, "decompress.py", *options], cwd=folder, capture_output=True, text=True, check=False,
        env={**clean, "HF_HUB_OFFLINE": "1", **environment},
    )  # fmt: skip


def without_torch(folder: Path) -> str:
    """A PYTHONPATH on which there is no torch."""
    (folder / "torch.py").write_text("raise ImportError('hidden')\n")
    return str(folder)


@KIND
def test_decompress_py_finds_the_network_beside_itself_and_needs_numpy_alone(
    adapt, unpacked, checkpoint, data, tmp_path
):
    folder = unpacked(adapt)
    (folder / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    done = decompress(folder, PYTHONPATH=without_torch(tmp_path))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert {name: (folder / "decompressed" / name).read_bytes() for name in files_in(folder / "decompressed")} == {
        path.name: path.read_bytes() for path in data.iterdir()
    }
    (folder / "small").mkdir()
    (folder / "model.safetensors").rename(folder / "small/model.safetensors")
    assert decompress(folder).returncode == 0


@KIND
def test_decompress_py_looks_where_the_variable_says(adapt, unpacked, checkpoint, data):
    folder = unpacked(adapt)
    done = decompress(folder, "-j", "3", VQCOMP_MODEL=str(checkpoint))
    assert done.returncode == 0, done.stderr
    for name, array in loaded(data).items():
        np.testing.assert_array_equal(np.load(folder / "decompressed" / name), array)


@KIND
def test_decompress_py_without_the_network_says_what_to_get(adapt, unpacked, archives):
    done = decompress(unpacked(adapt))
    assert done.returncode == 1
    table = described(archives[adapt])
    assert done.stderr.splitlines()[-1] == (
        "error: the archive was coded by a network that it does not carry: "
        f"model.safetensors, {table['bytes']:,} bytes, "
        f"sha256 {table['sha256']}; say where it lies: "
        "VQCOMP_MODEL=DIR (or vqcomp --model DIR, or beside decompress.py)"
    )


def test_decompress_py_says_that_a_bin_needs_torch(data, tmp_path):
    (folder := tmp_path / "bin").mkdir()
    save(folder, MODEL.state_dict())
    vqcomp.compress(data, tmp_path / "out.zip", model=folder, adapt=False)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    done = decompress(tmp_path / "unpacked", PYTHONPATH=without_torch(tmp_path), VQCOMP_MODEL=str(folder))
    assert done.returncode == 1
    assert "pytorch_model.bin: " in done.stderr
    assert "or convert it to model.safetensors" in done.stderr


# ---- what will not do


@KIND
def test_a_network_that_is_missing_is_named(adapt, archives, tmp_path):
    for model, where in ((None, ""), (tmp_path, f"; it is not in {tmp_path}")):
        with pytest.raises(ModelError, match=f"model.safetensors, .* bytes, sha256 [0-9a-f]{{64}}{where}; say where"):
            vqcomp.decompress(
                archives[adapt], tmp_path / "out", compute=Compute(model=model and str(model)),
            )  # fmt: skip
    assert not (tmp_path / "out").exists()


@KIND
def test_another_network_is_refused_before_it_is_used(adapt, archives, checkpoint, tmp_path):
    data = bytearray((checkpoint / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    digest = described(archives[adapt])["sha256"]
    with pytest.raises(ModelError, match=f"expected the network with the sha256 {digest}, found another file"):
        vqcomp.decompress(archives[adapt], tmp_path / "out", compute=Compute(model=str(tmp_path)))


def test_a_checkpoint_of_other_shapes_is_refused_by_name(data, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG_JSON | {"n_positions": 91}))
    (tmp_path / "model.safetensors").write_bytes(safetensors(ARRAYS))
    with pytest.raises(ModelError, match=r"transformer.wpe.weight: expected the shape \(91, 64\), found \(78, 64\)"):
        vqcomp.compress(data, tmp_path / "out.zip", model=tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(
        ModelError, match=r"transformer.wte.weight: expected the shape \(1025, 1024\), found \(71, 64\)"
    ):
        vqcomp.compress({"a": np.zeros((2, 8, 16), np.int16)}, tmp_path / "out.zip", model=tmp_path)
    assert not (tmp_path / "out.zip").exists()


def test_a_folder_without_weights_is_refused(data, tmp_path):
    with pytest.raises(
        ModelError, match=r"expected a folder with model.safetensors or pytorch_model.bin, found neither"
    ):
        vqcomp.compress(data, tmp_path / "out.zip", model=tmp_path)


@pytest.mark.parametrize("largest", [70, 1024, 40000])
def test_ids_that_the_network_does_not_predict_are_refused(largest, checkpoint, tmp_path):
    tokens = np.zeros((2, 3, 4), np.uint16)
    tokens[1, 2, 3] = largest
    with pytest.raises(
        InputError, match=f"it predicts frames of 3x4 of 70 ids, the data have 3x4 of {largest + 1} ids"
    ):
        vqcomp.compress({"a": tokens}, tmp_path / "out.zip", model=checkpoint)
    np.save(tmp_path / "a.npy", tokens)
    with pytest.raises(InputError, match=f"expected ids below 70, .* found {largest}"):
        imagine_tokens(str(tmp_path / "a.npy"), tmp_path / "b.npy", model=checkpoint)


def test_a_frame_larger_than_the_network_sees_is_refused(checkpoint, tmp_path):
    with pytest.raises(ModelError, match="the network sees 78 ids; a frame of 8x16 tokens has 129"):
        vqcomp.compress({"a": np.zeros((2, 8, 16), np.int16)}, tmp_path / "out.zip", model=checkpoint)


def test_options_of_an_external_network_want_one_and_sensible_values(checkpoint, data, tmp_path, capsys):
    def compress(*options):
        code = run(["compress", str(data), str(tmp_path / "out.zip"), *options])
        return code, capsys.readouterr().err

    for options in (["--precision", "14,15"], ["--keep-frames", "2", "--model", "none"]):
        code, error = compress(*options)
        assert code == 1
        assert "are of an external network" in error
    external = ["--model", str(checkpoint)]
    assert "expected bits of weights and of activations such as 14,15" in compress("--precision", "x", *external)[1]
    assert "expected 7 or 14 bits of weights and 8 or 15" in compress("--precision", "8,8", *external)[1]
    assert "frames to keep: expected 0 to 5, found 6" in compress("--keep-frames", "6", *external)[1]


def test_without_memory_it_is_said_how_much_is_needed_before_anything_is_loaded(
    checkpoint, data, tmp_path, monkeypatch
):
    monkeypatch.setattr(token_memory, "available_bytes", lambda ops: 1 << 20)
    monkeypatch.setattr("vqcomp.runtime.token_external.open_weights", None)
    token_external._loaded.cache_clear()
    with pytest.raises(InputError, match=r"the network needs \d+\.\d MB of memory on .* 1\.0 MB are available"):
        vqcomp.compress(data, tmp_path / "out.zip", model=checkpoint)


def test_little_memory_computes_fewer_segments_side_by_side_and_changes_no_byte(
    checkpoint, data, archives, tmp_path, monkeypatch
):
    work = token_memory.work_bytes(CONFIG, Precision())
    each = token_memory.segment_bytes(CONFIG, Precision(), 78)
    started = []
    start = TokenGPT.start
    monkeypatch.setattr(TokenGPT, "start", lambda self, n, *room: started.append(n) or start(self, n, *room))
    vqcomp.compress(data, tmp_path / "many.zip", model=checkpoint, adapt=False)
    assert max(started) == 3
    monkeypatch.setattr(token_memory, "available_bytes", lambda ops: work + int(2.5 * each))
    monkeypatch.setattr("vqcomp.runtime.token_external.require_memory", lambda *_: None)
    started.clear()
    vqcomp.compress(data, tmp_path / "few.zip", model=checkpoint, adapt=False)
    assert max(started) == 2
    assert (tmp_path / "few.zip").read_bytes() == (tmp_path / "many.zip").read_bytes() == archives[False].read_bytes()
    with pytest.raises(InputError, match="memory has room for 2 of a group's 3 segments side by side"):
        vqcomp.compress(data, tmp_path / "group.zip", model=checkpoint)
    vqcomp.compress(data, tmp_path / "group.zip", model=checkpoint, group_size=2)
    monkeypatch.setattr(token_memory, "available_bytes", lambda ops: work + each // 2)
    with pytest.raises(InputError, match=r"a segment needs .* MB of memory"):
        vqcomp.decompress(archives[False], tmp_path / "out", compute=Compute(model=str(checkpoint)))


def test_a_network_that_is_loaded_needs_no_room_to_be_loaded_again(checkpoint, data, tmp_path, monkeypatch):
    token_external._loaded.cache_clear()
    everything = token_memory.weights_bytes(CONFIG, Precision()) + token_memory.work_bytes(CONFIG, Precision())
    everything += token_memory.segment_bytes(CONFIG, Precision(), 78)
    left = [everything]
    monkeypatch.setattr(token_memory, "available_bytes", lambda ops: left.pop() if left else everything - 1)
    vqcomp.compress(data, tmp_path / "out.zip", model=checkpoint, adapt=False)


def test_reckoned_memory_is_about_what_is_taken():
    engine = TokenGPT(CONFIG, ARRAYS.__getitem__, make_ops("numpy"))
    state = engine.start(5, 78)
    kept = sum(x.nbytes for pair in state.keys + state.values for x in pair)
    assert kept == 5 * token_memory.segment_bytes(CONFIG, Precision(), 78)
    wide = replace(CONFIG, dim=256, hidden=1024)
    tensors = arrays(network(wide))
    tracemalloc.start()
    try:
        TokenGPT(wide, tensors.__getitem__, make_ops("numpy"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.1 * token_memory.weights_bytes(wide, Precision()) < 2 * peak


def test_a_reader_that_does_not_know_the_kind_says_so(archives, monkeypatch):
    monkeypatch.delitem(KINDS, "token")
    with pytest.raises(FormatError, match=r'expected a codec among .*, found "token"; upgrade vqcomp'):
        vqcomp.open(archives[False])


def test_other_arithmetic_than_the_archives_is_refused(checkpoint):
    model, compute = model_of(checkpoint)
    wrong = parse_external(model)._replace(check=1).to_bytes()
    with pytest.raises(PlatformError, match="not exact on this machine"):
        make_codec(SPEC, wrong, compute=compute)


def test_a_cluster_is_refused(checkpoint, data, tmp_path):
    model, _ = model_of(checkpoint)
    with pytest.raises(InputError, match="leave --cluster out"):
        vqcomp.compress(data, tmp_path / "out.zip", model=checkpoint, cluster="local")
    with pytest.raises(InputError, match="leave --cluster out"):
        ClusterCodec(None, None, SPEC, model, False)


def test_what_takes_a_model_file_says_that_a_folder_is_none(checkpoint, data, tmp_path, capsys):
    for command in (["train", data, "-o", tmp_path / "a.vqm", "--init", checkpoint],
                    ["sample-data", tmp_path / "drawn", "--from", checkpoint]):  # fmt: skip
        assert run([*map(str, command)]) == 1
        assert "there is no model" in capsys.readouterr().err


def test_a_report_of_such_an_archive_is_refused(archives, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VQCOMP_MODEL", str(checkpoint))
    assert run(["report", str(archives[True]), "-o", str(tmp_path / "report.html")]) == 1
    assert "an external network" in capsys.readouterr().err


# ---- the description


def test_a_description_comes_back(checkpoint):
    model, _ = model_of(checkpoint, precision=(7, 15), keep_frames=1)
    external = parse_external(model)
    assert (external.config, external.spec, external.precision, external.keep) == (CONFIG, SPEC, Precision(1, 2), 1)
    assert External(*external).to_bytes() == model


TABLE = json.loads(External("model.safetensors", "", 9, "0" * 64, CONFIG, SPEC, Precision(), 3, 0).to_bytes().decode())
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2),
    st.sampled_from(["../model.safetensors", "hf://a", "hf://../..", "A" * 64, 1 << 70, -1, 0]),
)  # fmt: skip


@settings(deadline=None)
@given(st.sampled_from([None, *TABLE]), VALUES)
def test_any_description_is_read_or_refused(name, value):
    table = {key: x for key, x in TABLE.items() if key != name} if name is None else TABLE | {name: value}
    text = json.dumps(table).encode()
    try:
        external = parse_external(text)
    except ModelError:
        return
    assert "/" not in external.file
    assert external.keep < external.config.frames(external.spec)


@pytest.mark.parametrize("name", TABLE)
def test_a_description_that_lacks_something_is_refused(name):
    with pytest.raises(ModelError, match="external network"):
        parse_external(json.dumps({key: x for key, x in TABLE.items() if key != name}).encode())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_head": None}, "n_head: expected .* found null"),
        ({"keep": 6}, "keep: expected less than 6 frames, found 6"),
        ({"file": "../model.safetensors"}, "file: expected .* found"),
        ({"source": "hf://../.."}, "source: expected .* found"),
        ({"source": "http://a/b"}, "source: expected .* found"),
        ({"weight_bits": 14.0}, "weight_bits: expected 7|14, found 14.0"),
        ({"external": "\x1b[2J"}, r"external: expected \"gpt2\", found \"\\u001b\[2J\"; perhaps upgrade vqcomp"),
        ({"n_layer": "x" * 999}, "n_layer: expected .* found .{60};"),
        ({"more": "x" * 65536}, "a JSON object of at most 65,536 bytes"),
    ],
    ids=str,
)
def test_a_forged_description_is_refused_in_few_words(change, message):
    with pytest.raises(ModelError, match=f"external network: .*{message}") as caught:
        parse_external(json.dumps(TABLE | change).encode())
    assert len(str(caught.value)) < 200


def test_a_file_of_another_size_is_not_hashed(archives, tmp_path):
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelError, match="found another file: fetch the right one"):
        vqcomp.decompress(archives[True], tmp_path / "out", compute=Compute(model=str(tmp_path)))


def test_a_file_of_another_name_is_read_as_the_one_that_the_archive_names(archives, checkpoint, data, tmp_path):
    (tmp_path / "blob").write_bytes((checkpoint / "model.safetensors").read_bytes())
    with vqcomp.open(archives[False], Compute(model=str(tmp_path / "blob"))) as archive:
        np.testing.assert_array_equal(archive["1.npy"], loaded(data)["1.npy"])


def test_another_network_beside_decompress_py_does_not_hide_the_right_one(unpacked, checkpoint):
    (folder := unpacked(False)).joinpath("other").mkdir()
    (folder / "other/model.safetensors").write_bytes(b"of another kind")
    done = decompress(folder, VQCOMP_MODEL=str(checkpoint))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "nowhere\0", "/dev/zero", "hf://", "hf://a/b/c"])
def test_a_place_that_is_none_is_an_error_like_any_other(name, archives, data, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"say where it lies: VQCOMP_MODEL=DIR"):
        vqcomp.decompress(archives[True], tmp_path / "out", compute=Compute(model=name))
    with pytest.raises((ModelError, InputError)):
        vqcomp.compress(data, tmp_path / "out.zip", model=name)


# ---- streams


@KIND
@pytest.mark.parametrize("lengths", [(7,), (3, 9, 1), (2, 2)])
def test_groups_decode_to_what_was_encoded(adapt, lengths, checkpoint):
    model, compute = model_of(checkpoint, keep_frames=2)
    random = np.random.RandomState(0)
    group = [np.repeat(random.randint(0, 70, (1, 12, 1)), n, 0).astype(np.int32) for n in lengths]
    groups = [group] if adapt else [[segment] for segment in group]
    codec = make_codec(SPEC, model, adapt=adapt, compute=compute)
    told: list[int] = []
    streams = codec.encode(groups, told.append)
    decoded = codec.decode(streams, [[len(s) for s in group] for group in groups], told.append)
    for expected, found in zip(groups, decoded, strict=True):
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_array_equal(a, b)
    assert sum(told) == 2 * 12 * sum(lengths)


def test_learning_pays_where_the_network_knows_nothing(checkpoint):
    model, compute = model_of(checkpoint)
    still = [np.repeat(np.random.RandomState(0).randint(0, 70, (1, 12, 1)), 40, 0).astype(np.int32)]
    alone, mixed = (make_codec(SPEC, model, adapt=a, compute=compute).encode([still])[0] for a in (False, True))
    assert len(mixed) < 0.7 * len(alone)


@settings(max_examples=30, deadline=None)
@given(stream=st.binary(max_size=64).map(lambda b: b[: len(b) // 4 * 4]), adapt=st.booleans())
def test_any_stream_is_refused_or_gives_ids_in_range(stream, adapt, checkpoint):
    model, compute = model_of(checkpoint)
    try:
        ((found,),) = make_codec(SPEC, model, adapt=adapt, compute=compute).decode([stream], [[2]])
    except DamageError:
        return
    assert found.min() >= 0
    assert found.max() < 70


def test_the_stream_is_as_the_format_has_it(checkpoint, data):
    """Decisions place by place, level by level, segment by segment; segments in the order of `lockstep`."""
    model, compute = model_of(checkpoint)
    group, order = segments(data), []
    codec = make_codec(SPEC, model, adapt=True, compute=compute)
    mixer = codec._mixer(len(group))
    encoded = {}
    for active, first, steps, _ in codec.windows.known(group):
        for t in range(first, first + steps):
            encoded[t] = list(active)
    order = {t: members for members, t, _ in lockstep([len(s) for s in group])}
    assert encoded == order
    assert mixer.levels == 7
    bits = []
    put = vqcomp.runtime.coder.Encoder.put_bits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            vqcomp.runtime.coder.Encoder,
            "put_bits",
            lambda self, b, ones: bits.append(np.array(b)) or put(self, b, ones),
        )
        codec.encode([group])
    frames = [b for b in bits if len(b) > 1]
    assert len(frames) == max(len(s) for s in group)
    for t, found in enumerate(frames):
        expected = [
            (int(group[i][t, s, 0]) >> (6 - level)) & 1 for s in range(12) for level in range(7) for i in order[t]
        ]
        np.testing.assert_array_equal(found, expected)


def test_places_are_predicted_one_by_one_as_in_their_frame():
    random = np.random.RandomState(0)
    mixer = PlaceMixer(SPEC, 0, 3, random.randint(-90, 90, (70, 64)))
    tokens = random.randint(0, 70, (1, 3, 12)).repeat(5, 0)
    tokens[:, :, ::3] = random.randint(0, 70, tokens[:, :, ::3].shape)
    level = np.arange(7)[:, None]
    for t, frame in enumerate(tokens):
        frame = frame[: 3 if t < 3 else 2]  # one of the segments ends
        given = random.randint(1, 1 << 18, (*frame.shape, 70)).astype(np.float32)
        mixer.begin(np.zeros((*frame.shape, 0), np.int64))
        node = ((1 << level) | (frame.reshape(-1) >> (7 - level))).reshape(7, *frame.shape)
        found = np.empty(node.shape)
        for s in range(12):
            place = mixer.of_place(s, given[:, s])
            for row in range(7):
                found[row, :, s] = place.predict(row, node[row : row + 1, :, s])[0]
        mixer.hear(given.reshape(-1, 70))
        np.testing.assert_array_equal(mixer.predict(0, node.reshape(7, -1)), found.reshape(7, -1))
        mixer.update((frame.reshape(-1) >> (6 - level)) & 1, frame)


# ---- imagining


@pytest.fixture(scope="session")
def futures(data, checkpoint):
    def imagine(device="numpy", batch_size=16, **options):
        out = data.parent / f"future-{device}-{batch_size}.npy"
        arguments = {"frames": 8, "samples": 3, "sampling": Sampling(seed=7), "force": True, **options}
        paths = imagine_tokens(
            str(data / "2.npy"), out, model=checkpoint, compute=Compute(device, batch_size=batch_size), **arguments
        )
        return [np.load(path) for path in paths]

    return imagine


@BACKEND
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_the_same_seed_gives_the_same_future(device, batch_size, futures, data):
    expected = futures()
    found = futures(device, batch_size)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a[:9], loaded(data)["2.npy"])
        assert a.dtype == np.int16
    assert len({x.tobytes() for x in expected}) == 3
    assert futures(sampling=Sampling(seed=8))[0].tobytes() != expected[0].tobytes()


def test_little_memory_changes_no_future(futures, monkeypatch):
    expected = futures()
    one = token_memory.work_bytes(CONFIG, Precision()) + token_memory.segment_bytes(CONFIG, Precision(), 78)
    monkeypatch.setattr(token_memory, "available_bytes", lambda ops: one)
    monkeypatch.setattr("vqcomp.runtime.token_external.require_memory", lambda *_: None)
    for a, b in zip(expected, futures(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("prompt", [0, 1, 5, 6, 9])
@pytest.mark.parametrize("keep", [0, 3])
def test_the_likeliest_future_is_what_the_codec_finds_likeliest(prompt, keep, data, checkpoint):
    """Token by token and all at once, with windows that slide in the prompt, at its end, and after it."""
    windows = TokenWindows(TokenGPT(CONFIG, ARRAYS.__getitem__, make_ops("cpu")), SPEC, keep)
    known = segments(data)[0][:prompt]
    (drawn,) = TokenImaginer(windows).imagine(known, 9, 1, Sampling(temperature=0), 1, lambda n: None)
    whole = np.concatenate([known, drawn])
    best = {}
    for _, first, steps, logits in windows.known([whole]):
        for t, row in enumerate(windows.engine.ops.host(logits).reshape(steps, 12, -1).argmax(-1), first):
            best[t] = row
    np.testing.assert_array_equal([best[t] for t in range(prompt, len(whole))], drawn[:, :, 0])


def test_imagining_goes_on_from_an_archive_by_its_own_network(archives, checkpoint, data, tmp_path, monkeypatch):
    monkeypatch.setenv("VQCOMP_MODEL", str(checkpoint))
    options = {"frames": 3, "sampling": Sampling(seed=1)}
    imagine_tokens(f"{archives[True]}:2.npy", tmp_path / "a.npy", **options)
    imagine_tokens(str(data / "2.npy"), tmp_path / "b.npy", model=checkpoint, **options)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


@pytest.mark.parametrize("options", [["--learn"], ["--steps", "2"]])
def test_imagining_in_other_ways_is_refused(options, checkpoint, data, tmp_path, capsys):
    out = str(tmp_path / "out.npy")
    assert run(["imagine", str(data / "2.npy"), "-o", out, "--model", str(checkpoint), *options]) == 1
    assert "leave --learn and --steps out" in capsys.readouterr().err


# ---- the hub

PRELUDE = "import sys; from vqcomp.cli import run; sys.exit(run(sys.argv[1:]))"


@pytest.fixture
def server(checkpoint):
    pytest.importorskip("huggingface_hub")
    with serving() as server:
        for revision in ("main", COMMIT):
            for name in ("config.json", "model.safetensors"):
                server.files["models", HUB, revision, name] = (checkpoint / name).read_bytes()
        yield server


@pytest.fixture
def command(tmp_path, server):
    """Runs `vqcomp ...` in a process whose hub is the server, with a cache of this name."""

    def call(cache, *arguments, **environment):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        own = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / cache), "NO_PROXY": "127.0.0.1"}
        return subprocess.run(
            [sys.executable, "-c", PRELUDE, *map(str, arguments)], capture_output=True, text=True, check=False,
            env={**clean, **own, **environment}, cwd=REPOSITORY,
        )  # fmt: skip

    return call


def test_a_network_on_the_hub_is_pinned_and_fetched_again_where_it_is_missing(command, server, data, tmp_path):
    out = tmp_path / "out.zip"
    done = command("one", "compress", data, out, "--model", f"hf://{HUB}", "--no-adapt")
    assert done.returncode == 0, done.stderr
    assert described(out)["source"] == f"hf://{HUB}@{COMMIT}"
    done = command("two", "decompress", out, "-o", tmp_path / "restored")
    assert done.returncode == 0, done.stderr
    assert f"the archive names a network: model.safetensors of hf://{HUB}@{COMMIT}" in done.stderr
    for name, array in loaded(data).items():
        np.testing.assert_array_equal(np.load(tmp_path / "restored" / name), array)
    done = command("three", "test", out, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert f", from hf://{HUB}@{COMMIT}; it cannot be fetched: " in done.stderr
    server.files["models", HUB, COMMIT, "model.safetensors"] = b"another"
    done = command("four", "test", out)
    assert done.returncode == 1
    assert "found another file" in done.stderr


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ("model.safetensors", "expected model.safetensors or pytorch_model.bin in the repository, found neither"),
        ("config.json", "expected the shape (1025, 1024), found (71, 64)"),
    ],
)
def test_a_repository_without_weights_is_refused_and_without_config_has_gpt2ms_shape(
    command, server, data, tmp_path, lacking, message
):
    for revision in ("main", COMMIT):
        del server.files["models", HUB, revision, lacking]
    done = command("one", "compress", data, tmp_path / "out.zip", "--model", f"hf://{HUB}")
    assert done.returncode == 1
    assert message in done.stderr


# ---- FORMAT.md, section 11

TINY = TokenConfig(layers=2, heads=2, dim=16, positions=3 * 7 + 2, vocabulary=41, hidden=20)
TINY_SPEC = TokenSpec(2, 3, (40,))


def tiny(precision, hidden=20, dim=16, **replaced):
    """(a description, tensors), as a writer would have them."""
    config = replace(TINY, hidden=hidden, dim=dim)
    tensors = {**arrays(network(config, 0.3)), **replaced}
    external = External("model.safetensors", "", 9, "0" * 64, config, TINY_SPEC, precision, 1, 0)
    check = self_test(TokenGPT(config, tensors.__getitem__, make_ops("numpy"), precision))
    return external._replace(check=check), tensors


@pytest.mark.parametrize("precision", [Precision(w, a) for w in (1, 2) for a in (1, 2)], ids=str)
def test_the_network_is_as_the_format_has_it(precision):
    external, tensors = tiny(precision)
    reference = Reference(json.loads(external.to_bytes()), tensors)
    engine = TokenGPT(external.config, tensors.__getitem__, make_ops("numpy"), precision)
    ids = np.random.RandomState(0).randint(0, 41, (1, 20))
    logits = engine.logits(engine.forward(engine.start(1), ids))
    assert logits.std() > 64
    np.testing.assert_array_equal(reference.logits(ids[0].tolist()), logits)
    assert reference.self_test() == external.check


def test_wide_sums_and_large_and_tiny_weights_are_as_the_format_has_them():
    random = np.random.RandomState(1)
    external, tensors = tiny(
        Precision(), 4100,
        **{"transformer.h.0.mlp.c_proj.weight": random.choice([0.01, -0.01, 0.009], (4100, 16)).astype(np.float32),
           "transformer.h.0.mlp.c_fc.weight": np.zeros((16, 4100), np.float32),
           "transformer.h.0.mlp.c_fc.bias": np.full(4100, 3.0, np.float32),
           "transformer.h.1.mlp.c_fc.weight": np.full((16, 4100), 1e-42, np.float32),
           "transformer.h.1.attn.c_proj.bias": np.full(16, 1e9, np.float32)},
    )  # fmt: skip
    reference = Reference(json.loads(external.to_bytes()), tensors)
    engine = TokenGPT(external.config, tensors.__getitem__, make_ops("cpu"))
    ids = random.randint(0, 41, (1, 4))
    logits = engine.ops.host(engine.logits(engine.forward(engine.start(1), ids)))
    np.testing.assert_array_equal(reference.logits(ids[0].tolist()), logits)


@pytest.mark.parametrize(("adapt", "dim"), [(False, 16), (True, 16), (True, 130)])
def test_streams_are_read_by_a_decoder_that_was_written_from_the_format(adapt, dim):
    external, tensors = tiny(Precision(), dim=dim)
    windows = TokenWindows(TokenGPT(external.config, tensors.__getitem__, make_ops("numpy")), TINY_SPEC, 1)
    drawn = TokenImaginer(windows).imagine(np.zeros((0, 6, 1), np.int32), 5, 2, Sampling(), 8, lambda n: None)
    lengths, group = [3, 5], [drawn[0, :3], drawn[1]]
    reference = Reference(json.loads(external.to_bytes()), tensors)
    if adapt:
        (stream,) = TokenMixedCodec(windows).encode([group])
        found = decode(reference, "token-mixed", stream, lengths)
    else:
        streams = TokenCodec(windows).encode([[segment] for segment in group])
        found = [decode(reference, "token", s, [n])[0] for s, n in zip(streams, lengths, strict=True)]
    for a, b in zip(found, group, strict=True):
        np.testing.assert_array_equal(a, b[:, :, 0])
