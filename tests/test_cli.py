"""The command line: what it prints, its exit codes, and that a run that fails leaves nothing behind."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import REPOSITORY, files_in, tokens

import vqcomp
from vqcomp.archive import writer as container
from vqcomp.choice import Chooser
from vqcomp.cli import run
from vqcomp.cli.progress import TrainingBar
from vqcomp.estimates import Estimate
from vqcomp.runtime import layout as format

COMMAND = [sys.executable, "-m", "vqcomp"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
SUMMARY = [
    "segments", "tokens", "raw_bytes", "zip_bytes", "payload_bytes", "weights_bytes", "runtime_bytes", "files_bytes",
    "rate",
    "payload_bits_per_token", "seconds", "tokens_per_second", "skipped", "left_out",
]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder with three small segments in data/."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(["a.npy", "b/c.npy", "b/d"]):
        path = Path("data") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as handle:
            np.save(handle, tokens((2 + i, 2, 3), 30, seed=i))
    return tmp_path


@pytest.fixture
def zipped(here):
    assert run(["compress", "data", "out.zip", "-q", "--model", "none"]) == 0
    return here


# ---- verbs


def test_compress_decompress_evaluate_go_round(here, capsys):
    assert run(["compress", "data", "out.zip"]) == 0
    shown = capsys.readouterr()
    assert "3 segments, 54 tokens" in shown.out
    assert "payload" in shown.out
    assert "Compression rate: " in shown.out
    assert shown.err.startswith("note: the decoder outweighs the data")
    assert run(["decompress", "out.zip", "-o", "back"]) == 0
    assert "restored 3 files into back" in capsys.readouterr().err
    assert files_in(Path("back")) == files_in(Path("data")) == {"a.npy", "b/c.npy", "b/d"}
    for name in files_in(Path("data")):
        assert (Path("back") / name).read_bytes() == (Path("data") / name).read_bytes()
    assert run(["evaluate", "out.zip", "data"]) == 0
    with vqcomp.open("out.zip") as archive:
        rate = archive.raw_bytes / Path("out.zip").stat().st_size
    assert capsys.readouterr().out == f"Compression rate: {rate:.4f}\n"


def test_the_default_output_folder_is_decompressed(zipped):
    assert run(["decompress", "out.zip", "-q"]) == 0
    assert files_in(Path("decompressed")) == files_in(Path("data"))


@pytest.mark.parametrize(
    "arguments", [["compress", "data", "new.zip"], ["test", "out.zip"], ["evaluate", "out.zip", "data"]]
)
def test_json_is_one_object_with_the_documented_fields(zipped, capsys, arguments):
    assert run([*arguments, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert list(summary) == SUMMARY
    assert (summary["segments"], summary["tokens"]) == (3, 54)
    assert summary["raw_bytes"] == -(-54 * 5 // 8)
    assert summary["rate"] == summary["raw_bytes"] / summary["zip_bytes"]
    assert summary["tokens_per_second"] == summary["tokens"] / summary["seconds"]


def test_errors_are_json_too_where_json_is_asked_for(zipped, capsys):
    Path("out.zip").write_bytes(Path("out.zip").read_bytes()[:-9])
    assert run(["test", "out.zip", "--json"]) == 3
    shown = capsys.readouterr()
    assert shown.err == f"error: {json.loads(shown.out)['error']}\n"


def test_list_shows_segments_without_decoding(zipped, capsys, monkeypatch):
    monkeypatch.setattr("vqcomp.runtime.reader.codec_of", None)
    assert run(["list", "out.zip"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["a.npy", "<i2", "2x2x3"]
    assert lines[5].startswith(f"format {format.FORMAT}, written by vqcomp ")
    assert run(["list", "out.zip", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [s["name"] for s in table["segments"]] == ["a.npy", "b/c.npy", "b/d"]
    assert [s["shape"] for s in table["segments"]] == [[2, 2, 3], [3, 2, 3], [4, 2, 3]]
    assert {s["codec"] for s in table["segments"]} == {"adaptive"}
    assert table["format"] == format.FORMAT
    assert table["model"] is None
    assert table["zip_bytes"] == Path("out.zip").stat().st_size
    assert sum(s["bytes"] for s in table["segments"]) == pytest.approx(table["payload_bytes"], abs=2)


def test_list_names_the_model(here, tiny_model, capsys):
    np.save("x.npy", tokens((2, 3, 4)))
    assert run(["compress", "x.npy", "out.zip", "-q", "--model", str(tiny_model)]) == 0
    assert run(["list", "out.zip", "--json"]) == 0
    model = json.loads(capsys.readouterr().out)["model"]
    assert model["bytes"] == tiny_model.stat().st_size
    assert model["name"] is None
    assert run(["list", "out.zip"]) == 0
    assert f"sha256 {model['sha256']}" in capsys.readouterr().out


@pytest.mark.parametrize("how", [["--only", "a.npy", "--only", "b/d"], ["--only", "a.npy", "b/d"], ["a.npy", "b/d"]])
def test_some_segments_alone_are_restored(zipped, how):
    assert run(["decompress", "out.zip", *how]) == 0
    assert files_in(Path("decompressed")) == {"a.npy", "b/d"}


def test_quiet_is_silent_and_verbose_explains(here, capsys):
    assert run(["compress", "data", "out.zip", "-q"]) == 0
    assert run(["decompress", "out.zip", "-q"]) == 0
    assert run(["test", "out.zip", "-q"]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")
    (here / "data/notes.txt").touch()
    assert run(["compress", "data", "out2.zip"]) == 0
    assert "left out, no tokens: 1 file" in capsys.readouterr().err
    assert run(["compress", "data", "out3.zip", "-v"]) == 0
    shown = capsys.readouterr().err
    assert "left out, no tokens: notes.txt" in shown
    assert "model: none" in shown
    assert run(["decompress", "out.zip", "-v", "-o", "x"]) == 0
    assert capsys.readouterr().err.splitlines()[:3] == ["a.npy", "b/c.npy", "b/d"]


def test_sample_data_is_synthetic_by_name_repeatable_and_never_overwrites(here, capsys):
    arguments = ["sample-data", "s", "--segments", "2", "--frames", "5", "--seed", "7"]
    assert run(arguments) == 0
    assert files_in(here / "s") == {"synthetic-000.npy", "synthetic-001.npy"}
    first = np.load("s/synthetic-000.npy")
    assert (first.dtype, first.shape) == (np.int16, (5, 8, 16))
    assert first.min() >= 0
    assert first.max() < 1024
    assert not np.array_equal(first, np.load("s/synthetic-001.npy"))
    assert run(arguments) == 1
    assert "synthetic-000.npy: exists already; -f overwrites it" in capsys.readouterr().err
    assert run([*arguments, "-f"]) == 0
    np.testing.assert_array_equal(first, np.load("s/synthetic-000.npy"))


def test_sample_data_moves_and_compresses(here, capsys):
    run(["sample-data", "s", "--segments", "1", "--frames", "60"])
    array = np.load("s/synthetic-000.npy")
    still = (array[1:] == array[:-1]).mean()
    assert 0.2 < still < 0.95
    run(["compress", "s", "s.zip", "--json", "--model", "none"])
    assert 3 < json.loads(capsys.readouterr().out)["payload_bits_per_token"] < 9


TRAINED = {f"ring.{suffix}" for suffix in ("vqm", "md", "csv", "ckpt")}


def test_a_model_that_was_trained_compresses(here, capsys):
    pytest.importorskip("torch")
    ring = np.random.RandomState(0).randint(0, 9, (3, 32))
    np.save("ring.npy", np.stack([ring[:, np.arange(t, t + 4) % 32] for t in range(60)]))
    arguments = ["train", "ring.npy", "-o", "ring.vqm", "--steps", "3", "--held-out", "20", "--seed", "1"]
    arguments += ["--batch-size", "1", "-T", "1"]
    assert run(arguments) == 0
    shown = capsys.readouterr().err
    assert "step 3/3" in shown
    assert f"ring.vqm: {Path('ring.vqm').stat().st_size:,} bytes" in shown
    assert run(["compress", "ring.npy", "ring.zip", "--model", "ring.vqm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights_bytes"] == Path("ring.vqm").stat().st_size
    assert run(arguments) == 1
    assert "ring.vqm: exists already; -f overwrites it" in capsys.readouterr().err
    assert run(["train", "data", "-o", "x.vqm"]) == 1
    assert "every segment needs" in capsys.readouterr().err
    assert files_in(here) == {"data/a.npy", "data/b/c.npy", "data/b/d", "ring.npy", "ring.zip"} | TRAINED


@pytest.fixture
def ring(here):
    """Frames of 3 x 4 tokens that move, in ring.npy."""
    pytest.importorskip("torch")
    ring = np.random.RandomState(0).randint(0, 9, (3, 32))
    np.save("ring.npy", np.stack([ring[:, np.arange(t, t + 4) % 32] for t in range(60)]))
    return ["train", "ring.npy", "-o", "ring.vqm", "--preset", "nano", "--steps", "2", "--held-out", "20", "-T", "1"]


def test_a_training_leaves_a_log_and_a_card_that_say_what_was_done(ring, capsys):
    arguments = [*ring, "--set", "evaluate_every=1", "--set", "dropout=0.25", "--for-segments", "20"]
    assert run(arguments) == 0
    rows = list(csv.DictReader(Path("ring.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["1", "2"]
    card, size = Path("ring.md").read_text(), Path("ring.vqm").stat().st_size
    assert f"{size:,} bytes" in card
    assert hashlib.sha256(Path("ring.vqm").read_bytes()).hexdigest() in card
    assert "    vqcomp train ring.npy -o ring.vqm" in card
    assert '"dropout": 0.25' in card
    assert "40 of 60 frames of 1 segment (`ring.npy`): 480 tokens" in card
    assert min(float(row["held_out_bits"]) for row in rows) == pytest.approx(
        float(re.search(r"given their past \| (\d+\.\d+) bits/token; the same weights in float", card)[1]), abs=6e-5
    )
    served = int(rows[-1]["weights_bytes"]) + round(float(rows[-1]["held_out_bits"]) * 20 * 720 / 8)
    assert int(rows[-1]["zip_bytes"]) == pytest.approx(served, abs=1)


def test_a_training_that_was_begun_is_neither_forgotten_nor_replaced_by_accident(ring, capsys):
    show = TrainingBar.show

    def interrupt(self, moment):
        show(self, moment)
        if moment.step == 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingBar, "show", interrupt)
        assert run(ring) == 130
    assert "interrupted after step 2: the same command with --resume goes on" in capsys.readouterr().err
    assert not Path("ring.vqm").exists()
    assert run(ring) == 1
    assert "ring.ckpt: a training was begun; --resume goes on with it; -f overwrites it" in capsys.readouterr().err
    assert run([*ring, "--seed", "5", "--resume"]) == 1
    assert "whose settings differ: seed was 0, now it is 5" in capsys.readouterr().err
    assert run([*ring, "--resume"]) == 0
    assert "going on after step 2" in capsys.readouterr().err
    assert Path("ring.vqm").exists()


def test_a_training_starts_from_a_model_of_the_same_tokens_only(ring, capsys):
    from vqcomp.training.fit import FINE_TUNING
    from vqcomp.training.presets import PRESETS

    assert run(ring) == 0
    again = ["train", "ring.npy", "-o", "again.vqm", "--steps", "1", "-T", "1"]
    assert run([*again, "--init", "ring.vqm", "--held-out", "20"]) == 0
    card = Path("again.md").read_text()
    assert "64, 1 spatial and 1 temporal heads" in card  # nano, as ring.vqm
    settings = json.loads(card.split("```json")[1].split("```")[0])
    assert settings["muon_rate"] == pytest.approx(FINE_TUNING * PRESETS["nano"].settings["muon_rate"])
    capsys.readouterr()
    for init, more, message in (
        ("commavq-nano", [], "it predicts frames of 8 x 16 tokens of 1,024 ids, the data have 3 x 4 tokens of 9 ids"),
        ("ring.vqm", ["--preset", "small"], "leave --preset out"),
        ("auto", [], "--init auto: expected one model"),
        ("missing.vqm", [], "no model missing.vqm"),
    ):
        assert run([*again, "-f", "--init", init, *more]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--time", "20"], 2, "expected a time such as 90s, 20m or 2h, found 20"),
        (["--time", "0s"], 2, "expected a time"),
        (["--set", "dropout"], 2, "expected FIELD=VALUE"),
        (["--set", "drop=1"], 1, "no setting 'drop'"),
        (["-o", "ring.md"], 1, "ring.md: expected the name of a .vqm, its card and log get names like this"),
        (["--set", "frames=50"], 1, "every segment needs 50 frames besides the 20 held out"),
        (["--device", "tpu"], 1, "training expects auto, cpu or cuda"),
        (["--preset", "giant"], 1, "no preset 'giant'"),
    ],
)
def test_wrong_options_of_a_training_are_explained(ring, arguments, code, message, capsys):
    before = files_in(Path())
    assert run([*ring, *arguments]) == code
    assert message in capsys.readouterr().err
    assert files_in(Path()) == before


def test_a_training_lasts_as_long_as_it_is_told(ring, capsys):
    assert run([*ring[:-4], "--held-out", "0", "--time", "0.5s", "-T", "1", "-q"]) == 0
    rows = list(csv.DictReader(Path("ring.csv").read_text().splitlines()))
    assert float(rows[-1]["seconds"]) >= 0.5
    assert rows[-1]["held_out_bits"] == "nan"
    assert capsys.readouterr().err == ""


def test_a_network_that_is_trained_on_the_data_is_weighed(ring, capsys, monkeypatch, told):
    assert run(["compress", "ring.npy", "ring.zip", "--train", "0.2s", "-v", "-T", "1"]) == 0
    shown = capsys.readouterr()
    assert "training for 0 s: a new pico" in shown.err
    assert "trained on the data was not weighed: its weights alone take more than the raw tokens" in shown.err
    assert "weights              0 bytes" in shown.out

    estimates = {model: Estimate(model, 0, 0, 0, "") for model in ("commavq-pico", "trained on the data")}
    monkeypatch.setattr("vqcomp.choice.Estimator", told(Estimate("none", 1 << 30, 0, 0, ""), estimates, 0))
    monkeypatch.setattr(Chooser, "_raw_bytes", lambda self, spec: 1 << 30)
    assert run(["compress", "ring.npy", "ring.zip", "--train", "0.2s", "-v", "-T", "1", "-f"]) == 0
    shown = capsys.readouterr()
    assert "model: trained on the data" in shown.err
    assert "weights              0 bytes" not in shown.out
    assert run(["evaluate", "ring.zip", "ring.npy"]) == 0
    assert files_in(Path()) >= {"ring.npy", "ring.zip"} and not list(Path().glob(".vqcomp*"))


def test_data_that_no_network_can_be_trained_on_are_compressed_all_the_same(zipped, capsys):
    pytest.importorskip("torch")
    assert run(["compress", "data", "out.zip", "-f", "-v", "--train", "1s"]) == 0
    assert "no network was trained on the data: training: expected a segment of 16 frames" in capsys.readouterr().err
    assert run(["compress", "data", "out.zip", "-f", "--train", "1s", "--model", "none"]) == 1
    assert "for --model auto" in capsys.readouterr().err


# ---- errors


def compress_error(*arguments):
    return ["compress", *arguments, "--model", "none"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (compress_error("missing", "x.zip"), 1, "there is no such file or folder"),
        (compress_error("data", "out.zip"), 1, "out.zip: exists already; -f overwrites it"),
        (compress_error("data", "data"), 1, "expected the name of a zip to write, found a folder"),
        (compress_error("data", "no/such/x.zip"), 1, "no such folder"),
        (compress_error("data/a.npy", "data/a.npy", "-f"), 1, "the output would replace the input"),
        (compress_error("data/a.npy", "data/../data/a.npy", "-f"), 1, "the output would replace the input"),
        (compress_error("data", "data/a.npy", "-f"), 1, "the output would replace the input"),
        (compress_error("floats.npy", "x.zip"), 1, "floats.npy: expected an array of integers, found float64"),
        (compress_error("flat.npy", "x.zip"), 1, "flat.npy: 10 tokens per frame, but no --grid"),
        (compress_error("negative.npy", "x.zip"), 1, "negative.npy: expected ids in 0..65535, found -1"),
        (["compress", "data", "x.zip", "--model", "nothing"], 1, "no model nothing"),
        (["compress", "data", "x.zip", "--model", "floats.npy"], 1, "not a vqcomp model"),
        (["decompress", "missing.zip"], 1, "missing.zip: missing: there is no such file"),
        (["decompress", "floats.npy"], 3, "floats.npy: expected a zip written by vqcomp"),
        (["decompress", "data"], 3, "no vqcomp/manifest.json inside"),
        (["decompress", "out.zip", "-o", "data"], 1, "a.npy: exists already; -f overwrites it"),
        (["decompress", "out.zip", "-o", "floats.npy"], 1, "floats.npy: expected a folder, found a file"),
        (["decompress", "out.zip", "-o", "floats.npy/x"], 1, "expected a folder, found a file"),
        (["decompress", "out.zip", "--only", "zzz"], 1, "no zzz in the archive"),
        (["test", "floats.npy"], 3, "expected a zip"),
        (["list", "floats.npy"], 3, "expected a zip"),
        (["evaluate", "out.zip", "flat.npy", "--grid", "2x5"], 1, "not in the data"),
        (["evaluate", "out.zip", "other"], 1, "does not hold what other/a.npy does: 1 of 12 tokens, "),
        (["evaluate", "out.zip", "more"], 1, "1 segments of the data are not in the archive, the first is z.npy"),
        (["nonsense"], 2, "No such command"),
        (["compress"], 2, "missing DATA and OUT"),
        (["compress", "data", "x.zip", "--nonsense"], 2, "No such option"),
        (["compress", "data", "x.zip", "--batch-size", "0"], 2, "batch-size"),
        (["compress", "data", "x.zip", "-T", "none"], 2, "threads"),
        (["compress", "data", "x.zip", "--grid", "8by16"], 2, "expected HEIGHTxWIDTH such as 8x16, found 8by16"),
        (["compress", "data", "x.zip", "--device", "abacus"], 2, "expected auto, numpy, cpu, cuda or cuda:N, found"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong_and_leave_nothing_behind(zipped, tiny_model, capsys, arguments, code, message):
    np.save("floats.npy", np.zeros((2, 2, 3)))
    np.save("flat.npy", tokens((2, 10)))
    np.save("negative.npy", np.full((2, 2, 3), -1))
    Path("tiny.vqm").write_bytes(tiny_model.read_bytes())
    for folder in ("other", "more"):
        with vqcomp.open("out.zip") as archive:
            for name in archive:
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                array = archive[name]
                array[0, 0, 0] += name == "a.npy" and folder == "other"
                with path.open("wb") as handle:
                    np.save(handle, array)
    np.save("more/z.npy", tokens((2, 2, 3)))
    if "tiny.vqm" in arguments:
        np.save("data/a.npy", tokens((2, 3, 4)))
    before = {name: Path(name).read_bytes() for name in files_in(zipped)}
    folders = {p for p in zipped.rglob("*") if p.is_dir()}
    assert run(arguments) == code
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""
    assert "Traceback" not in shown.err
    assert {name: Path(name).read_bytes() for name in files_in(zipped)} == before
    assert {p for p in zipped.rglob("*") if p.is_dir()} == folders


def test_force_overwrites(zipped):
    Path("data/a.npy").unlink()
    assert run(["compress", "data", "out.zip", "-q", "-f"]) == 0
    assert run(["decompress", "out.zip", "-q"]) == 0
    Path("decompressed/b/d").write_bytes(b"else")
    assert run(["decompress", "out.zip", "-q"]) == 1
    assert Path("decompressed/b/d").read_bytes() == b"else"
    assert run(["decompress", "out.zip", "-q", "-f"]) == 0
    assert Path("decompressed/b/d").read_bytes() == Path("data/b/d").read_bytes()


def test_damage_gives_exit_code_3_names_what_is_lost_and_restores_the_rest(here, capsys):
    np.save("data/wide.npy", tokens((2, 4, 4), 9))
    assert run(["compress", "data", "out.zip", "-q", "--model", "none"]) == 0
    with vqcomp.open("out.zip") as archive:
        group = archive.manifest.groups[0]
        assert {archive.segments[i].name for i in group.segments} == {"a.npy", "b/c.npy", "b/d"}
        position = archive._start + group.offset
    content = bytearray(Path("out.zip").read_bytes())
    content[position] ^= 1
    Path("out.zip").write_bytes(content)
    assert run(["decompress", "out.zip"]) == 3
    shown = capsys.readouterr().err
    assert "3 of 4 files are lost" in shown
    assert all(f"  {name}: " in shown for name in ("a.npy", "b/c.npy", "b/d"))
    assert files_in(Path("decompressed")) == {"wide.npy"}
    assert (Path("decompressed/wide.npy")).read_bytes() == Path("data/wide.npy").read_bytes()
    assert run(["test", "out.zip"]) == 3
    assert "3 of 4 files are lost" in capsys.readouterr().err
    assert run(["evaluate", "out.zip", "data"]) == 3
    assert run(["decompress", "out.zip", "-o", "x", "--only", "wide.npy"]) == 0


def test_a_link_that_leads_out_of_the_output_folder_is_not_followed(zipped, capsys):
    (zipped / "elsewhere").mkdir()
    (zipped / "decompressed").mkdir()
    (zipped / "decompressed/b").symlink_to(zipped / "elsewhere")
    assert run(["decompress", "out.zip"]) == 3
    assert "leads out of decompressed" in capsys.readouterr().err
    assert files_in(zipped / "elsewhere") == set()
    assert files_in(zipped / "decompressed") == set()


def test_a_full_disk_is_reported_and_nothing_is_left(zipped, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    before = files_in(zipped)
    monkeypatch.setattr(container.Writer, "add", full)
    assert run(["compress", "data", "new.zip"]) == 1
    shown = capsys.readouterr().err
    assert "new.zip: cannot be written: No space left on device" in shown
    assert "bytes free" in shown
    monkeypatch.setattr(np, "save", full)
    assert run(["decompress", "out.zip"]) == 1
    assert "a.npy: cannot be written: No space left on device" in capsys.readouterr().err
    assert files_in(zipped) == before
    assert not Path("decompressed").exists()


def test_too_little_disk_is_noticed_before_the_work(zipped, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    before = files_in(zipped)
    assert run(["compress", "data", "new.zip"]) == 1
    assert "too little disk: 3 bytes are needed, 0 are free" in capsys.readouterr().err
    assert run(["decompress", "out.zip"]) == 1
    assert "too little disk" in capsys.readouterr().err
    assert files_in(zipped) == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX limits")
def test_a_write_that_really_fails_leaves_nothing(zipped):
    before = files_in(zipped)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); "
        "from vqcomp.cli import run; sys.exit(run(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "compress", "data", "new.zip", "--model", "none"],
        env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "new.zip: cannot be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert files_in(zipped) == before


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")])
def test_too_little_memory_is_an_error_with_a_remedy(zipped, capsys, monkeypatch, error):
    def exhausted(*_, **__):
        raise error

    monkeypatch.setattr("vqcomp.api.compress", exhausted)
    assert run(["compress", "data", "new.zip"]) == 1
    assert "out of memory; try a smaller --batch-size" in capsys.readouterr().err


def test_an_interrupt_has_its_own_exit_code_and_leaves_nothing(zipped, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    before = files_in(zipped)
    with monkeypatch.context() as patch:
        patch.setattr(container.Writer, "add", interrupted)
        assert run(["compress", "data", "new.zip"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"
    saved = []

    def save_once(handle, array, save=np.save):
        if saved:
            raise KeyboardInterrupt
        saved.append(save(handle, array))

    monkeypatch.setattr(np, "save", save_once)
    assert run(["decompress", "out.zip", "-o", "some/where"]) == 130
    assert saved
    assert files_in(zipped) == before
    assert not Path("some").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.parametrize("verb", ["compress", "decompress"])
def test_a_run_that_is_killed_leaves_nothing(zipped, verb, name, code):
    # Slow enough to be caught at work, once its temporary file is there.
    slow = (
        # Whoever runs the tests may ignore these (a shell's background jobs, nohup), and children inherit that.
        "import signal, sys, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\nfrom vqcomp import cli\nimport numpy\n"
        "from vqcomp.archive import writer as container\n"
        "def slowly(f):\n    def call(*a):\n        f(*a)\n        print('at work', flush=True)\n"
        "        time.sleep(60)\n    return call\n"
        "container.Writer.add = slowly(container.Writer.add)\nnumpy.save = slowly(numpy.save)\n"
        "sys.argv[0] = 'vqcomp'\ncli.main()\n"
    )
    before = files_in(zipped)
    arguments = {"compress": ["data", "new.zip", "--model", "none"], "decompress": ["out.zip"]}
    process = subprocess.Popen(
        [sys.executable, "-c", slow, verb, *arguments[verb]],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "at work\n"
    # Where the system has files without a name, what compress writes is one until it is whole.
    assert len(files_in(zipped) - before) <= 1
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert files_in(zipped) == before
    assert not Path("decompressed").exists()


# ---- manners


@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], ["compress", "--help"], ["list", "out.zip"], ["list", "out.zip", "--json"]]
)
def test_torch_is_not_imported_where_it_is_not_needed(zipped, arguments):
    code = "import sys; from vqcomp.cli import run; code = run(sys.argv[1:]); sys.exit(code or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=ENVIRONMENT, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout


def test_version_is_one_line(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"vqcomp {vqcomp.__version__}\n"


@pytest.mark.parametrize("verb", ["compress", "decompress", "test", "list", "evaluate", "train", "sample-data"])
def test_every_verb_explains_itself(verb, capsys):
    assert run([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Usage: vqcomp {verb} ")
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert run(["--help"]) == 0
    assert f"\n  {verb} " in capsys.readouterr().out


def test_no_progress_bar_where_standard_error_is_no_terminal(zipped):
    done = subprocess.run([*COMMAND, "test", "out.zip"], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout == "out.zip: 3 segments, 54 tokens: all is well\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
def test_a_progress_bar_with_tokens_and_segments_on_a_terminal(zipped):
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 120, 0, 0))
    subprocess.run([*COMMAND, "decompress", "out.zip"], env=ENVIRONMENT, stderr=slave, check=True)
    os.close(slave)
    shown = b""
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(master)
    assert b"decoding" in shown
    assert b"tokens" in shown
    assert b"segments=" in shown


def test_a_reader_that_goes_away_is_no_traceback(zipped):
    listing = subprocess.Popen(
        [*COMMAND, "list", "out.zip"], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    listing.stdout.close()
    errors = listing.stderr.read()
    listing.stderr.close()
    listing.wait()
    assert b"Traceback" not in errors
    assert b"Exception ignored" not in errors


def test_real_tokens_go_round(here, example, capsys):
    np.save("real.npy", np.load(example)[500:560].reshape(60, 128))
    assert run(["compress", "real.npy", "real.zip", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["raw_bytes"] == 9600
    assert summary["payload_bits_per_token"] < 9
    assert run(["decompress", "real.zip", "-q"]) == 0
    assert Path("decompressed/real.npy").read_bytes() == Path("real.npy").read_bytes()
