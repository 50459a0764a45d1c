"""1X's metric, held against a computation of its own, against what is known by hand, and against coded bytes."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import random_tensors, tiny_config

import vqcomp
from vqcomp.cli import archives, run
from vqcomp.data.onex import open_video
from vqcomp.data.onex_write import write_video
from vqcomp.data.synthetic import write_synthetic
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.engine import Engine
from vqcomp.runtime.errors import DependencyError, InputError, ModelError
from vqcomp.runtime.exact import make_ops
from vqcomp.runtime.gpt import GPTCodec
from vqcomp.runtime.loading import self_test
from vqcomp.runtime.weights import write_model
from vqcomp.world import perceptual, protocol
from vqcomp.world.imagine import NetworkImaginer
from vqcomp.world.protocol import FrameGPTPredictor, Score, autoregressive, teacher_forced, window_starts

NUMPY = Compute("numpy")

FACTORS = (512, 512)


def windows(count=2, frames=16, positions=9, factors=FACTORS, seed=0):
    random = np.random.default_rng(seed)
    return np.stack([random.integers(0, size, (count, frames, positions)) for size in factors], -1)


class Table:
    """A predictor whose logits are made beforehand, one array (B, T, S, V) for each factor."""

    def __init__(self, *logits):
        self.logits, self.asked = logits, []

    def start(self, windows):
        return [0]

    def forward(self, state, previous):
        self.asked.append(previous)
        first, state[0] = state[0], state[0] + previous.shape[1]
        return [x[:, first : state[0]] for x in self.logits]


def one_hot(truth, scale):
    return [np.eye(size)[truth[..., f]] * scale for f, size in enumerate(FACTORS)]


def test_uniform_guesses_cost_the_logarithm_of_the_vocabulary():
    truth = windows()
    table = Table(*(np.zeros((*truth.shape[:3], 512)) for _ in FACTORS))
    score = teacher_forced(table, iter([truth]))
    assert score.cross_entropy == pytest.approx(2 * math.log(512), abs=1e-12)
    assert round(score.cross_entropy, 3) == 12.477
    assert (score.windows, score.frames) == (2, 30)


def test_a_model_that_knows_the_answer_costs_nothing():
    truth = windows()
    score = teacher_forced(Table(*one_hot(truth, 1000.0)), iter([truth]))
    assert (score.cross_entropy, score.accuracy) == (0.0, 1.0)


def test_a_token_is_accurate_if_both_factors_are():
    truth = windows(1, 3, 4)
    wrong = truth.copy()
    wrong[0, 1, 0, 0] += 1  # one factor of one token, the other of another, both of a third
    wrong[0, 2, 1, 1] += 1
    wrong[0, 2, 2] += 1
    score = teacher_forced(Table(*one_hot(wrong % 512, 1000.0)), iter([truth]))
    assert score.accuracy == (8 - 3) / 8
    assert score.cross_entropy == 4 * 1000.0 / 8


def test_the_first_frame_is_given_and_does_not_count():
    truth = windows(1, 2, 3)
    logits = one_hot(truth, 1000.0)
    for x in logits:
        x[:, 0] = 0
    assert teacher_forced(Table(*logits), iter([truth])).cross_entropy == 0.0


def test_it_is_the_sum_of_the_cross_entropies_that_torch_computes():
    torch = pytest.importorskip("torch")
    truth, random = windows(3), np.random.default_rng(1)
    logits = [random.normal(0, 3, (*truth.shape[:3], 512)) for _ in FACTORS]
    # As 1X's eval_utils.compute_loss has it: logits (B, 512, 2, T - 1, ...), labels (B, 2, T - 1, ...).
    stacked = torch.tensor(np.stack(logits, 1)[:, :, 1:]).permute(0, 4, 1, 2, 3)
    labels = torch.tensor(truth[:, 1:]).permute(0, 3, 1, 2)
    loss = torch.nn.functional.cross_entropy(stacked, labels, reduction="none").sum(1).mean().item()
    right = (stacked.argmax(1) == labels).all(1).double().mean().item()
    score = teacher_forced(Table(*logits), iter([truth]))
    assert score.cross_entropy == pytest.approx(loss, abs=1e-9)
    assert score.accuracy == right


def test_predictors_are_shown_the_true_frames_before_and_never_the_frame_itself():
    truth = windows(2, 5)
    table = Table(*one_hot(truth, 1.0))
    teacher_forced(table, iter([truth]))
    (asked,) = table.asked
    assert (asked[:, 0] == -1).all()
    np.testing.assert_array_equal(asked[:, 1:], truth[:, :-1])


def test_autoregressive_prediction_goes_on_from_its_own_guesses():
    truth, guesses = windows(2, 12), windows(2, 12, seed=1)
    table = Table(*one_hot(guesses, 10.0))
    score = autoregressive(table, iter([truth]), prompt=8)
    np.testing.assert_array_equal(table.asked[0][:, 1:], truth[:, :8])
    for asked, t in zip(table.asked[1:], range(9, 12)):
        np.testing.assert_array_equal(asked[:, 0], guesses[:, t - 1])
    assert len(table.asked) == 4
    assert score.frames == 2 * 4
    same = autoregressive(Table(*one_hot(truth, 1000.0)), iter([truth]), prompt=8)
    assert (same.cross_entropy, same.accuracy) == (0.0, 1.0)


def starts_by_1x(segment_ids, window, stride):
    """What 1X's data.py does, written down from its description: quadratic, and with sets of frames."""
    starts, used = [], set()
    for start in range(len(segment_ids) - (window - 1) * stride):
        frames = set(range(start, start + window * stride, stride))
        if segment_ids[start] == segment_ids[max(frames)] and not frames & used:
            starts.append(start)
            used |= frames
    return starts


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 4), st.integers(1, 5))
def test_windows_are_those_that_1x_takes(segment_ids, window, stride):
    assert window_starts(np.array(segment_ids, np.int32), window, stride) == starts_by_1x(segment_ids, window, stride)


def test_a_window_spans_226_frames_of_one_clip_at_2_hz():
    assert window_starts(np.zeros(225, np.int32)) == []
    assert window_starts(np.zeros(226, np.int32)) == [0]
    assert window_starts(np.zeros(480, np.int32)) == [*range(15), *range(240, 255)]
    assert window_starts(np.repeat([0, 1], 225).astype(np.int32)) == []


def test_windows_hold_every_15th_frame_split_into_factors(tmp_path):
    write_synthetic(tmp_path, frames=300, clips=1)
    video = open_video(tmp_path)
    (first, second) = protocol.read_windows(video, [0, 3, 59], 2)
    assert (first.shape, second.shape) == ((2, 16, 256, 2), (1, 16, 256, 2))
    joined = second[..., 0] + 512 * second[..., 1]
    np.testing.assert_array_equal(joined[0].reshape(16, 16, 16), video.take(range(59, 285, 15)))


@pytest.fixture(scope="module")
def network():
    config = tiny_config(height=3, width=3, factors=FACTORS)
    return Engine(config, random_tensors(config), make_ops("numpy"))


def test_a_networks_score_is_the_size_that_it_compresses_to(network):
    codec = GPTCodec(Engine(network.config, random_tensors(network.config), make_ops("numpy")))
    # What random words decode to is as the network predicts it: other tokens would be coded uniformly.
    ((tokens,),) = codec.decode([np.random.RandomState(0).bytes(4000)], [[16]])
    score = teacher_forced(FrameGPTPredictor(network), iter([tokens[None].astype(np.int64)]))
    assert score.cross_entropy < sum(math.log(size) for size in FACTORS)
    whole, first = codec.encode([[tokens], [tokens[:1]]])
    nats = 8 * (len(whole) - len(first)) * math.log(2)
    # A stream is whole words of 32 bits.
    assert abs(score.cross_entropy * 15 * 9 - nats) < 3 * 32 * math.log(2)


def test_scores_do_not_depend_on_the_batch_or_on_steps(network):
    truth = windows(5, 16)
    scores = [teacher_forced(FrameGPTPredictor(network), iter(np.split(truth, at))) for at in ([], [1], [2, 4])]
    assert len({(round(s.cross_entropy, 12), s.accuracy) for s in scores}) == 1
    # With all frames but the last as a prompt, the two settings predict the last frame alike.
    last = autoregressive(FrameGPTPredictor(network), iter([truth]), prompt=15)
    logits = FrameGPTPredictor(network).forward(network.start(5), protocol._previous(truth))
    nats, right = protocol.measure([x[:, 15] for x in logits], truth[:, 15])
    assert (last.cross_entropy, last.accuracy) == (pytest.approx(nats / 45), right / 45)


def write_folder(folder, frames=300, vocabulary=1 << 18):
    ids = np.random.default_rng(0).integers(0, vocabulary, (frames, 3, 3)).astype(np.uint32)
    ids[:, 1] = 7
    write_video(folder, ids, np.zeros(frames), {"vocab_size": vocabulary, "hz": 30})


def test_the_command_prints_every_setting_under_its_name(tmp_path, network, capsys):
    write_folder(tmp_path / "val")
    config = network.config
    model = tmp_path / "m.vqm"
    model.write_bytes(write_model(config, random_tensors(config), self_test(network)))
    command = ["evaluate", "--protocol", "1x", "--model", str(model), str(tmp_path / "val"), "--device", "numpy"]
    assert run(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("temporally teacher-forced: cross-entropy ")
    assert lines[1].startswith("fully autoregressive after 8 frames: cross-entropy ")
    assert lines[2].startswith("fully teacher-forced: does not apply")
    assert run([*command, "--json", "--max-windows", "3"]) == 0
    table = json.loads(capsys.readouterr().out)
    score = table["temporally teacher-forced"]
    assert score["windows"] == 3
    video = open_video(tmp_path / "val")
    expected = teacher_forced(FrameGPTPredictor(network), protocol.read_windows(video, [0, 1, 2], 4))
    assert score["cross_entropy"] == pytest.approx(expected.cross_entropy, abs=1e-9)
    assert table["fully teacher-forced"] is None
    assert Score(**score).frames == 45


def test_an_archive_of_a_folder_is_scored_as_the_folder_is(tmp_path, network):
    ids = np.random.default_rng(0).integers(0, 1 << 18, (500, 3, 3)).astype(np.uint32)
    write_video(tmp_path / "in" / "val", ids, np.repeat([4, 5], [240, 260]), {"vocab_size": 1 << 18, "hz": 30})
    config = network.config
    model = write_model(config, random_tensors(config), self_test(network))

    def scores(place):
        found = protocol.evaluate(model, place, compute=NUMPY)
        return {name: score and replace(score, seconds_per_frame=0) for name, score in found.items()}

    for folder in ("in/val", "in"):
        vqcomp.compress(tmp_path / folder, tmp_path / "val.zip", model="none", force=True, compute=NUMPY)
        assert scores(tmp_path / "val.zip") == scores(tmp_path / "in" / "val")


def test_archives_of_other_data_are_refused(tmp_path, network):
    np.save(tmp_path / "a.npy", np.zeros((3, 2, 2), np.int16))
    vqcomp.compress(tmp_path / "a.npy", tmp_path / "a.zip", model="none")
    with pytest.raises(InputError, match=r"expected an archive of one of 1X's folders"):
        protocol.evaluate(b"", tmp_path / "a.zip", compute=NUMPY)
    write_synthetic(tmp_path / "v2", 34, 1, 0, "v2.0")
    vqcomp.compress(tmp_path / "v2", tmp_path / "v2.zip", model="none", verify=False)
    with pytest.raises(InputError, match=r"Top-500"):
        protocol.evaluate(b"", tmp_path / "v2.zip", compute=NUMPY)


def steps_network():
    config = tiny_config(height=3, width=3, factors=FACTORS, within_frame=True)
    return Engine(config, random_tensors(config), make_ops("numpy"))


def paint(ids):
    """A tiny decoder: each token a block of 4 x 4 pixels of the id's lowest three bytes."""
    pixels = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
    return pixels.repeat(4, 1).repeat(4, 2)


def apart(a, b):
    """A tiny distance: the share of pixels that differ."""
    assert a.dtype == b.dtype == np.uint8
    return (a != b).any(-1).mean((1, 2))


def test_frames_generated_in_one_step_are_the_best_guesses_that_the_metric_scores(network):
    truth = windows(3, 16)
    network_predictor, imaginer = FrameGPTPredictor(network), NetworkImaginer(network)
    truth[:, 1:, :4] = 5  # something that an untrained network may hit
    for prompt, score in (
        (None, teacher_forced(network_predictor, iter([truth]))),
        (8, autoregressive(network_predictor, iter([truth]))),
    ):
        batches = iter(np.split(truth, [1]))
        found = protocol.generate(imaginer, batches, score, prompt, paint, apart)
        assert (found.accuracy, found.cross_entropy) == (score.accuracy, score.cross_entropy)
        # With this decoder and this distance, LPIPS is the share of wrong tokens.
        assert found.lpips == pytest.approx(1 - found.accuracy)
    assert teacher_forced(network_predictor, iter([truth])).lpips is None


def test_generating_in_steps_scores_its_own_frames_in_every_batch():
    net = steps_network()
    truth = windows(3, 5)
    score = teacher_forced(FrameGPTPredictor(net), iter([truth]))
    scores = [
        protocol.generate(NetworkImaginer(net, 3), iter(np.split(truth, at)), score, prompt, paint, apart)
        for prompt in (None, 2)
        for at in ([], [1])
    ]
    assert scores[0].lpips == scores[1].lpips
    assert scores[2].lpips == scores[3].lpips
    assert scores[0].cross_entropy == score.cross_entropy


def test_the_metric_takes_steps_and_a_decoder(tmp_path, network, monkeypatch, capsys):
    write_folder(tmp_path / "val", frames=240)
    within, model, plain = steps_network(), tmp_path / "m.vqm", tmp_path / "plain.vqm"
    model.write_bytes(write_model(within.config, random_tensors(within.config), self_test(within)))
    plain.write_bytes(write_model(network.config, random_tensors(network.config), self_test(network)))
    monkeypatch.setattr(protocol, "load_lpips", lambda device: apart)
    scores = protocol.evaluate(
        model.read_bytes(), tmp_path / "val", max_windows=1, steps=2, decode=paint, compute=NUMPY
    )
    for score in list(scores.values())[:2]:
        assert 0 < score.lpips <= 1
    command = ["evaluate", "--protocol", "1x", str(tmp_path / "val"), "--max-windows", "1", "--steps", "2"]
    monkeypatch.setattr(archives, "load_decoder", lambda place, compute: SimpleNamespace(decode=paint))
    assert run([*command, "--model", str(model), "--device", "numpy", "--decoder", "tiny"]) == 0
    assert capsys.readouterr().out.count(", LPIPS ") == 2
    assert run([*command, "--model", str(model), "--device", "numpy"]) == 0
    assert run([*command, "--model", str(plain), "--device", "numpy"]) == 1
    assert "within_frame=true" in capsys.readouterr().err


def test_lpips_needs_its_package_and_images_of_one_shape(monkeypatch):
    torch = pytest.importorskip("torch")

    class Lpips:
        """As the package's class: takes (N, 3, h, w) in -1..1, gives (N, 1, 1, 1)."""

        class LPIPS(torch.nn.Module):
            def __init__(self, net, verbose):
                super().__init__()
                assert (net, verbose) == ("alex", False)

            def forward(self, x, y):
                assert x.shape[1] == 3
                assert max(abs(x).max(), abs(y).max()) <= 1
                return ((x - y) ** 2).mean((1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", Lpips)
    distance = perceptual.load_lpips("numpy")
    black, white = np.zeros((40, 5, 6, 3), np.uint8), np.full((40, 5, 6, 3), 255, np.uint8)
    np.testing.assert_array_equal(distance(black, white), np.full(40, 4.0))
    with pytest.raises(InputError, match="of one shape"):
        distance(black, white[:3])
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(DependencyError, match=r"vqcomp\[lpips\]"):
        perceptual.load_lpips()


def test_the_real_lpips_is_0_for_equal_images_and_grows_with_their_difference(monkeypatch):
    lpips = pytest.importorskip("lpips")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    # AlexNet's trained weights would have to be fetched; the package's own ones are there.
    real = lpips.LPIPS
    monkeypatch.setattr(lpips, "LPIPS", lambda **options: real(**options, pnet_rand=True))
    distance, random = perceptual.load_lpips("cpu"), np.random.default_rng(0)
    image = random.integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    assert (distance(image, image) == 0).all()
    assert (distance(image, 255 - image) > 0).all()


def test_data_of_v2_have_no_metric_and_it_says_why(tmp_path, network):
    write_synthetic(tmp_path, 34, 1, 0, "v2.0")
    with pytest.raises(InputError, match='Top-500 cross-entropy" of which no formula was published'):
        protocol.evaluate(b"", tmp_path, compute=NUMPY)


def test_what_cannot_be_scored_is_refused(tmp_path, network, capsys):
    model = tmp_path / "m.vqm"
    model.write_bytes(write_model(network.config, random_tensors(network.config), self_test(network)))
    write_folder(tmp_path / "short", frames=225)
    with pytest.raises(InputError, match=r"video\.bin: expected a window .* longest clip has 225 frames"):
        protocol.evaluate(model.read_bytes(), tmp_path / "short", compute=NUMPY)
    write_folder(tmp_path / "other", vocabulary=1000)
    with pytest.raises(ModelError, match="the model predicts"):
        protocol.evaluate(model.read_bytes(), tmp_path / "other", compute=NUMPY)
    for arguments in (["--protocol", "1x", "a"], ["--protocol", "1x", "--model", "m", "a", "b"], ["a"]):
        assert run(["evaluate", *arguments]) == 2
    assert run(["evaluate", "--protocol", "1x", "--model", "none", str(tmp_path / "other")]) == 1
    assert "expected one model" in capsys.readouterr().err


def test_a_network_that_is_trained_on_a_folder_scores_better_than_guessing_and_compresses_it(tmp_path, capsys):
    pytest.importorskip("torch")
    # A pattern that moves by one column in half a second.
    pattern = np.random.default_rng(0).integers(0, 1 << 18, (4, 5)).astype(np.uint32)
    ids = np.stack([np.roll(pattern, t // 15, 1)[:, :4] for t in range(390)])
    write_video(tmp_path / "train", ids, np.repeat([0, 1], [380, 10]), {"vocab_size": 1 << 18, "hz": 30})
    model = tmp_path / "m.vqm"
    assert run(["train", str(tmp_path / "train"), "-o", str(model), "--preset", "1x", "--steps", "8", "-q"]) == 0
    scores = protocol.evaluate(model.read_bytes(), tmp_path / "train", compute=NUMPY)
    score = scores["temporally teacher-forced"]
    assert score is not None
    assert score.cross_entropy < 2 * math.log(512) - 1
    archive = tmp_path / "a.zip"
    options = ["--model", str(model), "--no-adapt", "--device", "numpy", "-q"]
    assert run(["compress", str(tmp_path / "train"), str(archive), *options]) == 0
    assert run(["decompress", str(archive), "-o", str(tmp_path / "back"), "-q"]) == 0
    assert (tmp_path / "back/video.bin").read_bytes() == ids.tobytes()
    capsys.readouterr()
    write_video(tmp_path / "short", ids[:300], np.arange(300), {"vocab_size": 1 << 18, "hz": 30})
    assert run(["train", str(tmp_path / "short"), "-o", str(model), "--preset", "1x", "-f"]) == 1
    assert "expected a segment of 255 frames or more, found none" in capsys.readouterr().err
    assert run(["train", str(tmp_path / "short"), "-o", str(model), "--preset", "2x", "-f"]) == 1
    assert "no preset '2x': expected one of pico, nano, mini, small, base, large, 1x" in capsys.readouterr().err
