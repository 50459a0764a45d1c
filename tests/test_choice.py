"""Choosing a model: the smallest zip wins, what cannot win is not weighed, and nothing is coded twice."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import random_tensors, tiny_config

import vqcomp
from vqcomp import estimates
from vqcomp.choice import Chooser
from vqcomp.data.segments import SegmentSource
from vqcomp.estimates import Estimate, Estimator
from vqcomp.model_files import ModelFile, read_model_file, shipped_models
from vqcomp.runtime.adapt import AdaptiveCodec
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.engine import Engine
from vqcomp.runtime.exact import make_ops
from vqcomp.runtime.kinds import make_codec
from vqcomp.runtime.loading import self_test
from vqcomp.runtime.mixed import MixedCodec
from vqcomp.runtime.progress import Progress
from vqcomp.runtime.spec import TokenSpec
from vqcomp.runtime.weights import write_model

SPEC = TokenSpec(3, 4, (70,))


def sources(count: int, frames: int) -> list[SegmentSource]:
    arrays = [tokens((frames, 3, 4), seed=i) for i in range(count)]
    return [SegmentSource(str(i), a.dtype, a.shape, (3, 4), a) for i, a in enumerate(arrays)]


def estimator(segments: list[SegmentSource], *, adapt: bool = True, group_size: int = 8) -> Estimator:
    return Estimator(
        segments, SPEC, adapt=adapt, group_size=group_size, mixed_specs=False, compute=Compute("numpy"),
        progress=Progress(),
    )  # fmt: skip


def free(monkeypatch) -> None:
    """Have a network weighed even for few tokens."""
    monkeypatch.setattr(Estimator, "decoder", lambda self, model: 0)
    monkeypatch.setattr("vqcomp.choice.FLOOR", 100)


def chooser(segments, report=lambda line: None) -> Chooser:
    return Chooser(segments, True, 8, Compute(), Progress(), report)


def test_auto_takes_the_model_where_it_makes_the_zip_smaller(tmp_path, tiny_model, monkeypatch):
    from vqcomp import model_files

    data = {f"{i}": tokens((300, 3, 4), 70, seed=i) for i in range(4)}
    model = read_model_file(tiny_model)
    monkeypatch.setattr(model_files, "shipped_models", lambda: {"tiny": model})
    free(monkeypatch)
    lines = []
    summary = vqcomp.compress(data, tmp_path / "auto.zip", report=lines.append)
    sizes = {name: vqcomp.compress(data, tmp_path / f"{name}.zip", model=name).zip_bytes for name in ("none", "tiny")}
    best = min(sizes, key=sizes.get)
    assert summary.zip_bytes == sizes[best]
    assert lines[-1] == f"model: {best}"
    assert [line.split()[0] for line in lines[:-1]] == ["model", "none", "tiny"]


def test_weights_are_paid_for_only_where_they_save_more(monkeypatch, told):
    model = ModelFile("tiny", b"0" * 300, SPEC)
    segments = {model.spec: [SimpleNamespace(tokens=10**6)], TokenSpec(2, 2, (2,)): []}
    plain = Estimate("none", 1200, 0, 40, "")
    for payload, expected in ((880, model), (900, None)):
        monkeypatch.setattr(
            "vqcomp.choice.Estimator", told(plain, {model.name: Estimate(model.name, payload, 300, 50, "")}, 0)
        )
        chosen, found = chooser(segments).weigh([model])
        assert chosen == expected
        assert [(e.model, e.total) for e in found] == [("none", 1240), ("tiny", payload + 350)]
    few = {model.spec: [SimpleNamespace(tokens=100)]}
    assert chooser(few).weigh([model]) == (None, [])


def test_what_can_no_longer_win_is_not_weighed_and_that_is_told(monkeypatch, told):
    models = [ModelFile(name, b"0" * size, SPEC) for name, size in (("light", 100), ("heavy", 650))]
    plain = Estimate("none", 1000, 0, 0, "")
    light = Estimate("light", 900, 100, 0, "")  # heavy would have to take less than half of 900 to come below 1000
    lines: list[str] = []
    monkeypatch.setattr("vqcomp.choice.Estimator", told(plain, {"light": light}, 0))
    _, found = chooser({SPEC: [SimpleNamespace(tokens=10**6)]}, lines.append).weigh(models)
    assert [e.model for e in found] == ["none", "light"]
    assert lines == ["heavy was not weighed: to pay for its weights it would have to halve the payload"]


def test_a_network_that_learning_makes_no_smaller_than_the_learner_is_not_taken(monkeypatch, told):
    model = ModelFile("tiny", b"0" * 300, SPEC)

    class Wrong(told(Estimate("none", 1000, 0, 0, ""), {model.name: Estimate("tiny", 900, 0, 0, "")}, 0)):
        def in_full(self, models):
            assert models == [model]
            return Estimate("tiny", 1001, 0, 0, "")

    monkeypatch.setattr("vqcomp.choice.Estimator", Wrong)
    chosen, found = chooser({model.spec: [SimpleNamespace(tokens=10**6)]}).weigh([model])
    assert chosen is None and [e.payload for e in found] == [1000, 1001]


@pytest.mark.parametrize("count", [8, 20])
def test_auto_gives_the_bytes_of_its_choice_and_codes_no_group_twice(tmp_path, tiny_model, monkeypatch, count):
    from vqcomp import model_files

    data = {f"{i:02}": tokens((200, 3, 4), 70, seed=i) for i in range(count)}
    monkeypatch.setattr(model_files, "shipped_models", lambda: {"tiny": read_model_file(tiny_model)})
    free(monkeypatch)
    plain, encode = [], AdaptiveCodec.encode

    def counted(self, groups, advance=None):
        if not isinstance(self, MixedCodec):
            plain.extend(sum(s.size for s in group) for group in groups)
        return encode(self, groups, advance)

    monkeypatch.setattr(AdaptiveCodec, "encode", counted)
    options = {"verify": False, "compute": Compute(jobs=1)}
    vqcomp.compress(data, tmp_path / "auto.zip", **options)
    assert sum(plain) == sum(a.size for a in data.values())
    vqcomp.compress(data, tmp_path / "none.zip", model="none", **options)
    assert (tmp_path / "auto.zip").read_bytes() == (tmp_path / "none.zip").read_bytes()


def is_stretch(part: np.ndarray, whole: np.ndarray) -> bool:
    return any(np.array_equal(part, whole[t : t + len(part)]) for t in range(len(whole) - len(part) + 1))


@given(st.integers(1, 30), st.integers(1, 60), st.integers(1, 64), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_sample_is_part_of_the_tokens_and_its_windows_part_of_it(count, frames, group_size, whole):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimates, "WHOLE_TOKENS", (1 << 19) * whole)
        patch.setattr(estimates, "TOKENS", (1 << 8, 1 << 10))
        patch.setattr(estimates, "WINDOW_TOKENS", 1 << 9)
        segments = sources(count, frames)
        sample = estimator(segments, group_size=group_size).sample
        arrays = [s.tokens_of(SPEC) for s in segments]
        if whole:
            cut = [arrays[i : i + group_size] for i in range(0, count, group_size)]
            for number, group in zip(sample.numbers, sample.groups, strict=True):
                assert all(np.array_equal(a, b) for a, b in zip(cut[number], group, strict=True))
        else:
            assert all(any(is_stretch(s, a) for a in arrays) for s in sample.segments)
            assert all(len(group) <= group_size for group in sample.groups)
        assert sample.scale >= 1 and sample.growth >= 1
        assert len(sample.windows) > 0
        assert sum(w.size for w in sample.windows) <= max(1 << 9, estimates.WINDOW_FRAMES * 12)
        for window in sample.windows:
            assert 1 <= len(window) <= estimates.WINDOW_FRAMES
            assert any(np.shares_memory(window, s) for s in sample.segments)


def test_what_learning_takes_is_carried_on_as_it_falls(monkeypatch):
    monkeypatch.setattr(estimates, "WHOLE_TOKENS", 0)
    one, worse = estimator(sources(4, 4000)), estimator(sources(4, 4000))
    frames = len(one.sample.segments[0])
    assert frames * one.sample.growth == pytest.approx(4000)
    monkeypatch.setattr(one, "_coded", lambda codec, model, part=1: 3000 + 20000 / (frames / part) ** 0.5)
    assert one.plain.payload == pytest.approx(3000 + 20000 / 4000**0.5, abs=1)
    monkeypatch.setattr(worse, "_coded", lambda codec, model, part=1: 3000 / part)
    assert worse.plain.payload == 3000  # where it gets worse, it is not taken to go on so


@pytest.mark.parametrize("whole", [True, False])
def test_a_network_by_itself_is_estimated_near_what_it_takes(tiny_model, monkeypatch, whole):
    monkeypatch.setattr(estimates, "WHOLE_TOKENS", (1 << 19) * whole)
    monkeypatch.setattr(estimates, "WINDOW_TOKENS", 1 << 13)
    monkeypatch.setattr(estimates, "WINDOW_FRAMES", 64)
    segments, model = sources(20, 200), read_model_file(tiny_model)
    told = estimator(segments, adapt=False).by_itself(model).payload
    codec = make_codec(SPEC, model.data, compute=Compute("numpy"))
    coded = sum(map(len, codec.encode([[s.tokens_of(SPEC)] for s in segments])))
    assert told == pytest.approx(coded, rel=0.1)


def test_a_shipped_network_is_estimated_within_three_percent(example):
    array = np.load(example)
    parts = [array[i : i + 60] for i in range(0, 1200, 150)]
    segments = [SegmentSource(str(i), a.dtype, a.shape, (8, 16), a) for i, a in enumerate(parts)]
    pico = shipped_models()["commavq-pico"]
    options = {"adapt": False, "group_size": 8, "mixed_specs": False}
    told = Estimator(segments, pico.spec, compute=Compute(threads=1), progress=Progress(), **options).by_itself(pico)
    codec = make_codec(pico.spec, pico.data, compute=Compute(threads=1))
    coded = sum(map(len, codec.encode([[s.tokens_of(pico.spec)] for s in segments])))
    assert told.payload == pytest.approx(coded, rel=0.03)


def test_of_networks_near_each_other_the_one_that_takes_less_codes_the_whole_sample(tiny_model, monkeypatch):
    monkeypatch.setattr(estimates, "WHOLE_TOKENS", 0)
    config = tiny_config()
    tensors = random_tensors(config, seed=5, spread=60)
    data = write_model(config, tensors, self_test(Engine(config, tensors, make_ops("numpy"))))
    models = [read_model_file(tiny_model), ModelFile("other", data, SPEC)]
    one = estimator(sources(4, 300))
    alone = [one.in_full([model]) for model in models]
    both = one.in_full(models)
    assert both == min(alone, key=lambda e: e.total)
