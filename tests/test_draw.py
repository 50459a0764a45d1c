"""Segments drawn from a network: always the same, distributed as it says, and coded by it at their cost."""

from __future__ import annotations

import hashlib
import json
from math import log2

import numpy as np
import pytest
from conftest import files_in
from networks import random_tensors, tiny_config

from vqcomp.cli import run
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.engine import Engine
from vqcomp.runtime.exact import make_ops
from vqcomp.runtime.kinds import make_codec
from vqcomp.runtime.loading import self_test
from vqcomp.runtime.weights import write_model
from vqcomp.world.draw import Draws, draw

CONFIG = tiny_config()
ENGINE = Engine(CONFIG, random_tensors(CONFIG), make_ops("numpy"))
FACTORED = tiny_config(factors=(40, 33))


def drawn(frames: int, seed: int, segments: range, engine: Engine = ENGINE) -> list[tuple[np.ndarray, float]]:
    return list(draw(engine, frames, seed, segments))


def test_the_same_seed_gives_the_same_tokens_in_any_batch_and_over_any_library():
    together = drawn(12, 5, range(6))
    alone = [drawn(12, 5, range(i, i + 1))[0] for i in range(6)]
    engines = [Engine(CONFIG, random_tensors(CONFIG), make_ops("cpu"))] if pytest.importorskip("torch") else []
    for other in [alone, *(drawn(12, 5, range(6), engine) for engine in engines)]:
        for (a, bits_a), (b, bits_b) in zip(together, other, strict=True):
            np.testing.assert_array_equal(a, b)
            assert bits_a == pytest.approx(bits_b, abs=1e-7)
    # As drawn on other machines.
    found = hashlib.sha256(np.stack([a for a, _ in together]).astype("<i4").tobytes()).hexdigest()
    assert found == "2d212690b013dc23f0a48fcdb8f8af59c2d848280de423eb47addd9d2bc4a3ac"
    assert not np.array_equal(together[0][0], together[1][0])
    assert not np.array_equal(together[0][0], drawn(12, 6, range(1))[0][0])


@pytest.mark.parametrize("config", [CONFIG, FACTORED], ids=["one factor", "two factors"])
def test_coding_them_by_their_model_takes_no_more_than_was_said(config):
    engine = Engine(config, random_tensors(config), make_ops("numpy"))
    model = write_model(config, random_tensors(config), self_test(engine))
    codec = make_codec(config.spec, model, compute=Compute("numpy", 1))
    for ids, bits in drawn(1200, 3, range(2), engine):
        segment = config.spec.split(ids.reshape(len(ids), -1)).astype(np.int32)
        coded = 8 * len(codec.encode([[segment]])[0])
        assert bits < coded < 1.0005 * bits + 64  # a stream ends with up to two words


def test_a_shipped_models_own_tokens_take_less_than_a_2000th_over_what_they_cost(tmp_path, capsys):
    from vqcomp.model_files import shipped_models

    assert run(["sample-data", str(tmp_path / "d"), "--from", "commavq-pico", "--segments", "2", "--frames", "200",
                "--seed", "1", "-q"]) == 0  # fmt: skip
    costs = json.loads((tmp_path / "d/costs.json").read_text())
    model = shipped_models()["commavq-pico"]
    assert costs["sha256"] == hashlib.sha256(model.data).hexdigest()
    assert (
        files_in(tmp_path / "d")
        == {"drawn-0000.npy", "drawn-0001.npy", "costs.json"}
        == {*costs["segments"], "costs.json"}
    )
    codec, coded = make_codec(model.spec, model.data), 0
    for name in costs["segments"]:
        array = np.load(tmp_path / "d" / name)
        assert (array.dtype, array.shape) == (np.int16, (200, 8, 16))
        coded += 8 * len(codec.encode([[array.reshape(200, 128, 1).astype(np.int32)]])[0])
    assert costs["bits"] == pytest.approx(sum(costs["segments"].values()), abs=2e-6)
    assert costs["bits"] < coded <= 1.0005 * costs["bits"]


def test_symbols_come_as_often_as_their_intervals_are_wide():
    widths = np.array([1, 3, 1 << 20, 5 << 20, 9 << 20])
    widths = np.append(widths, (1 << 24) - 2 - widths.sum())
    bounds = 1 + np.concatenate([[0], np.cumsum(widths)]).astype(np.float64)
    draws = Draws(0, 0)
    n = 200_000
    counts = np.bincount(draws.get_symbols(np.tile(bounds, (n, 1))), minlength=len(widths))
    p = widths / widths.sum()
    # Six standard deviations.
    assert (np.abs(counts - n * p) <= 6 * np.sqrt(n * p * (1 - p)) + 1).all()
    assert draws.bits == pytest.approx(-sum(c * log2(q) for c, q in zip(counts, p)), abs=1e-6)


def test_every_point_of_the_intervals_can_be_drawn_and_no_other(monkeypatch):
    class Words:
        def __init__(self) -> None:
            self.left = [0, (1 << 24) - 1, 1, (1 << 24) - 2, 7]

        def random_raw(self, count: int) -> np.ndarray:
            taken, self.left = self.left[:count], self.left[count:]
            return np.array(taken, np.uint64) << np.uint64(40)

    draws = Draws(0, 0)
    monkeypatch.setattr(draws, "_source", Words())
    assert draws._points(3).tolist() == [1, (1 << 24) - 2, 7]


def test_wrong_use_is_an_error_and_nothing_is_overwritten(tmp_path, tiny_model, capsys):
    command = ["sample-data", str(tmp_path / "d"), "--from", str(tiny_model), "--frames", "2", "-q"]
    assert run(command) == 0
    before = (tmp_path / "d/costs.json").read_bytes()
    assert run(command) == 1 and "exists already; -f overwrites it" in capsys.readouterr().err
    assert run([*command, "-f"]) == 0 and (tmp_path / "d/costs.json").read_bytes() == before
    assert run([*command, "-f", "--layout", "1x"]) == 2
    assert run([*command, "-f", "--seed", str(1 << 64)]) == 1
    assert "expected an integer in 0..2^64 - 1" in capsys.readouterr().err
    assert run(["sample-data", str(tmp_path / "e"), "--from", "none"]) == 1
    assert "--from none: expected one model" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()
