"""Imagining: the same seed gives the same future everywhere, and draws are what the sampling says."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from conftest import tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Float64Ops, random_segment, random_tensors, tiny_config

import vqcomp
from vqcomp.cli import run
from vqcomp.data.onex import open_video
from vqcomp.data.onex_write import write_video
from vqcomp.runtime.engine import Engine
from vqcomp.runtime.errors import InputError
from vqcomp.runtime.exact import NumpyOps, TorchOps
from vqcomp.runtime.gpt import GPTCodec
from vqcomp.runtime.loading import self_test
from vqcomp.runtime.mixed import FramePredictor
from vqcomp.runtime.products import Int8Ops
from vqcomp.runtime.spec import TokenSpec
from vqcomp.runtime.tables import Tables
from vqcomp.runtime.weights import read_config, write_model
from vqcomp.world.imagine import LearningImaginer, NetworkImaginer, purpose, remaining
from vqcomp.world.philox import philox
from vqcomp.world.sampling import FACTORS_MAX, Sampling, rows_of
from vqcomp.world.within_frame import bits_by_steps

PLAIN = tiny_config(factors=(40, 33), stack=1)
WITHIN = tiny_config(factors=(40, 33), stack=1, within_frame=True)
BACKENDS = {
    "numpy": lambda: NumpyOps(),
    "numpy float64": Float64Ops,
    "torch, one thread": lambda: TorchOps("cpu", threads=1),
    "torch, two threads": lambda: TorchOps("cpu", threads=2),
    "torch int8": Int8Ops,
}
SAMPLINGS = {
    "plain": Sampling(seed=7),
    "cut": Sampling(Fraction("0.7"), top_k=9, top_p=Fraction("0.85"), seed=2**64 - 1),
}


def engine(config, backend="numpy"):
    return Engine(config, random_tensors(config), BACKENDS[backend]())


def make(kind, backend="numpy"):
    if kind == "network":
        return NetworkImaginer(engine(PLAIN, backend))
    if kind == "learner":
        return LearningImaginer(PLAIN.spec)
    if kind == "learner on a network":
        return LearningImaginer(PLAIN.spec, FramePredictor(engine(PLAIN, backend)))
    return NetworkImaginer(engine(WITHIN, backend), 4, kind)


def imagine(imaginer, frames=4, samples=3, sampling=None, batch_size=8, prompt=12):
    sampling = sampling or Sampling(Fraction("0.9"), seed=7)
    return imaginer.imagine(
        random_segment(PLAIN.spec, 20)[:prompt], frames, samples, sampling, batch_size, lambda n: None
    )


KINDS = pytest.mark.parametrize("kind", ["network", "random", "confidence", "learner", "learner on a network"])


# ---- the generator


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_words_that_its_authors_publish(counter, key, words):
    np.testing.assert_array_equal(philox(key, np.array(counter)[:, None])[:, 0], words)


# ---- sampling


def logits(seed=0, rows=50, size=70):
    return np.random.RandomState(seed).randint(-600, 600, (rows, size))


def test_a_token_is_drawn_as_often_as_it_is_coded_for():
    x = np.tile(logits(rows=1, size=5) // 4, (40_000, 1))
    drawn, probability = Sampling(seed=3).draw(x, rows_of(np.arange(40_000), 0, 1), 0)
    w = Tables(x[:1].astype(np.float32), NumpyOps()).w[0, :5]
    share = w / w.sum()
    found = np.bincount(drawn, minlength=5) / len(drawn)
    assert (abs(found - share) < 5 * np.sqrt(share * (1 - share) / len(drawn))).all()
    np.testing.assert_array_equal(probability, np.floor(share * 2.0**24)[drawn])


def test_without_temperature_the_likeliest_is_drawn_and_of_several_the_first():
    x = np.array([[3, 9, 9, 1], [0, 0, 0, 0], [-5, -9, -4, -4]])
    drawn, probability = Sampling(Fraction(0)).draw(x, rows_of(np.zeros(1), 0, 3), 0)
    assert drawn.tolist() == [1, 0, 2]
    assert (probability == 1 << 24).all()


@settings(deadline=None)
@given(
    st.lists(st.integers(-2000, 2000), min_size=2, max_size=40),
    st.integers(1, 3000),
    st.integers(1, 50),
    st.integers(1, 1000),
)
def test_what_is_kept_is_what_the_definitions_say(values, temperature, top_k, top_p):
    temperature, top_p = Fraction(temperature, 1000), Fraction(top_p, 1000)
    w = Sampling(temperature, top_k, top_p).weights(np.array([values]))[0]
    whole = Sampling(temperature).weights(np.array([values]))[0]
    scaled = [-math.floor(Fraction(max(values) - v) / temperature + Fraction(1, 2)) for v in values]
    assert all((weight == 0) == (x <= -18 * 64) for weight, x in zip(whole, scaled))
    ranked = sorted(range(len(values)), key=lambda i: (-scaled[i], i))[:top_k]
    kept, together = set(), 0
    for i in ranked:
        if together < top_p * int(whole[ranked].sum()):
            kept.add(i)
        together += int(whole[i])
    np.testing.assert_array_equal(w, [whole[i] if i in kept else 0 for i in range(len(values))])
    assert w.sum() > 0


def test_a_draw_depends_on_what_it_is_for_alone():
    x, rows = logits(), rows_of(np.arange(5), 3, 10)
    sampling = Sampling(seed=1)
    whole, _ = sampling.draw(x, rows, 2)
    order = np.random.RandomState(0).permutation(50)
    np.testing.assert_array_equal(sampling.draw(x[order], rows[order], 2)[0], whole[order])
    for other in (Sampling(seed=2).draw(x, rows, 2), sampling.draw(x, rows, 3)):
        assert (other[0] != whole).any()
    assert (sampling.draw(x, rows_of(np.arange(5), 4, 10), 2)[0] != whole).any()


def test_bits_are_drawn_with_their_probability_at_each_temperature():
    ones, rows = np.full(40_000, 45_000.0), rows_of(np.arange(40_000), 0, 1)
    share = 45_000 / 65_536
    logit = math.log(share / (1 - share))
    for temperature in ("1", "0.5", "2"):
        expected = 1 / (1 + math.exp(-logit / float(temperature)))
        bits = Sampling(Fraction(temperature), seed=1).draw_bits(ones, rows, 0)
        assert abs(bits.mean() - expected) < 0.015
    assert Sampling(Fraction(0)).draw_bits(ones, rows, 0).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": Fraction(-1)}, "temperature: expected a number from 0 to 1000"),
        ({"temperature": Fraction("0.1234567")}, "at most six decimals"),
        ({"top_p": Fraction(0)}, "top-p"),
        ({"top_p": Fraction(2)}, "top-p"),
        ({"top_k": 0}, "top-k"),
        ({"seed": 1 << 64}, "seed"),
    ],
)
def test_samplings_that_are_none_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        Sampling(**values)


# ---- imagining


@KINDS
def test_every_backend_and_batch_imagines_the_same_to_the_last_token(kind):
    samplings = [Sampling(Fraction("0.9"), seed=7)] if "learner" in kind else SAMPLINGS.values()
    for sampling in samplings:
        first = imagine(make(kind), sampling=sampling)
        for backend in BACKENDS if kind != "learner" else ():
            np.testing.assert_array_equal(imagine(make(kind, backend), sampling=sampling), first, backend)
        for batch_size in (1, 2):
            np.testing.assert_array_equal(imagine(make(kind), sampling=sampling, batch_size=batch_size), first)
        # Fewer samples are the first of more, and fewer frames the first of more.
        np.testing.assert_array_equal(imagine(make(kind), 2, 1, sampling), first[:1, :2])
        assert (first[0] != first[1]).any()
        assert (first >= 0).all()
        assert (first < np.array(PLAIN.factors)).all()
    assert (imagine(make(kind), sampling=Sampling(seed=8)) != imagine(make(kind), sampling=Sampling(seed=9))).any()


@KINDS
def test_imagining_goes_on_from_what_is_imagined_as_from_what_is_true(kind):
    """Without a learner, two frames at once are one and then, with it in the prompt, another."""
    imaginer, prompt, sampling = make(kind), random_segment(PLAIN.spec, 12), Sampling(seed=5)
    two = imaginer.imagine(prompt, 2, 1, sampling, 4, lambda n: None)[0]
    longer = np.concatenate([prompt, two[:1]])
    again = imaginer.imagine(longer, 1, 1, sampling, 4, lambda n: None)[0]
    if "learner" in kind:
        np.testing.assert_array_equal(two[0], imaginer.imagine(prompt, 1, 1, sampling, 4, lambda n: None)[0, 0])
    else:
        np.testing.assert_array_equal(again[0], two[1])


def test_the_prompt_changes_what_is_imagined_within_the_networks_reach_alone():
    imaginer, prompt = make("network"), random_segment(PLAIN.spec, 30)
    reach = PLAIN.history + PLAIN.blocks * (PLAIN.window - 1)
    sampling = Sampling(seed=1)
    first, near, far = (prompt.copy() for _ in range(3))
    near[-1, :, 0] = (near[-1, :, 0] + 1) % PLAIN.factors[0]
    far[: 30 - reach] = 0
    a, b, c = (imaginer.imagine(p, 1, 1, sampling, 1, lambda n: None) for p in (first, near, far))
    assert (a != b).any()
    np.testing.assert_array_equal(a, c)


def test_greedy_frames_are_the_networks_best_guesses():
    imaginer, prompt = make("network"), random_segment(PLAIN.spec, 12)
    found = imaginer.imagine(prompt, 1, 1, Sampling(Fraction(0)), 1, lambda n: None)[0, 0]
    net = engine(PLAIN)
    previous = np.concatenate([np.full_like(prompt[:1], -1), prompt])[None]
    guesses = [x.reshape(13, PLAIN.positions, -1)[-1].argmax(-1) for x in net.forward(net.start(1), previous)]
    np.testing.assert_array_equal(found, np.stack(guesses, -1))


def test_what_learns_from_the_prompt_repeats_what_it_has_seen():
    spec = TokenSpec(3, 4, (50,))
    loop = np.random.RandomState(0).randint(0, 50, (2, 12, 1)).astype(np.int32)
    prompt = np.tile(loop, (60, 1, 1))
    found = LearningImaginer(spec).imagine(prompt, 6, 1, Sampling(Fraction(0)), 1, lambda n: None)[0]
    assert (found == np.tile(loop, (3, 1, 1))).mean() > 0.9


def test_an_empty_prompt_is_enough():
    for kind in ("network", "random", "learner", "learner on a network"):
        assert imagine(make(kind), prompt=0).shape == (3, 4, 12, 2)


@given(st.integers(1, 300), st.data())
def test_the_schedule_ends_at_none_gets_on_in_each_step_and_follows_the_cosine(positions, data):
    steps = data.draw(st.integers(1, positions))
    left = [positions, *remaining(positions, steps)]
    assert len(left) == steps + 1
    assert left[-1] == 0
    assert all(b < a for a, b in pairwise(left))
    if steps <= positions // 8:
        cosine = [math.cos(math.pi / 2 * k / steps) * positions for k in range(steps + 1)]
        assert all(abs(a - b) <= 1 + steps + positions * 0.002 for a, b in zip(left, cosine))


@pytest.mark.parametrize("order", ["random", "confidence"])
def test_each_step_draws_from_what_the_steps_before_have_made_known(order):
    """With a token a step, a frame is what a loop by hand gives, which computes all of the segment anew for each."""
    net, size = engine(WITHIN), WITHIN.positions
    prompt, sampling = random_segment(WITHIN.spec, 6), Sampling(seed=4)
    found = NetworkImaginer(net, size, order).imagine(prompt, 1, 1, sampling, 1, lambda n: None)[0, 0]
    previous = np.concatenate([np.full_like(prompt[:1], -1), prompt])[None]
    own, rows = np.full((1, 7, size, 2), -1), rows_of(np.zeros(1), 6, size)
    seen_matters = False
    for step in range(size):
        logits = [x[-size:] for x in net.forward(net.start(1), previous, own)]
        blind = [x[-size:] for x in net.forward(net.start(1), previous)]
        seen_matters |= any((a != b).any() for a, b in zip(logits, blind))
        drawn = [sampling.draw(x, rows, purpose(step, f)) for f, x in enumerate(logits)]
        sure = drawn[0][1] * drawn[1][1]
        rank = -sure if order == "confidence" else sampling.shuffle(rows, purpose(step, FACTORS_MAX))
        unknown = np.flatnonzero(own[0, -1, :, 0] < 0)
        now = unknown[np.argmin(rank[unknown])]
        own[0, -1, now] = [tokens[now] for tokens, _ in drawn]
    np.testing.assert_array_equal(found, own[0, -1])
    assert seen_matters


def test_what_cannot_be_imagined_is_refused():
    with pytest.raises(InputError, match="within_frame=true"):
        NetworkImaginer(engine(PLAIN), 2)
    with pytest.raises(InputError, match="steps: expected 1 to 12"):
        NetworkImaginer(engine(WITHIN), 13)
    with pytest.raises(InputError, match="bit by bit"):
        imagine(make("learner"), sampling=Sampling(top_k=3))


# ---- a network that sees tokens of its own frame


def test_such_a_network_compresses_with_none_of_them_known_and_decodes():
    start = random_segment(WITHIN.spec, 2)
    drawn = NetworkImaginer(engine(WITHIN)).imagine(start, 20, 1, Sampling(), 1, lambda n: None)[0]
    segment = np.concatenate([start, drawn])  # what such a network expects, so that it codes better than evenly
    codec = GPTCodec(engine(WITHIN))
    streams = codec.encode([[segment]])
    np.testing.assert_array_equal(codec.decode(streams, [[22]])[0][0], segment)
    bits = bits_by_steps(engine(WITHIN), segment, 0, 1) * segment[..., 0].size
    assert abs(8 * len(streams[0]) - bits) < 80


def test_configs_say_so_only_where_it_is_so():
    assert "within_frame" not in PLAIN.to_dict()
    for config in (PLAIN, WITHIN):
        data = write_model(config, random_tensors(config), 0)
        assert read_config(data)[0] == config
    with pytest.raises(vqcomp.ModelError, match="within_frame must be true or false"):
        type(PLAIN).from_dict({**PLAIN.to_dict(), "within_frame": 2})


def test_bits_by_steps_are_refused_where_steps_change_nothing():
    with pytest.raises(InputError, match="2 steps"):
        bits_by_steps(engine(PLAIN), random_segment(PLAIN.spec, 3), 0, 2)


def test_training_makes_a_network_that_draws_in_steps(tmp_path, capsys):
    pytest.importorskip("torch")
    np.save(tmp_path / "a.npy", tokens((80, 3, 4)))
    model = tmp_path / "m.vqm"
    train = ["train", str(tmp_path / "a.npy"), "-o", str(model), "--preset", "pico", "--steps", "3", "--held-out", "8"]
    assert run([*train, "--set", "within_frame=true", "-q"]) == 0
    assert read_config(model.read_bytes())[0].within_frame
    assert run([*train, "--init", str(model), "-f", "-q"]) == 0
    assert read_config(model.read_bytes())[0].within_frame
    assert run([*train, "--init", str(model), "--set", "within_frame=false", "-f", "-q"]) == 1
    assert "sees known tokens of the predicted frame, which no setting changes" in capsys.readouterr().err
    out = tmp_path / "out.npy"
    command = ["imagine", str(tmp_path / "a.npy"), "-o", str(out), "--model", str(model), "--frames", "3", "-q"]
    assert run([*command, "--steps", "3", "--prompt", "20"]) == 0
    assert np.load(out).shape == (23, 3, 4)


# ---- the command


@pytest.fixture
def segment(tmp_path):
    np.save(tmp_path / "a.npy", tokens((30, 3, 4)))
    return tmp_path / "a.npy"


def test_the_command_writes_the_prompt_then_what_follows_in_the_segments_dtype(segment, tiny_model, tmp_path):
    out = tmp_path / "out.npy"
    options = ["--model", str(tiny_model), "--frames", "5", "--device", "numpy", "-q"]
    assert (
        run(["imagine", str(segment), "-o", str(out), "--prompt", "10", "--start", "4", "--every", "2", *options]) == 0
    )
    found, original = np.load(out), np.load(segment)
    assert (found.shape, found.dtype) == ((15, 3, 4), original.dtype)
    np.testing.assert_array_equal(found[:10], original[4:24:2])
    assert run(["imagine", str(segment), "-o", str(out), *options]) == 1  # exists
    assert run(["imagine", str(segment), "-o", str(out), *options, "-f", "--samples", "2"]) == 0
    one, other = np.load(tmp_path / "out-0.npy"), np.load(tmp_path / "out-1.npy")
    assert one.shape == (35, 3, 4)
    assert (one[30:] != other[30:]).any()


def test_an_archives_segment_goes_on_as_the_file_that_it_was_and_by_its_own_network(tmp_path, segment, tiny_model):
    (tmp_path / "data").mkdir()
    for name in ("one.npy", "two.npy"):
        np.save(tmp_path / "data" / name, tokens((30, 3, 4), seed=len(name) + ord(name[0])))
    archive = tmp_path / "a.zip"
    assert run(["compress", str(tmp_path / "data"), str(archive), "--model", str(tiny_model), "-q"]) == 0
    outs = [tmp_path / f"{i}.npy" for i in range(2)]
    assert run(["imagine", f"{archive}:two.npy", "-o", str(outs[0]), "--frames", "4", "-q"]) == 0
    command = ["imagine", f"{tmp_path}/data:two.npy", "-o", str(outs[1]), "--frames", "4", "-q"]
    assert run([*command, "--model", str(tiny_model), "--device", "numpy"]) == 0
    np.testing.assert_array_equal(np.load(outs[0]), np.load(outs[1]))


def test_what_the_command_cannot_use_it_says(segment, tiny_model, tmp_path, capsys):
    np.save(tmp_path / "b.npy", tokens((30, 3, 4)))
    out = str(tmp_path / "out.npy")
    for arguments, message in (
        ([str(tmp_path), "-o", out], "expected one segment, found 2: name one"),
        ([f"{tmp_path}:c.npy", "-o", out], "no segment 'c.npy' inside; expected one of a.npy, b.npy"),
        ([str(tmp_path / "none"), "-o", out], "no such file or folder"),
        ([str(segment), "-o", out], "needs a network for these tokens"),
        ([str(segment), "-o", str(tmp_path / "out.mp4")], "expected the name of a .npy file"),
        ([str(segment), "-o", out, "--model", str(tiny_model), "--prompt", "31"], "expected 31 frames for the prompt"),
        ([str(segment), "-o", out, "--model", str(tiny_model), "--steps", "2"], "within_frame=true"),
        ([str(segment), "-o", out, "--learn", "--top-k", "2"], "bit by bit"),
        ([str(segment), "-o", out, "--layout", "1x"], "expected a folder with video.bin"),
    ):
        assert run(["imagine", *arguments, "-q"]) == 1
        assert message in capsys.readouterr().err, arguments
    assert run(["imagine", str(segment), "-o", out, "--temperature", "warm"]) == 2
    assert not (tmp_path / "out.npy").exists()


def test_1xs_layout_holds_prompt_prediction_and_truth(tmp_path, capsys):
    config = tiny_config(height=3, width=3, factors=(512, 512))
    tensors = random_tensors(config)
    model = tmp_path / "m.vqm"
    model.write_bytes(write_model(config, tensors, self_test(Engine(config, tensors, NumpyOps()))))
    ids = np.random.default_rng(0).integers(0, 1 << 18, (400, 3, 3)).astype(np.uint32)
    write_video(tmp_path / "val", ids, np.repeat([0, 1], [150, 250]), {"vocab_size": 1 << 18, "hz": 30})
    out = tmp_path / "generated"
    command = ["imagine", str(tmp_path / "val"), "-o", str(out), "--layout", "1x", "--model", str(model), "-q"]
    assert run(command) == 1
    assert "frames 0 to 225, 16 that are 15 apart, to be in one clip" in capsys.readouterr().err
    assert run([*command, "--start", "160"]) == 0
    # What visualize.py reads: num_images frames of s x s token_dtype, and where prompt and prediction end.
    table = json.loads((out / "metadata.json").read_text())
    assert table["num_images"] == 2 * table["window_size"] - table["num_prompt_frames"] == 24
    video = np.fromfile(out / "video.bin", table["token_dtype"]).reshape(table["num_images"], table["s"], table["s"])
    truth = ids[160:386:15]
    np.testing.assert_array_equal(video[:8], truth[:8])
    np.testing.assert_array_equal(video[16:], truth[8:])
    assert (video[8:16] != truth[8:]).any()
    assert open_video(out).frames == 24
