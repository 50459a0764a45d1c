"""Networks of the GPT-2 family: exact everywhere, near the float network, clear about checkpoints that will not do."""

from __future__ import annotations

import json
import math
import os
from decimal import Decimal, localcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from gpt2s import CONFIG, CONFIG_JSON, SPEC, arrays, network, safetensors, save, segment
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Float64Ops

from vqcomp.runtime.errors import DamageError, InputError, ModelError
from vqcomp.runtime.exact import NumpyOps, TorchOps
from vqcomp.runtime.products import Int8Ops
from vqcomp.runtime.spec import TokenSpec
from vqcomp.runtime.tables import Tables
from vqcomp.runtime.token_codec import TokenCodec
from vqcomp.runtime.token_config import Precision, TokenConfig
from vqcomp.runtime.token_engine import TokenGPT
from vqcomp.runtime.token_ops import root
from vqcomp.runtime.token_tables import GELU_STEP, POWER_BITS, POWER_STEP, gelu, powers
from vqcomp.runtime.token_weights import WEIGHT_TOP, Load, find_weights, open_weights, quantise, read_config
from vqcomp.runtime.token_windows import TokenWindows

BEST = Precision()
PRECISIONS = [Precision(w, a) for w in (1, 2) for a in (1, 2)]
BACKENDS = {
    "numpy float32": NumpyOps,
    "numpy float64": Float64Ops,
    "torch float32": lambda: TorchOps("cpu", "float32"),
    "torch one thread": lambda: TorchOps("cpu", "float32", 1),
    "torch float64": lambda: TorchOps("cpu", "float64"),
    "torch int8": Int8Ops,
}


MODEL = network()
ARRAYS = arrays(MODEL)


def engine(backend="torch float32", precision=BEST, config=CONFIG, tensors=ARRAYS):
    return TokenGPT(config, tensors.__getitem__, BACKENDS[backend](), precision)


def codec_of(engine, keep=3, spec=SPEC):
    return TokenCodec(TokenWindows(engine, spec, keep))


class Checkpoint(NamedTuple):
    config: TokenConfig
    path: Path
    load: Load


def read_checkpoint(folder):
    """A folder's, all of it."""
    config, path = read_config(folder), find_weights(folder)
    return Checkpoint(config, path, open_weights(path, config))


def some_ids(batch, length, config=CONFIG, seed=0):
    return np.random.RandomState(seed).randint(0, config.vocabulary, (batch, length))


def logits(engine, ids, cuts=()):
    """(B, L, V) of ids (B, L), taken in pieces that end at `cuts`."""
    state, parts = engine.start(len(ids)), []
    for a, b in zip((0, *cuts), (*cuts, ids.shape[1]), strict=True):
        parts.append(engine.ops.host(engine.logits(engine.forward(state, ids[:, a:b]))).reshape(len(ids), b - a, -1))
    return np.concatenate(parts, 1)


def float_logits(model, ids):
    """In 1/64 bit, of the ids that are predicted."""
    with torch.no_grad():
        return model(torch.from_numpy(ids))[..., : model.config.bos].double().numpy() * 64 / math.log(2)


# ---- exactness


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_every_backend_gives_the_same_logits(precision):
    ids = some_ids(3, 78)
    expected = logits(engine("numpy float32", precision), ids)
    assert 64 < expected.std() < 1000, "logits of a useful spread, or this test compares nothing"
    for backend in BACKENDS:
        np.testing.assert_array_equal(logits(engine(backend, precision), ids), expected, backend)


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("backend", ["numpy float32", "torch float32"])
def test_prefill_and_step_give_the_same_logits(backend, precision):
    ids, network = some_ids(2, 78), engine(backend, precision)
    whole = logits(network, ids)
    for cuts in (range(1, 78), (1, 13, 14, 60), (40,)):
        np.testing.assert_array_equal(logits(network, ids, tuple(cuts)), whole)


def test_a_segment_is_predicted_alike_alone_and_beside_others():
    ids, network = some_ids(5, 40), engine()
    together = logits(network, ids)
    for i in range(5):
        np.testing.assert_array_equal(logits(network, ids[i : i + 1])[0], together[i])


def test_scores_in_small_pieces_give_the_same_logits(monkeypatch):
    ids, network = some_ids(3, 30), engine()
    whole = logits(network, ids)
    monkeypatch.setattr("vqcomp.runtime.token_engine.SCORES", 1)
    np.testing.assert_array_equal(logits(network, ids), whole)


def test_later_ids_do_not_change_earlier_predictions():
    ids = some_ids(1, 30)
    changed = ids.copy()
    changed[0, 20:] = (changed[0, 20:] + 1) % 71
    a, b = logits(engine(), ids), logits(engine(), changed)
    np.testing.assert_array_equal(a[:, :20], b[:, :20])
    assert (a[:, 20:] != b[:, 20:]).any()


def test_products_of_more_inputs_than_one_exact_sum_may_have_are_split():
    config = TokenConfig(layers=1, heads=2, dim=16, positions=26, vocabulary=71, hidden=4096 + 8)
    tensors = arrays(network(config))
    # The largest codes there are, so that a sum over all inputs would pass 2^24.
    tensors["transformer.h.0.mlp.c_proj.weight"] = np.full((config.hidden, 16), 0.01, np.float32)
    tensors["transformer.h.0.mlp.c_fc.weight"] = np.zeros((16, config.hidden), np.float32)
    tensors["transformer.h.0.mlp.c_fc.bias"] = np.full(config.hidden, 3.0, np.float32)
    ids = some_ids(2, 26, config)
    for precision in PRECISIONS:
        results = [logits(engine(b, precision, config, tensors), ids) for b in BACKENDS]
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("value", [0.0, 1e-42, 1e30])
def test_weights_of_any_size_give_the_same_logits_everywhere(value):
    tensors = {name: np.full_like(x, value) for name, x in ARRAYS.items()}
    ids = some_ids(2, 20)
    with np.errstate(over="ignore"):
        results = [logits(engine(b, tensors=tensors), ids) for b in BACKENDS]
    assert np.isfinite(results[0]).all()
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@given(st.integers(0, (1 << 62) - 1))
def test_a_root_is_exact(x):
    for near in range(max(0, math.isqrt(x) - 1), math.isqrt(x) + 2):
        for number in {x, near * near, max(0, near * near - 1)}:
            if number < 1 << 62:
                assert root(np.array([number]))[0] == math.isqrt(number)
                assert root(torch.tensor([number])).item() == math.isqrt(number)


def test_tables_are_the_nearest_integers():
    table = powers()
    with localcontext() as context:
        context.prec = 40
        for i in range(0, len(table) - 1, 97):
            assert abs(Decimal(2) ** (POWER_BITS - Decimal(i) / POWER_STEP) - int(table[i])) <= Decimal("0.5000001")
    assert table[-1] == 0
    assert (np.diff(table) <= 0).all()
    x = torch.arange(len(gelu(14)), dtype=torch.float64) / GELU_STEP
    expected = (torch.nn.functional.gelu(x, approximate="tanh") - x) * 2**14
    assert np.abs(gelu(14) - expected.numpy()).max() <= 0.5 + 1e-6


@given(
    st.integers(1, 2),
    st.lists(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=5, max_size=5), min_size=1),
)
def test_quantised_weights_are_near_and_within_bounds(parts, rows):
    matrix = np.array(rows, np.float32)
    codes, largest = quantise(matrix, parts)
    assert codes.min() >= -64
    assert codes.max() <= 63
    whole = codes.astype(np.float64)
    if parts == 2:
        whole = whole[: len(matrix)] * 128 + whole[len(matrix) :]
    step = largest[:, None].astype(np.float64) / WEIGHT_TOP[parts]
    normal = largest > 1e-30
    assert (np.abs(whole * step - matrix)[normal] <= 0.501 * np.broadcast_to(step, matrix.shape)[normal]).all()


# ---- nearness to the float network


@pytest.mark.parametrize(
    ("precision", "loss"), list(zip(PRECISIONS, (0.0025, 0.002, 0.001, 0.0005), strict=True)), ids=str
)
def test_quantisation_costs_little(precision, loss):
    """In bits per token, of tokens that the float network itself would draw: its Kullback-Leibler divergence."""
    ids = some_ids(8, 78)
    network = engine(precision=precision)
    truth = torch.from_numpy(float_logits(MODEL, ids) * math.log(2) / 64).log_softmax(-1)
    found = network.ops.load(logits(network, ids).reshape(-1, 70))
    weights = Tables(found, network.ops).w.reshape(8, 78, -1)[..., :70].double()
    coded = (weights / weights.sum(-1, keepdim=True)).log()
    divergence = ((truth.exp() * (truth - coded)).sum(-1)).mean().item() / math.log(2)
    assert 0 <= divergence < loss


def test_the_float_network_is_that_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=71, n_positions=78, n_embd=64, n_layer=2, n_head=4, tie_word_embeddings=False, resid_pdrop=0,
        embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).eval()
    state = {name: x for name, x in theirs.state_dict().items() if not name.endswith((".attn.bias", ".masked_bias"))}
    assert {name: tuple(x.shape) for name, x in state.items()} == CONFIG.tensor_shapes()
    theirs.load_state_dict(MODEL.state_dict(), strict=False)
    ids = torch.from_numpy(some_ids(3, 78))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, MODEL(ids), atol=1e-4, rtol=0)


def test_a_checkpoint_that_transformers_saved_is_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=71, n_positions=78, n_embd=64, n_layer=2, n_head=4, tie_word_embeddings=False
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.path.name == "model.safetensors"
    assert checkpoint.config == CONFIG
    for name in CONFIG.tensor_shapes():
        np.testing.assert_array_equal(checkpoint.load(name), theirs.state_dict()[name].numpy())


# ---- the codec


@pytest.mark.parametrize("keep", range(6))
def test_streams_decode_to_what_was_encoded(keep):
    groups = [[segment(n, n)] for n in (14, 1, 6, 7, 14)]
    codec = codec_of(engine(), keep)
    told = []
    streams = codec.encode(groups, told.append)
    decoded = codec.decode(streams, [[len(s)] for (s,) in groups], told.append)
    for (found,), (expected,) in zip(decoded, groups, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert sum(told) == 2 * sum(s.size for (s,) in groups)


def modelled_stream(codec, tokens, monkeypatch):
    """The stream by the network, even where another way would be shorter."""
    monkeypatch.setattr("vqcomp.runtime.token_codec.encode_uniform", lambda *_: bytes(1 << 20))
    return codec.encode(tokens)


@pytest.mark.parametrize("keep", [0, 3, 5])
@pytest.mark.parametrize("reader", ["numpy float32", "torch int8", "torch float32"])
def test_a_backend_reads_what_another_predicted(keep, reader, monkeypatch):
    groups = [[segment(n, n)] for n in (14, 1, 6, 9)]
    streams = modelled_stream(codec_of(engine("torch float32"), keep), groups, monkeypatch)
    other = codec_of(engine(reader), keep)
    assert other.encode(groups) == streams
    assert [other.encode([group])[0] for group in groups] == streams
    decoded = other.decode(streams, [[len(s)] for (s,) in groups])
    for (found,), (expected,) in zip(decoded, groups, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_number_of_rows_in_a_call_does_not_change_streams(monkeypatch):
    groups = [[segment(n, n)] for n in (14, 9)]
    codec = codec_of(engine(), 2)
    streams = modelled_stream(codec, groups, monkeypatch)
    monkeypatch.setattr("vqcomp.runtime.token_windows.ROWS", 1)
    assert codec.encode(groups) == streams


def test_frames_before_the_window_do_not_matter(monkeypatch):
    """With 2 of 6 frames kept, frame 6 is predicted from frames 4 and 5, and frame 5 from all before."""
    codec, tokens = codec_of(engine(), 2), segment(7)
    changed = tokens.copy()
    changed[3] = (changed[3] + 1) % 70
    costs = {}
    monkeypatch.setattr(
        "vqcomp.runtime.coder.Encoder.put", lambda self, low, high: costs.setdefault(self, []).append(high - low)
    )
    for name, frames in (("plain", tokens), ("changed", changed)):
        costs.clear()
        codec.encode([[frames]])
        (parts,) = costs.values()
        found = np.concatenate(parts).reshape(7, -1)
        if name == "plain":
            plain = found
    np.testing.assert_array_equal(plain[6], found[6])
    assert (plain[5] != found[5]).any()


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=64).map(lambda b: b[: len(b) // 4 * 4]))
def test_any_stream_is_refused_or_gives_ids_in_range(data):
    codec = codec_of(engine())
    try:
        ((found,),) = codec.decode([data], [[2]])
    except DamageError:
        return
    assert found.min() >= 0
    assert found.max() < 70


@pytest.mark.parametrize("bad", [-1, 70, 71])
def test_ids_that_the_network_does_not_predict_are_refused(bad):
    tokens = segment(2)
    tokens[1, 3] = bad
    with pytest.raises(InputError, match=rf"expected ids in 0\.\.69, found {bad}"):
        codec_of(engine()).encode([[tokens]])


def test_other_tokens_than_the_networks_are_refused():
    for spec, message in (
        (TokenSpec(3, 4, (64,)), "ids below 70"),
        (TokenSpec(3, 4, (70, 2)), "ids below 70"),
        (TokenSpec(8, 16, (70,)), "the network sees 78 ids; a frame of 8x16 tokens has 129"),
    ):
        with pytest.raises(ModelError, match=message):
            codec_of(engine(), spec=spec)
    for keep in (-1, 6):
        with pytest.raises(InputError, match="expected 0 to 5"):
            codec_of(engine(), keep)


# ---- checkpoints


def test_defaults_are_the_shape_of_gpt2m():
    assert TokenConfig().parameters() == 307_052_544
    assert TokenConfig().frames(TokenSpec(8, 16, (1024,))) == 20
    assert TokenConfig.from_dict({}) == TokenConfig()


def test_both_kinds_of_file_give_the_same_network(tmp_path):
    for name in ("bin", "st", "half"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(CONFIG_JSON))
    masks = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 78, 78),
        "transformer.h.1.attn.masked_bias": torch.tensor(-1e4),
    }
    torch.save(MODEL.state_dict() | masks, tmp_path / "bin/pytorch_model.bin")
    (tmp_path / "st/model.safetensors").write_bytes(safetensors(ARRAYS))
    code = lambda x: (x.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()  # noqa: E731
    (tmp_path / "half/model.safetensors").write_bytes(safetensors(ARRAYS, "BF16", code))
    read = {name: read_checkpoint(tmp_path / name) for name in ("bin", "st", "half")}
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read["bin"].load(name), array)
        np.testing.assert_array_equal(read["st"].load(name), array)
        np.testing.assert_allclose(read["half"].load(name), array, rtol=2**-7)
    assert {c.config for c in read.values()} == {CONFIG}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("lm_head.weight"), "no tensor lm_head.weight, expected one of shape (71, 64)"),
        (lambda s: s.update({"transformer.wpe.weight": torch.zeros(9, 64)}), "shape (78, 64), found (9, 64)"),
        (
            lambda s: s.update({"transformer.h.2.ln_1.weight": torch.ones(64)}),
            'expected no tensor "transformer.h.2.ln_1',
        ),
        (lambda s: s.update({"transformer.h.0.mlp.c_fc.weight": torch.ones(256, 64)}), "found (256, 64)"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused_by_name(tmp_path, change, message):
    state = dict(MODEL.state_dict())
    change(state)
    save(tmp_path, state)
    with pytest.raises(ModelError) as caught:
        read_checkpoint(tmp_path)
    assert message in str(caught.value)


WTE = "transformer.wte.weight"
SHAPE, WHERE = [71, 64], [0, 4 * 71 * 64]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"data_offsets": [4, WHERE[1] + 4]}, "tensors that overlap, or bytes that are of none"),
        ({"data_offsets": [1 << 40, WHERE[1] + (1 << 40)]}, "tensors that overlap, or bytes that are of none"),
        ({"data_offsets": WHERE[::-1]}, "no type, shape and place"),
        ({"data_offsets": [-8, WHERE[1] - 8]}, "no type, shape and place"),
        ({"data_offsets": [0.0, float(WHERE[1])]}, "no type, shape and place"),
        ({"data_offsets": None}, "no type, shape and place"),
        ({"dtype": "F16"}, "of another size than its shape says"),
        ({"dtype": ["F32"]}, "expected numbers of a type among F64, F32, F16, BF16, found "),
        ({"shape": [-71, -64]}, "no type, shape and place"),
        ({"shape": [1 << 61] * 200_000}, "no type, shape and place"),  # whose product would take hours
    ],
    ids=range(10),
)
def test_a_header_of_safetensors_that_does_not_fit_is_refused(tmp_path, entry, message):
    whole = safetensors(ARRAYS)
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    assert header[WTE] == {"dtype": "F32", "shape": SHAPE, "data_offsets": WHERE}
    header[WTE] |= entry
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
    with pytest.raises(ModelError, match=message):
        open_weights(tmp_path / "model.safetensors", CONFIG)(WTE)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[]", "a header that is no JSON object"),
        (b'{"a": ' * 9999, "a header that is not JSON"),
        (b"\xff{}", "a header that is not JSON"),
        (b'{"a": 1, "a": 1}', "a header that has a name twice"),
        (b'{"a": 1}', 'no type, shape and place of the tensor "a"'),
    ],
)
def test_a_header_of_safetensors_that_is_none_is_refused(tmp_path, header, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ModelError, match=f"expected a file of safetensors, found {message}"):
        open_weights(path, CONFIG)


@pytest.mark.parametrize("length", [0, 1 << 20, 1 << 63])
def test_a_header_of_safetensors_that_is_longer_than_its_file_is_not_read(tmp_path, length):
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelError, match=f"found 10 bytes with a header of {length:,}: fetch it again"):
        open_weights(path, CONFIG)


def test_bytes_after_the_last_tensor_are_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(safetensors(ARRAYS) + b"\0")
    with pytest.raises(ModelError, match="bytes that are of none"):
        open_weights(tmp_path / "model.safetensors", CONFIG)


def test_parameters_are_read_as_tensors_are(tmp_path):
    save(tmp_path, dict(MODEL.named_parameters()))
    np.testing.assert_array_equal(read_checkpoint(tmp_path).load(WTE), ARRAYS[WTE])


@pytest.mark.parametrize(
    "change",
    [torch.Tensor.to_sparse, torch.Tensor.long, lambda x: x.to("meta"), lambda x: x.to(torch.complex64)],
    ids=["sparse", "integers", "without values", "complex"],
)
def test_tensors_of_other_kinds_are_refused(tmp_path, change):
    save(tmp_path, MODEL.state_dict() | {WTE: change(MODEL.state_dict()[WTE])})
    with pytest.raises(ModelError, match=rf"{WTE}: expected numbers of a type among F64, .*, found \"torch\."):
        read_checkpoint(tmp_path).load(WTE)


@pytest.mark.parametrize("state", [[1], 7, {"state_dict": {}}, {WTE: None}], ids=str)
def test_other_values_than_tensors_are_refused_without_advice_to_run_them(tmp_path, state):
    save(tmp_path, state)
    with pytest.raises(ModelError, match=r"expected a dictionary of tensors, .* code, which is not run") as caught:
        read_checkpoint(tmp_path)
    assert "weights_only" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
@pytest.mark.parametrize("make", ["mkfifo", "mkdir", "symlink"])
def test_a_config_that_is_no_regular_file_is_not_waited_for(tmp_path, make):
    getattr(os, make)(*["/dev/zero"] * (make == "symlink"), tmp_path / "config.json")
    with pytest.raises(ModelError, match=r"config.json: expected a regular file of at most 1,048,576 bytes"):
        read_config(tmp_path)


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    state = dict(MODEL.state_dict())
    state["lm_head.weight"] = state["lm_head.weight"] * math.nan
    save(tmp_path, state)
    with pytest.raises(ModelError, match=r"lm_head\.weight: expected finite weights"):
        read_checkpoint(tmp_path).load("lm_head.weight")


class Harm:
    def __reduce__(self):
        return Path.touch, (Path("harm"),)


def test_nothing_in_a_checkpoint_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path, {"transformer.wte.weight": Harm()})
    with pytest.raises(ModelError, match="expected a dictionary of tensors"):
        read_checkpoint(tmp_path)
    assert not (tmp_path / "harm").exists()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_of_safetensors_is_refused_or_of_the_right_shapes(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "config.json").write_text(json.dumps(CONFIG_JSON))
    whole = bytearray(safetensors(ARRAYS))
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(0, len(whole) - 1)) :]
    else:
        whole[data.draw(st.integers(0, 6000))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "model.safetensors").write_bytes(whole)
    try:
        checkpoint = read_checkpoint(folder)
        for name, shape in CONFIG.tensor_shapes().items():
            assert checkpoint.load(name).shape == shape
    except ModelError:
        pass


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_layer": 0}, "n_layer: expected an integer in 1..65536, found 0"),
        ({"n_head": 3}, "expected n_embd to be a multiple of n_head, found 64, 3"),
        ({"n_embd": 8192, "n_head": 64}, "n_embd: expected at most 4096"),
        ({"n_positions": 5000}, "n_positions: expected at most 4095"),
        ({"model_type": "llama"}, 'model_type: expected "gpt2", found "llama"'),
        ({"activation_function": "relu"}, 'expected gelu_new, found "relu"'),
        ({"layer_norm_epsilon": "x"}, 'layer_norm_epsilon: expected a number in 0..1, found "x"'),
    ],
)
def test_a_config_that_will_not_do_is_refused(tmp_path, values, message):
    save(tmp_path, MODEL.state_dict(), CONFIG_JSON | values)
    with pytest.raises(ModelError) as caught:
        read_checkpoint(tmp_path)
    assert message in str(caught.value)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"model.safetensors or pytorch_model.bin, found neither"):
        read_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"no pickle")
    with pytest.raises(ModelError, match="expected a dictionary of tensors"):
        read_checkpoint(tmp_path)
