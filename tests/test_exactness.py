"""The same bits from every backend, GEMM, batch, chunk, thread count and instruction set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import Float64Ops, random_segment, random_tensors, tiny_config

from vqcomp.runtime import loading, products
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.config import WEIGHT_MAX
from vqcomp.runtime.engine import Engine
from vqcomp.runtime.errors import ModelError, PlatformError
from vqcomp.runtime.exact import NumpyOps, TorchOps
from vqcomp.runtime.gpt import GPTCodec
from vqcomp.runtime.loading import load_engine, self_test
from vqcomp.runtime.mixed import FramePredictor, MixedCodec
from vqcomp.runtime.products import BfloatOps, Int8Ops, PackedOps, fastest
from vqcomp.runtime.spec import TokenSpec
from vqcomp.runtime.tables import Tables
from vqcomp.runtime.weights import write_model

CONFIGS = {
    "tiny": tiny_config(),
    "factored": tiny_config(factors=(40, 33), stack=1),
    "spatial only": tiny_config(temporal_heads=0, flags=()),
    "temporal only": tiny_config(spatial_heads=0, copies=(), window=1),
    "small vocabulary": tiny_config(factors=(5,)),
    "within frame": tiny_config(factors=(40, 33), within_frame=True),
}
BACKENDS = {
    "numpy float32": NumpyOps,
    "numpy float64": Float64Ops,
    "torch float32": lambda: TorchOps("cpu", "float32"),
    "torch float64": lambda: TorchOps("cpu", "float64"),
    "torch int8": Int8Ops,
    "torch packed": lambda: _packed(),
    "cuda float32": lambda: _cuda(lambda: TorchOps("cuda", "float32")),
    "cuda int8": lambda: _cuda(lambda: Int8Ops("cuda")),
    "cuda bfloat16": lambda: _cuda(BfloatOps),
}


def _packed():
    ops = PackedOps()
    try:
        ops.linear(torch.zeros(1, 32), ops.weight(np.zeros((32, 32), np.int8)))
    except (RuntimeError, AttributeError, TypeError) as error:
        pytest.skip(f"this torch has no such products: {error}")
    return ops


def _cuda(make):
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA GPU here")
    return make()


def codec(config, backend="torch float32", seed=0, spread=24):
    return GPTCodec(Engine(config, random_tensors(config, seed, spread), BACKENDS[backend]()))


def logits(engine, segment, chunks):
    """Predict a segment in the given numbers of steps -> per factor (T, S, V)."""
    state, start, parts = engine.start(1), 0, []
    previous = np.concatenate([np.full_like(segment[:1], -1), segment[:-1]])[None]
    for steps in chunks:
        parts.append([engine.ops.host(x) for x in engine.forward(state, previous[:, start : start + steps])])
        start += steps
    assert start == len(segment)
    return [np.concatenate(p).reshape(len(segment), segment.shape[1], -1) for p in zip(*parts, strict=True)]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_writes_the_same_bytes_and_reads_every_others(config, backend):
    segments = [[random_segment(config.spec, n, n)] for n in (9, 4, 6)]
    streams = codec(config, "numpy float32").encode(segments)
    other = codec(config, backend)
    assert self_test(other.engine) == self_test(codec(config, "numpy float32").engine)
    assert other.encode(segments) == streams
    for (found,), (segment,) in zip(other.decode(streams, [[9], [4], [6]]), segments, strict=True):
        np.testing.assert_array_equal(found, segment)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_mixes_the_same_bytes(config, backend):
    group = [random_segment(config.spec, n, n) for n in (5, 8, 3)]
    streams = MixedCodec(config.spec, FramePredictor(codec(config).engine)).encode([group])
    mixed = MixedCodec(config.spec, FramePredictor(codec(config, backend).engine))
    assert mixed.encode([group]) == streams
    for found, segment in zip(mixed.decode(streams, [[5, 8, 3]])[0], group, strict=True):
        np.testing.assert_array_equal(found, segment)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [1, 12, 65])
def test_products_of_vectors_at_the_bounds_are_those_of_integers(backend, rows):
    """Weights of +-63, inputs of +-127, as many columns as a network may have; every kind of rounding."""
    ops, random = BACKENDS[backend](), np.random.RandomState(0)
    for n, k in ((96, 2096), (40, 96), (7, 24), (1, 1)):
        codes, x = random.randint(-WEIGHT_MAX, WEIGHT_MAX + 1, (n, k)), random.randint(-127, 128, (rows, k))
        codes[: n // 3], x[: rows // 3 + 1] = WEIGHT_MAX, 127
        codes[n // 3 : n // 2], x[rows // 2 :: 2] = -WEIGHT_MAX, -127
        scales = np.exp2(np.arange(n) % 60 / -4).astype(np.float32)
        exact = (x @ codes.T).astype(np.float32)
        arguments = ops.load(x.astype(np.float32)), ops.weight(codes.astype(np.int8), scales)
        np.testing.assert_array_equal(ops.host(ops.linear(*arguments)), exact * scales)
        np.testing.assert_array_equal(ops.host(ops.codes(*arguments)), np.clip(np.rint(exact * scales), -127, 127))
        plain = ops.weight(codes.astype(np.int8))
        np.testing.assert_array_equal(ops.host(ops.linear(arguments[0], plain)), exact)


def timed(monkeypatch, **seconds):
    """Trials take so long, by the kind of products, whatever they took."""
    real = products.trial
    monkeypatch.setattr(products, "trial", lambda ops, *rest: (real(ops, *rest)[0], seconds[ops.gemm]))


def test_the_fastest_kind_of_products_is_chosen_if_it_is_clearly_faster(monkeypatch):
    plain, config = TorchOps("cpu"), CONFIGS["tiny"]
    timed(monkeypatch, float32=1.0, int8_packed=2.0, int8=0.5)
    assert fastest(plain, config).gemm == "int8"
    monkeypatch.undo()
    timed(monkeypatch, float32=1.0, int8_packed=0.9, int8=0.8)
    assert fastest(plain, config) is plain


def test_a_kind_of_products_that_is_not_exact_is_dropped_with_a_warning(monkeypatch, caplog):
    timed(monkeypatch, float32=1.0, int8_packed=2.0, int8=0.1)
    right = Int8Ops._product

    def saturating(self, x, matrix):
        return right(self, x, matrix).clamp(-(1 << 15), (1 << 15) - 1)

    monkeypatch.setattr(Int8Ops, "_product", saturating)
    plain = TorchOps("cpu")
    assert fastest(plain, CONFIGS["tiny"]) is plain
    assert "int8 products are not exact here" in caplog.text


def test_a_kind_of_products_that_this_torch_lacks_is_passed_over(monkeypatch):
    def missing(*_):
        raise AttributeError("no such operation")

    monkeypatch.setattr(PackedOps, "weight", missing)
    monkeypatch.setattr(Int8Ops, "_product", missing)
    plain = TorchOps("cpu")
    assert fastest(plain, CONFIGS["tiny"]) is plain


def test_a_large_network_is_loaded_with_the_kind_that_was_chosen_and_predicts_the_same(monkeypatch):
    config = CONFIGS["tiny"]
    tensors = random_tensors(config)
    model = write_model(config, tensors, self_test(Engine(config, tensors, NumpyOps())))
    assert load_engine(config.spec, model, Compute("cpu")).ops.gemm == "float32"
    monkeypatch.setattr(loading, "LARGE_MODEL", len(model))
    timed(monkeypatch, float32=1.0, int8_packed=2.0, int8=0.1)
    engine, segment = load_engine(config.spec, model, Compute("cpu")), random_segment(config.spec, 5)
    assert engine.ops.gemm == "int8"
    np.testing.assert_array_equal(logits(engine, segment, [5]), logits(codec(config).engine, segment, [2, 3]))


def test_a_fork_goes_on_by_itself():
    config = CONFIGS["tiny"]
    engine, segment = codec(config).engine, random_segment(config.spec, 12)
    whole = logits(engine, segment, [12])[0]
    previous = np.concatenate([np.full_like(segment[:1], -1), segment[:-1]])[None]
    for first in range(1, 8):
        state = engine.start(1)
        engine.forward(state, previous[:, :first])
        fork = engine.fork(state, 2)
        for t in range(first, 12):  # what one does, the other does not see
            x = engine.forward(state, previous[:, t : t + 1] // 2)
            (y,) = engine.forward(fork, previous[:, t : t + 1].repeat(2, 0))
            np.testing.assert_array_equal(engine.ops.host(y).reshape(2, *whole[t].shape), np.stack([whole[t]] * 2))
        assert (engine.ops.host(x[0]) != whole[11]).any()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_prefill_and_step_give_the_same_logits(config):
    engine, segment = codec(config).engine, random_segment(config.spec, 12)
    whole = logits(engine, segment, [12])
    for chunks in ([1] * 12, [5, 7], [2, 1, 4, 5]):
        for a, b in zip(whole, logits(engine, segment, chunks), strict=True):
            np.testing.assert_array_equal(a, b)
    assert whole[0].std() > 20, "logits of a useful spread, or this test compares nothing"


def test_future_frames_do_not_change_past_predictions():
    config = CONFIGS["tiny"]
    engine, segment = codec(config).engine, random_segment(config.spec, 10)
    changed = segment.copy()
    changed[6:] = (changed[6:] + 1) % config.factors[0]
    a, b = logits(engine, segment, [10])[0], logits(engine, changed, [10])[0]
    np.testing.assert_array_equal(a[:7], b[:7])
    assert (a[7:] != b[7:]).any()


def test_frames_older_than_the_receptive_field_do_not_matter():
    config = CONFIGS["tiny"]
    reach = config.blocks * (config.window - 1) + config.history
    engine, segment = codec(config).engine, random_segment(config.spec, reach + 3)
    changed = segment.copy()
    changed[0] = (changed[0] + 1) % config.factors[0]
    a, b = (logits(engine, x, [reach + 3])[0] for x in (segment, changed))
    assert (a[1] != b[1]).any()
    np.testing.assert_array_equal(a[reach + 1 :], b[reach + 1 :])


@pytest.mark.parametrize("size", [1, 3, 8])
def test_streams_do_not_depend_on_the_batch(size):
    config = CONFIGS["tiny"]
    gpt = codec(config)
    groups = [[random_segment(config.spec, 3 + n % 4, n)] for n in range(8)]
    alone = [gpt.encode([group])[0] for group in groups]
    lengths = [[len(group[0])] for group in groups]
    for start in range(0, 8, size):
        batch = slice(start, start + size)
        assert gpt.encode(groups[batch]) == alone[batch]
        for (found,), (segment,) in zip(gpt.decode(alone[batch], lengths[batch]), groups[batch], strict=True):
            np.testing.assert_array_equal(found, segment)


def test_largest_weights_stay_exact():
    """Codes of +-63 everywhere and saturated activations: float32 sums must still be those of float64."""
    config = tiny_config(dim=512, hidden=2000, head_dim=64, rank=64)
    tensors = {}
    for name, (codes, scales) in random_tensors(config).items():
        loud = 8 if name.split(".")[-1] in ("qkv", "up", "proj", "down", "position") else 0
        tensors[name] = np.where(codes < -8, -WEIGHT_MAX, WEIGHT_MAX).astype(np.int8), scales + np.int8(loud)
    segment = random_segment(config.spec, 4)
    a, b = (logits(Engine(config, tensors, ops()), segment, [4])[0] for ops in (NumpyOps, Float64Ops))
    np.testing.assert_array_equal(a, b)
    assert (a == np.rint(a)).all() and np.ptp(a) > 0


@pytest.mark.parametrize("changes", [{"hidden": 2097}, {"head_dim": 200}, {"height": 33, "width": 32}, {"rank": 3000}])
def test_configs_whose_sums_could_round_are_refused(changes):
    with pytest.raises(ModelError, match="too large"):
        tiny_config(**changes)


@pytest.mark.parametrize("name", ["blocks.1.proj", "blocks.0.down", "embed.0", "flags"])
def test_scales_whose_sums_could_round_are_refused(name):
    config = CONFIGS["tiny"]
    tensors = dict(random_tensors(config))
    codes, scales = tensors[name]
    tensors[name] = codes, scales * 0 + 70
    with pytest.raises(ModelError, match=f"{name}.*too large"):
        Engine(config, tensors, NumpyOps())


@pytest.mark.parametrize("broken", ["round_", "quotient", "linear", "bits_to_float"])
def test_self_test_refuses_hardware_that_breaks_the_rules(broken, monkeypatch):
    config = CONFIGS["tiny"]
    tensors = random_tensors(config)
    model = write_model(config, tensors, self_test(Engine(config, tensors, NumpyOps())))
    right = getattr(NumpyOps(), broken)

    def wrong(*args):
        result = right(*args)
        result *= np.float32(1 + 2**-9)
        return result

    monkeypatch.setattr(NumpyOps, broken, staticmethod(wrong))
    with pytest.raises(PlatformError, match="not exact"):
        load_engine(config.spec, model, Compute("numpy"))


def test_a_model_refuses_tokens_of_another_shape():
    config = CONFIGS["tiny"]
    with pytest.raises(ModelError, match="predicts"):
        load_engine(TokenSpec(8, 16, (1024,)), write_model(config, random_tensors(config), 0), Compute("numpy"))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_engine_computes_what_was_trained(config):
    from vqcomp.training.model import FrameGPT

    torch.manual_seed(0)
    model = FrameGPT(config).eval()
    with torch.no_grad():
        for p in model.parameters():  # off its start, where gates and biases are zero
            p.add_(torch.randn_like(p) * max(0.05, float(p.std(correction=0))))
    segment = random_segment(config.spec, 11)
    with torch.no_grad():
        trained = model(torch.from_numpy(segment[None]).long())
    engine = Engine(*model.export(), NumpyOps())
    for x, y in zip(logits(engine, segment, [4, 7]), trained, strict=True):
        np.testing.assert_array_equal(x, np.rint(y[0].numpy() * np.float32(64 / np.log(2))))
        assert x.std() > 20


def test_engine_computes_what_was_trained_from_known_tokens_of_the_frame_itself():
    from vqcomp.training.model import FrameGPT

    config = CONFIGS["within frame"]
    torch.manual_seed(0)
    model = FrameGPT(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * max(0.05, float(p.std(correction=0))))
    segment = random_segment(config.spec, 11)
    known = np.random.RandomState(1).rand(11, config.positions) < 0.4
    with torch.no_grad():
        trained = model(torch.from_numpy(segment[None]).long(), torch.from_numpy(known[None]))
        blind = model(torch.from_numpy(segment[None]).long())
    own = np.where(known[..., None], segment, -1)[None]
    previous = np.concatenate([np.full_like(segment[:1], -1), segment[:-1]])[None]
    for backend in [name for name in BACKENDS if not name.startswith(("cuda", "torch packed"))]:
        engine = Engine(*model.export(), BACKENDS[backend]())
        state = engine.start(1)
        parts = [engine.forward(state, previous[:, a:b], own[:, a:b]) for a, b in ((0, 4), (4, 5), (5, 11))]
        for x, y, z in zip(zip(*parts), trained, blind, strict=True):
            found = np.concatenate([engine.ops.host(part) for part in x]).reshape(y[0].shape)
            np.testing.assert_array_equal(found, np.rint(y[0].numpy() * np.float32(64 / np.log(2))))
            assert (y != z).any()


def test_frequencies_follow_the_softmax():
    x = np.random.RandomState(0).randint(-400, 400, (50, 70)).astype(np.float32)
    w = Tables(x.copy(), NumpyOps()).w.reshape(50, -1)[:, :70]
    exact = 2.0 ** (x / 64)
    exact /= exact.sum(1, keepdims=True)
    loss = (exact * np.log2(exact / (w / w.sum(1, keepdims=True)))).sum(1)
    assert 0 < loss.mean() < 5e-4


ENVIRONMENTS = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "two threads": {"OMP_NUM_THREADS": "2"},
    "no vectors": {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
    "no oneDNN": {"MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "numpy without vectors": {"NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F", "VQCOMP_PROBE_DEVICE": "numpy"},
    "OpenBLAS of an old core": {"OPENBLAS_CORETYPE": "Nehalem", "VQCOMP_PROBE_DEVICE": "numpy"},
}


def test_archives_are_identical_over_instruction_sets_and_threads(tmp_path):
    """Each environment writes the archive, and reads the one that the first wrote."""
    reports = {}
    for name, variables in ENVIRONMENTS.items():
        command = [sys.executable, str(Path(__file__).with_name("probe.py")), str(tmp_path)]
        run = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
        assert run.returncode == 0, f"{name}: {run.stderr}"
        reports[name] = json.loads(run.stdout)
    assert len({json.dumps(report, sort_keys=True) for report in reports.values()}) == 1, reports
