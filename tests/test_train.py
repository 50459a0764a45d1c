"""Properties of training: it learns, repeats itself, chooses by held-out frames and refuses what it can't use."""

import csv
import dataclasses
import io
import itertools
import math
import os
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

torch = pytest.importorskip("torch")

from vqcomp.cli import run
from vqcomp.runtime.config import ModelConfig
from vqcomp.runtime.errors import InputError, ModelError
from vqcomp.training.checkpoint import read_checkpoint
from vqcomp.training.config import parse_settings
from vqcomp.training.distributed import Group
from vqcomp.training.feed import Feed
from vqcomp.training.model import FrameGPT, default_copies, default_flags
from vqcomp.training.optim import rate_of_step
from vqcomp.training.trainer import TrainConfig, evaluate, train

CONFIG = ModelConfig(
    height=3,
    width=4,
    factors=(11,),
    dim=24,
    blocks=1,
    spatial_heads=1,
    temporal_heads=1,
    head_dim=8,
    hidden=32,
    rank=8,
    window=4,
    stack=2,
    flags=default_flags(4),
    copies=default_copies(3),
)
SHORT = TrainConfig(
    steps=60, batch=2, frames=8, held_out=12, evaluate_every=20, learning_rate=1e-2, warmup=5, dropout=0
)


def drifting(frames=60, seed=0):
    """A random picture that moves one column a frame around a ring: predictable from its past alone."""
    ring = np.random.default_rng(seed).integers(0, 11, (3, 32))
    return np.stack([ring[:, np.arange(t, t + 4) % 32].reshape(12, 1) for t in range(frames)])


def test_training_lowers_the_loss_on_held_out_frames():
    tokens = drifting()
    untrained = evaluate(FrameGPT(CONFIG), [tokens], 12)
    result = train([tokens], CONFIG, SHORT)
    assert result.bits_per_token < untrained - 1
    assert result.bits_per_token == pytest.approx(evaluate(result.model, [tokens], 12))


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
    result = train([drifting()], CONFIG, dataclasses.replace(SHORT, steps=7, held_out=0))
    assert result.step == 7 and math.isfinite(result.bits_per_token)


def weights(result):
    """All codes and scales of a trained network, as bytes."""
    return b"".join(codes.tobytes() + scales.tobytes() for codes, scales in result.model.export()[1].values())


class Killed(Exception):
    """Stands for whatever ends a process."""


def kill_at(step):
    def watch(moment):
        if moment.step == step:
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
    monkeypatch.setattr("vqcomp.training.trainer.connect", lambda device: nullcontext(Group(0, 2, device)))
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


def test_a_time_budget_ends_a_training_and_lowers_the_step_size_with_the_clock(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr("vqcomp.training.trainer.time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    result = train([drifting()], CONFIG, dataclasses.replace(SHORT, time=100.0, warmup=0, decay=0.5))
    seconds = [row.seconds for row in result.rows]
    assert seconds == sorted(seconds) and 100 <= seconds[-1] < 115
    assert len(seconds) == 10
    for row in result.rows:
        assert row.rate == pytest.approx(max(0, min(1, (100 - row.seconds) / 50)))


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


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(InputError, match="numpy"):
        train([drifting()], CONFIG, SHORT, device="numpy")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA GPU here"):
            train([drifting()], CONFIG, SHORT, device="cuda")


def test_windows_may_run_backwards_be_mirrored_and_skip_frames():
    settings = dataclasses.replace(SHORT, steps=3, reverse=1.0, mirror=1.0, stride=1.0, muon_rate=0.01)
    assert math.isfinite(train([drifting()], CONFIG, settings).bits_per_token)


def test_evaluation_does_not_depend_on_its_chunks():
    torch.manual_seed(0)
    model, tokens = FrameGPT(CONFIG), drifting()
    assert evaluate(model, [tokens], 30, chunk=7) == pytest.approx(evaluate(model, [tokens], 30, chunk=60), rel=1e-5)


def test_progress_is_told_at_every_evaluation():
    lines = []
    train([drifting()], CONFIG, dataclasses.replace(SHORT, steps=5, evaluate_every=2), progress=lines.append)
    assert [line.split()[1] for line in lines] == ["2/5", "4/5", "5/5"]


def test_a_loss_that_is_not_finite_is_a_model_error(monkeypatch):
    monkeypatch.setattr(FrameGPT, "loss", lambda self, tokens, skip=0: self.position.sum() * math.nan)
    with pytest.raises(ModelError, match="diverged at step 1"):
        train([drifting()], CONFIG, SHORT)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (drifting(19), "needs 8 frames besides the 12 held out"),
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
    with pytest.raises(InputError):
        train([], CONFIG, SHORT)
