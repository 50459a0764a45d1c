"""Properties of training: it learns, repeats itself, chooses by held-out frames and refuses what it can't use."""

import csv
import dataclasses
import io
import math
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from vqcomp.model import FrameGPT, default_copies, default_flags
from vqcomp.runtime.config import ModelConfig
from vqcomp.runtime.errors import InputError, ModelError
from vqcomp.train import TrainConfig, evaluate, train
from vqcomp.training.checkpoint import read_checkpoint

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


@pytest.mark.parametrize("killed_at", [3, 4])
def test_a_resumed_training_ends_in_the_same_bits(tmp_path, killed_at):
    settings = dataclasses.replace(SHORT, steps=6, evaluate_every=3, dropout=0.2, muon_rate=0.01, stride=0.5)
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
