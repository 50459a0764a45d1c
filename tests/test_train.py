"""Properties of training: it learns, repeats itself, chooses by held-out frames and refuses what it can't use."""

import csv
import dataclasses
import errno
import io
import math
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import REPOSITORY, files_in
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import drifting, ring_config

torch = pytest.importorskip("torch")

from vqcomp.cli import run
from vqcomp.cli.progress import TrainingBar
from vqcomp.runtime.errors import DependencyError, InputError, ModelError
from vqcomp.training import budget
from vqcomp.training.checkpoint import FORMAT, read_checkpoint, write_checkpoint
from vqcomp.training.config import TrainConfig, describe_settings, parse_settings
from vqcomp.training.distributed import ProcessGroup
from vqcomp.training.evaluation import evaluate, spans_of
from vqcomp.training.feed import Feed
from vqcomp.training.model import FrameGPT
from vqcomp.training.optim import rate_of_step
from vqcomp.training.outputs import check_outputs
from vqcomp.training.record import Moment
from vqcomp.training.trainer import train

CONFIG = ring_config()
SHORT = TrainConfig(
    steps=60, batch=2, frames=8, held_out=12, evaluate_every=20, learning_rate=1e-2, warmup=5, dropout=0
)


def test_training_lowers_the_loss_on_held_out_frames():
    tokens = drifting()
    untrained = evaluate(FrameGPT(CONFIG), spans_of([tokens], 12))
    result = train([tokens], CONFIG, SHORT)
    assert result.bits_per_token < untrained - 1
    assert result.bits_per_token == pytest.approx(evaluate(result.model, spans_of([tokens], 12)))


def test_the_same_seed_gives_the_same_weights():
    settings = dataclasses.replace(SHORT, steps=5, dropout=0.2, token_dropout=0.1, code_dropout=0.1, mirror=0.5)
    first, again = (train([drifting()], CONFIG, settings).model.export()[1] for _ in range(2))
    for name, (codes, scales) in first.items():
        assert np.array_equal(codes, again[name][0]) and np.array_equal(scales, again[name][1])


def test_held_out_frames_are_not_trained_on():
    settings = dataclasses.replace(SHORT, steps=5, evaluate_every=5)
    tokens = drifting()
    other = tokens.copy()
    other[-12:] = 10 - other[-12:]
    a, b = (train([x], CONFIG, settings).model.export()[1] for x in (tokens, other))
    assert all(np.array_equal(a[name][0], b[name][0]) for name in a)


def test_training_on_all_frames_returns_the_last_weights():
    settings = dataclasses.replace(SHORT, steps=7, held_out=0, evaluate_every=3, average=0)
    result = train([drifting()], CONFIG, settings)
    assert result.step == 7 and result.spans == ()
    assert result.bits_per_token == result.rows[-1].training_bits
    # Without an average the weights are those of the very last step, which a longer training goes through too.
    seen = {}
    watched = dataclasses.replace(settings, evaluate_every=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget.Budget, "is_due", property(lambda self: seen.setdefault(self.step, True)))
        again = train([drifting()], CONFIG, watched)
    assert weights(result) == weights(again) and set(seen) == set(range(1, 8))


def weights(result):
    """All codes and scales of a trained network, as bytes."""
    return b"".join(codes.tobytes() + scales.tobytes() for codes, scales in result.model.export()[1].values())


class Killed(Exception):
    """Stands for whatever ends a process."""


def kill_at(step):
    def watch(moment):
        if moment.step == step and not moment.is_evaluating:
            raise Killed

    return watch


@pytest.mark.parametrize(("killed_at", "segments"), [(3, 0), (4, 20)])
def test_a_resumed_training_ends_in_the_same_bits(tmp_path, killed_at, segments):
    settings = dataclasses.replace(SHORT, steps=6, evaluate_every=3, dropout=0.2, stride=0.5, for_segments=segments)
    whole = train([drifting()], CONFIG, settings, out=tmp_path / "whole.vqm")
    with pytest.raises(Killed):
        train([drifting()], CONFIG, settings, out=tmp_path / "m.vqm", watch=kill_at(killed_at))
    resumed = train([drifting()], CONFIG, settings, out=tmp_path / "m.vqm", resume=True)
    assert weights(resumed) == weights(whole)
    assert (resumed.bits_per_token, resumed.step) == (whole.bits_per_token, whole.step)
    logs = [list(csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines())) for name in ("whole", "m")]
    for name in ("step", "tokens", "rate", "training_bits", "held_out_bits", "weights_bytes", "zip_bytes"):
        assert [row[name] for row in logs[0]] == [row[name] for row in logs[1]]
    assert {path.name for path in tmp_path.iterdir()} == {"whole.csv", "whole.ckpt", "m.csv", "m.ckpt"}


def test_an_interrupt_writes_a_checkpoint_after_the_step_and_says_how_to_go_on(tmp_path):
    settings = dataclasses.replace(SHORT, steps=6, evaluate_every=6, dropout=0.2)
    lines = []

    def interrupt(moment):
        if moment.step == 2:
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train([drifting()], CONFIG, settings, out=tmp_path / "m.vqm", watch=interrupt, progress=lines.append)
    assert lines == ["interrupted after step 3: the same command with --resume goes on"]
    resumed = train([drifting()], CONFIG, settings, out=tmp_path / "m.vqm", resume=True, progress=lines.append)
    assert lines[1] == "going on after step 3"
    assert weights(resumed) == weights(train([drifting()], CONFIG, settings))
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_finished_training_that_is_resumed_gives_its_result_again(tmp_path):
    settings = dataclasses.replace(SHORT, steps=3)
    first, again = (train([drifting()], CONFIG, settings, out=tmp_path / "m.vqm", resume=r) for r in (False, True))
    assert weights(first) == weights(again)


@pytest.mark.parametrize(
    ("change", "config", "data", "message"),
    [
        ({"dropout": 0.3, "steps": 4}, CONFIG, drifting(), r"steps was 3, now it is 4; dropout was 0, now it is 0\.3"),
        ({}, dataclasses.replace(CONFIG, rank=9), drifting(), "network differ: rank was 8, now it is 9"),
        ({}, CONFIG, drifting(seed=1), "data differ: counts was"),
    ],
)
def test_the_checkpoint_of_another_training_is_refused_and_the_difference_named(
    tmp_path, change, config, data, message
):
    settings = dataclasses.replace(SHORT, steps=3)
    train([drifting()], CONFIG, settings, out=tmp_path / "m.vqm")
    with pytest.raises(InputError, match=message):
        train([data], config, dataclasses.replace(settings, **change), out=tmp_path / "m.vqm", resume=True)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_checkpoint_that_is_damaged_anywhere_is_refused(checkpoint, data):
    path, good = checkpoint
    at = data.draw(st.integers(0, len(good) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(good[:at])
    else:
        path.write_bytes(good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :])
    try:
        state = read_checkpoint(path, {})
    except InputError as error:
        assert path.name in str(error)
    else:  # the flipped bit means nothing, such as a time in the zip's directory
        path.write_bytes(good)
        assert state_bytes(state) == state_bytes(read_checkpoint(path, {}))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "m.ckpt"
    train([drifting()], CONFIG, dataclasses.replace(SHORT, steps=1), out=path)
    return path, path.read_bytes()


def state_bytes(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def test_to_resume_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"m\.ckpt: no such checkpoint"):
        train([drifting()], CONFIG, SHORT, out=tmp_path / "m.vqm", resume=True)


def state_of(path):
    return torch.load(path, weights_only=True)["model"]


def test_accumulated_micro_batches_make_the_step_of_a_large_batch():
    settings = dataclasses.replace(SHORT, steps=3, batch=1, accumulate=2, token_dropout=0, code_dropout=0)
    feed = Feed([drifting()], CONFIG, settings)
    windows = [torch.cat([feed.batch(step, micro)[0] for micro in (0, 1)]) for step in (1, 2, 3)]
    several = train([drifting()], CONFIG, settings)
    together = dataclasses.replace(settings, batch=2, accumulate=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Feed, "batch", lambda self, step, micro: (windows[(step - 1) % 3], 0))
        at_once = train([drifting()], CONFIG, together)
    for a, b in zip(several.model.parameters(), at_once.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_make_the_steps_of_one_that_accumulates(tmp_path):
    np.save(tmp_path / "data.npy", drifting().reshape(-1, 3, 4))
    fields = {"batch": 1, "accumulate": 2, "frames": 8, "dropout": 0.2, "held_out": 12, "evaluate_every": 2}
    arguments = ["train", str(tmp_path / "data.npy"), "--preset", "nano", "--steps", "2", "-T", "1"]
    arguments += [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]
    assert run([*arguments, "-q", "-o", str(tmp_path / "one.vqm")]) == 0
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    common = {**os.environ, "PYTHONPATH": str(REPOSITORY), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "vqcomp", *arguments, "-o", str(tmp_path / "two.vqm")]
    running = [
        subprocess.Popen(
            command, env={**common, "RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": "2"}, stderr=subprocess.PIPE,
            text=True,
        )
        for i in (0, 1)
    ]  # fmt: skip
    said = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert "step 2/2" in said[0] and said[1] == ""  # the first of them speaks
    one, two = (state_of(tmp_path / f"{name}.ckpt") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5)
    suffixes = ("vqm", "ckpt", "csv", "md")
    assert files_in(tmp_path) == {"data.npy"} | {f"{name}.{s}" for name in ("one", "two") for s in suffixes}


def test_micro_batches_that_processes_cannot_share_are_refused(monkeypatch):
    monkeypatch.setattr("vqcomp.training.trainer.connect", lambda device: nullcontext(ProcessGroup(0, 2, device)))
    with pytest.raises(InputError, match="2 processes cannot share 3 micro-batches evenly"):
        train([drifting()], CONFIG, dataclasses.replace(SHORT, accumulate=3))


def test_the_fewer_segments_a_model_is_for_the_smaller_it_gets():
    settings = dataclasses.replace(SHORT, steps=40, evaluate_every=20)
    sizes = []
    for segments in (1e6, 1):
        result = train([drifting()], CONFIG, dataclasses.replace(settings, for_segments=segments))
        best = min(result.rows, key=lambda row: row.zip_bytes)
        assert (result.step, result.bits_per_token) == (best.step, best.held_out_bits)
        sizes.append(best.weights_bytes)
    assert sizes[1] < 0.95 * sizes[0]


def test_patience_ends_a_training_that_gains_nothing():
    # A step size of next to nothing: the first evaluation is as good as all others.
    settings = dataclasses.replace(SHORT, steps=40, evaluate_every=2, patience=3, learning_rate=1e-12, warmup=0)
    result = train([drifting()], CONFIG, dataclasses.replace(settings, muon_rate=0, average=0))
    assert result.rows[-1].step < 40
    assert result.rows[-1].step >= 6


@pytest.mark.parametrize("step", [0.5, 30.0])
@pytest.mark.parametrize("span", [0.01, 1.0, 40.0])
def test_a_time_budget_holds_to_within_one_step_and_one_evaluation(monkeypatch, step, span):
    """Steps and evaluated spans take what they are said to, on a clock of their own."""
    clock, loss, spent, left = [0.0], FrameGPT.loss, [0.0], []

    def take(self, tokens, skip=0):
        clock[0] += step if self.training else span
        spent[0] += 0 if self.training else span
        return loss(self, tokens, skip)

    def note(step, share, config):
        left.append((share, clock[0]))
        return rate_of_step(step, share, config)

    monkeypatch.setattr(FrameGPT, "loss", take)
    monkeypatch.setattr("vqcomp.training.trainer.time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr("vqcomp.training.trainer.rate_of_step", note)
    segments = [drifting(seed=seed) for seed in range(10)]
    result = train(segments, CONFIG, dataclasses.replace(SHORT, time=100.0))
    evaluation = span * len(result.spans)
    assert clock[0] <= 100 + step + evaluation
    assert clock[0] >= 100 - 20 or span == 40
    # One span that is measured, evaluations that take a fifth of the time, and the last one.
    assert spent[0] <= span + 20 + evaluation
    assert 0 < len(result.spans) <= 10 and (span > 0.01 or len(result.spans) == 10)
    assert result.rows[-1].seconds == pytest.approx(clock[0], abs=0.06)
    assert all(share == pytest.approx(1 - now / 100) for share, now in left)


def test_a_time_budget_of_few_steps_reaches_the_peak_step_size():
    config = dataclasses.replace(SHORT, time=100.0, warmup=500, decay=0.5)
    assert rate_of_step(1, 1.0, config) == pytest.approx(1 / 500)
    assert rate_of_step(3, 0.95, config) == pytest.approx(1)
    assert rate_of_step(9, 0.25, config) == pytest.approx(0.5)


def test_a_training_starts_from_the_weights_of_a_model():
    first = train([drifting()], CONFIG, SHORT)
    settings = dataclasses.replace(SHORT, steps=1, learning_rate=1e-9, muon_rate=1e-9)
    again = train([drifting()], CONFIG, settings, init=first.model.export()[1])
    assert again.bits_per_token == pytest.approx(first.bits_per_token, abs=0.1)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")])
def test_no_memory_is_an_error_that_says_what_to_do(monkeypatch, error):
    def fail(self, tokens, skip=0):
        raise error

    monkeypatch.setattr(FrameGPT, "loss", fail)
    with pytest.raises(InputError, match="out of memory with 2 windows of 8 frames at a time: use a smaller"):
        train([drifting()], CONFIG, SHORT)


def test_other_errors_of_torch_are_not_taken_for_memory(monkeypatch):
    def fail(self, tokens, skip=0):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(FrameGPT, "loss", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        train([drifting()], CONFIG, SHORT)


def test_divergence_keeps_the_last_good_checkpoint_and_says_so(tmp_path, monkeypatch):
    settings = dataclasses.replace(SHORT, steps=6, evaluate_every=2)
    loss = FrameGPT.loss

    def diverge_later(self, tokens, skip=0):
        diverge_later.calls += self.training
        return loss(self, tokens, skip) * (math.nan if diverge_later.calls == 4 else 1)

    diverge_later.calls = 0
    monkeypatch.setattr(FrameGPT, "loss", diverge_later)
    with pytest.raises(ModelError, match=r"diverged at step 4.*m\.ckpt keeps the state after step 2"):
        train([drifting()], CONFIG, settings, out=tmp_path / "m.vqm")
    monkeypatch.undo()
    resumed = train([drifting()], CONFIG, settings, out=tmp_path / "m.vqm", resume=True)
    assert weights(resumed) == weights(train([drifting()], CONFIG, settings))


@pytest.fixture
def files_of_at_most(monkeypatch):
    """Calls it with a number of bytes: longer files cannot be written any more, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_one_from_which_a_training_goes_on(
    tmp_path, files_of_at_most
):
    settings = dataclasses.replace(SHORT, steps=6, evaluate_every=2)

    def fill_disk(moment):
        if moment.step == 2 and not moment.is_evaluating:
            files_of_at_most(20_000)

    with pytest.raises(InputError, match=r"m\.ckpt: cannot be written: .*m\.ckpt keeps the state after step 2"):
        train([drifting()], CONFIG, settings, out=tmp_path / "m.vqm", watch=fill_disk)
    assert files_in(tmp_path) == {"m.ckpt", "m.csv"}
    files_of_at_most(1 << 30)
    resumed = train([drifting()], CONFIG, settings, out=tmp_path / "m.vqm", resume=True)
    assert weights(resumed) == weights(train([drifting()], CONFIG, settings))


@pytest.mark.parametrize("field", ["every=0", "frames=0", "batch=-1", "betas=1,2", "learning_rate=inf"])
def test_settings_out_of_range_are_named_on_the_command_line(tmp_path, monkeypatch, capsys, field):
    monkeypatch.chdir(tmp_path)
    np.save("ring.npy", drifting().reshape(-1, 3, 4))
    assert run(["train", "ring.npy", "-o", "m.vqm", "--set", field]) == 1
    assert capsys.readouterr().err.startswith(f"error: training: {field.split('=')[0]} must be ")
    assert files_in(tmp_path) == {"ring.npy"}


def test_too_little_disk_for_checkpoints_is_found_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"m\.ckpt: too little disk: checkpoints take [\d,]+ bytes, 1,000 are free"):
        train([drifting()], CONFIG, SHORT, out=tmp_path / "m.vqm")
    assert not files_in(tmp_path)


def test_a_checkpoint_of_another_version_is_gone_on_from_with_a_note(tmp_path, monkeypatch):
    settings = dataclasses.replace(SHORT, steps=2)
    with monkeypatch.context() as patch:
        patch.setattr("vqcomp.training.checkpoint.__version__", "0.0.7")
        train([drifting()], CONFIG, settings, out=tmp_path / "m.vqm")
    lines = []
    train([drifting()], CONFIG, settings, out=tmp_path / "m.vqm", resume=True, progress=lines.append)
    assert "note: vqcomp 0.0.7 wrote the checkpoint, this is" in lines[0]
    with pytest.raises(InputError, match=r"steps was 2, now it is 3.*\(vqcomp 0\.0\.7 wrote it, this is"):
        train([drifting()], CONFIG, dataclasses.replace(settings, steps=3), out=tmp_path / "m.vqm", resume=True)


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    path = tmp_path / "m.ckpt"
    write_checkpoint(path, {"format": FORMAT + 1, "vqcomp": "9.9"})
    with pytest.raises(InputError, match=f"checkpoint format {FORMAT + 1}, written by vqcomp 9.9"):
        read_checkpoint(path, {})


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("folder", r"folder: expected the name of a \.vqm file to write, found a folder"),
        ("old.vqm", r"old\.vqm: exists already; -f overwrites it"),
        ("begun.vqm", r"begun\.ckpt: a training was begun; --resume goes on with it"),
        ("missing/m.vqm", r"missing: no such folder; make it first"),
        ("m.csv", r"m\.csv: expected the name of a \.vqm"),
        ("m" * 300 + ".vqm", "cannot be written: File name too long"),
        ("read-only.vqm", r"read-only\.vqm: cannot be written: Read-only file system; choose another place"),
    ],
)
def test_an_output_that_cannot_be_written_is_found_before_the_work(tmp_path, monkeypatch, out, message):
    (tmp_path / "folder").mkdir()
    for name in ("old.vqm", "begun.ckpt"):
        (tmp_path / name).touch()
    if out == "read-only.vqm":

        def refuse(path, mode):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr("vqcomp.data.outputs.open", refuse, raising=False)
    before = files_in(tmp_path)
    with pytest.raises(InputError, match=message):
        check_outputs(tmp_path / out)
    assert files_in(tmp_path) == before


def test_what_exists_may_be_replaced_or_gone_on_with_where_that_is_asked_for(tmp_path):
    for name in ("old.vqm", "old.ckpt", "begun.ckpt", "begun.csv"):
        (tmp_path / name).touch()
    check_outputs(tmp_path / "old.vqm", force=True)
    check_outputs(tmp_path / "begun.vqm", resume=True)
    assert files_in(tmp_path) == {"old.vqm", "old.ckpt", "begun.ckpt", "begun.csv"}


def test_tensorboard_is_written_where_it_is_installed(tmp_path, monkeypatch):
    written = []
    writer = SimpleNamespace(add_scalar=lambda *a: written.append(a), flush=lambda: None, close=lambda: None)
    module = SimpleNamespace(SummaryWriter=lambda folder: writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    result = train([drifting()], CONFIG, dataclasses.replace(SHORT, steps=2), out=tmp_path / "m.vqm")
    assert ("held_out_bits", result.bits_per_token, 2) in written


@pytest.mark.parametrize(
    ("change", "message"),
    [({"batch": 0}, "batch must be at least 1"), ({"dropout": 1.0}, "dropout must be from 0"), ({"clip": 0}, "clip")],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        train([drifting()], CONFIG, dataclasses.replace(SHORT, **change))


def test_settings_come_from_texts():
    texts = {"steps": "7", "dropout": "0.5", "quantised": "false", "betas": "0.8,0.9", "batch": 2}
    assert parse_settings(texts) == {
        "steps": 7, "dropout": 0.5, "quantised": False, "betas": (0.8, 0.9), "batch": 2,
    }  # fmt: skip
    for name, text in (("nonsense", "1"), ("steps", "x"), ("quantised", "maybe"), ("betas", "1")):
        with pytest.raises(InputError, match=name):
            parse_settings({name: text})


def test_every_setting_is_described_with_the_default_that_it_takes():
    text = describe_settings()
    for field in dataclasses.fields(TrainConfig):
        (value,) = re.findall(rf"^  {field.name}=(\S+)  +\S", text, re.MULTILINE)
        assert parse_settings({field.name: value}) == {field.name: field.default}


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(InputError, match="numpy"):
        train([drifting()], CONFIG, SHORT, device="numpy")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA GPU here"):
            train([drifting()], CONFIG, SHORT, device="cuda")


def test_evaluation_does_not_depend_on_its_spans():
    torch.manual_seed(0)
    model, tokens = FrameGPT(CONFIG), drifting()
    short, long = (evaluate(model, spans_of([tokens], 30, length)) for length in (7, 60))
    assert short == pytest.approx(long, rel=1e-5)


def test_progress_is_told_at_every_evaluation():
    lines = []
    train([drifting()], CONFIG, dataclasses.replace(SHORT, steps=5, evaluate_every=2), progress=lines.append)
    assert [line.split()[1] for line in lines] == ["2/5", "4/5", "5/5"]


@pytest.mark.parametrize("budget", [{"steps": 6, "evaluate_every": 3}, {"time": 0.3}])
def test_progress_never_goes_back_and_moves_within_evaluations(budget):
    moments = []
    train([drifting(60 + 70, seed) for seed in range(3)], CONFIG,
          dataclasses.replace(SHORT, **budget, held_out=100), watch=moments.append)  # fmt: skip
    done = [moment.done for moment in moments]
    assert done == sorted(done) and 0 < done[0] < done[-1] == pytest.approx(1, abs=0.2)
    if "steps" in budget:
        assert done[-1] == 1
        assert [sum(m.is_evaluating for m in moments if m.step == step) for step in range(1, 7)] == [0, 0, 6, 0, 0, 6]
    within = [moment.done for moment in moments if moment.is_evaluating]
    assert len(set(within)) == len(within)


@pytest.mark.parametrize(("seconds", "lines"), [(0.0, 2), (1e6, 0)])
def test_where_there_is_no_terminal_a_line_tells_now_and_then_how_far_a_training_is(
    monkeypatch, capsys, seconds, lines
):
    monkeypatch.setattr("vqcomp.cli.progress.LINE_SECONDS", seconds)
    display = TrainingBar(quiet=False)
    for evaluating in (False, True):
        display.show(Moment(0.25, 7, 3.0, 5.5, 1000.0, 0, evaluating))
    display.end()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == lines
    assert said[:1] in ([], ["step 7, 25 % of the training, 5.500 bits/token in training"])
    assert said[1:] in ([], ["step 7, 25 % of the training, evaluating, 5.500 bits/token in training"])


def test_a_loss_that_is_not_finite_is_a_model_error(monkeypatch):
    monkeypatch.setattr(FrameGPT, "loss", lambda self, tokens, skip=0: self.position.sum() * math.nan)
    with pytest.raises(ModelError, match="diverged at step 1"):
        train([drifting()], CONFIG, SHORT)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (drifting(19), "needs 8 frames besides the 12 held out.*19 in all: try --held-out 11 or --set frames=7"),
        (drifting(6), "6 in all: try a smaller --held-out and --set frames=N"),
        (drifting()[:, :, 0], "expected integers"),
        (drifting().astype(np.float32), "expected integers"),
        (drifting() + 1, "expected ids"),
        (drifting() - 1, "expected ids"),
    ],
)
def test_segments_that_do_not_fit_are_refused(tokens, message):
    with pytest.raises(InputError, match=message):
        train([tokens], CONFIG, SHORT)


def test_no_segments_are_refused():
    with pytest.raises(InputError, match="expected at least one segment"):
        train([], CONFIG, SHORT)


@pytest.mark.parametrize(("layout", "preset", "held_out"), [("npy", "pico", 75), ("1x", "1x", 4)])
def test_sample_data_can_be_trained_on_without_further_options(tmp_path, monkeypatch, layout, preset, held_out):
    monkeypatch.chdir(tmp_path)
    assert run(["sample-data", "data", "--layout", layout, "-q"]) == 0
    if layout == "1x":  # a step of it takes seconds

        def loss(self, *rest, **more):
            return 1 + 0 * sum(parameter.sum() for parameter in self.parameters())

        monkeypatch.setattr(FrameGPT, "loss", loss)
    assert run(["train", "data", "-o", "m.vqm", "--preset", preset, "--steps", "1", "-T", "1", "-q"]) == 0
    card = (tmp_path / "m.md").read_text()
    assert f'"held_out": {held_out},' in card and f"the last {held_out} frames" in card


def test_a_torch_that_does_not_work_with_numpy_is_an_error_of_dependencies(monkeypatch):
    def fail():
        raise DependencyError("torch 2.2.2 does not work with NumPy 2.4")

    monkeypatch.setattr("vqcomp.training.trainer.load_torch", fail)
    with pytest.raises(DependencyError, match="does not work with NumPy"):
        train([drifting()], CONFIG, SHORT)
