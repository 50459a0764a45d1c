"""Properties of training: it learns, repeats itself, chooses by held-out frames and refuses what it can't use."""

import dataclasses
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from vqcomp.model import FrameGPT, default_copies, default_flags
from vqcomp.runtime.config import ModelConfig
from vqcomp.runtime.errors import InputError, ModelError
from vqcomp.train import TrainConfig, evaluate, train

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
