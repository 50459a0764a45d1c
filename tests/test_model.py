"""Properties of FrameGPT: causal in time, integers throughout, exported as it is trained."""

import json
import math

import numpy as np
import pytest
from networks import ring_config

torch = pytest.importorskip("torch")

from vqcomp.runtime.arithmetic import WEIGHT_MAX
from vqcomp.runtime.config import ModelConfig
from vqcomp.runtime.errors import ModelError
from vqcomp.runtime.weights import read_config, write_model
from vqcomp.training.functions import LOGIT_NATS, product
from vqcomp.training.model import FrameGPT
from vqcomp.training.quantise import LearnedStep, multiplier, quantise, shared_scales


def make_config(**changes):
    return ring_config(**{"blocks": 2, "temporal_heads": 2, "hidden": 40, **changes})


CONFIGS = {
    "both": make_config(),
    "time only": make_config(spatial_heads=0),
    "space only": make_config(temporal_heads=0),
    "two factors": make_config(factors=(5, 7), stack=3),
    "bare": make_config(flags=(), copies=(), stack=1),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def make_model(config, **options):
    torch.manual_seed(1)
    model = FrameGPT(config, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def make_tokens(config, frames=11, batch=2, seed=0, ids=4):
    """Few different ids, so that flags and copies meet equal tokens."""
    rng = np.random.default_rng(seed)
    shape = (batch, frames, config.positions)
    return torch.from_numpy(np.stack([rng.integers(0, min(ids, v), shape) for v in config.factors], -1))


@each_config
def test_logits_have_a_shape_for_each_factor(config):
    tokens = make_tokens(config)
    with torch.no_grad():
        logits = make_model(config)(tokens)
    assert [tuple(x.shape) for x in logits] == [(*tokens.shape[:3], v) for v in config.factors]


@each_config
def test_future_frames_do_not_change_past_predictions(config):
    model, tokens, cut = make_model(config), make_tokens(config), 5
    other = tokens.clone()
    other[:, cut:] = make_tokens(config, seed=9)[:, cut:]
    with torch.no_grad():
        for a, b in zip(model(tokens), model(other), strict=True):
            assert torch.equal(a[:, : cut + 1], b[:, : cut + 1])
            assert not torch.equal(a[:, cut + 1 :], b[:, cut + 1 :])


@each_config
def test_a_window_that_starts_late_gives_the_same_predictions_once_its_reach_is_inside(config):
    model, tokens = make_model(config), make_tokens(config, frames=30)
    reach = config.history + config.blocks * (config.window - 1)
    with torch.no_grad():
        for a, b in zip(model(tokens), model(tokens[:, 7:]), strict=True):
            assert torch.equal(a[:, 7 + reach :], b[:, reach:])


@each_config
def test_predictions_do_not_depend_on_the_batch(config):
    model, tokens = make_model(config), make_tokens(config, batch=3)
    with torch.no_grad():
        for a, b in zip(model(tokens), model(tokens[1:2]), strict=True):
            assert torch.equal(a[1:2], b)


@each_config
def test_all_activations_are_integers(config):
    model, tokens = make_model(config), make_tokens(config)
    with torch.no_grad():
        h = model.residual(tokens, model.embeddings())
        logits = [x / LOGIT_NATS for x in model(tokens)]
    assert torch.equal(h, h.round()) and h.abs().max() <= config.residual_max
    for x in logits:
        assert (x - x.round()).abs().max() < 1e-3  # they are divided by a factor that is no power of two


@each_config
def test_the_loss_is_the_cross_entropy_of_the_logits(config):
    model, tokens, skip = make_model(config), make_tokens(config), 2
    with torch.no_grad():
        logits = model(tokens)
        loss = model.loss(tokens, skip=skip).item()
    expected = sum(
        torch.nn.functional.cross_entropy(x[:, skip:].flatten(0, 2), tokens[:, skip:, :, f].flatten()).item()
        for f, x in enumerate(logits)
    )
    assert loss == pytest.approx(expected / math.log(2), abs=5e-3)  # the loss does not round logits


@each_config
def test_export_has_the_declared_names_shapes_and_ranges(config):
    found, tensors = make_model(config).export()
    shapes = config.tensor_shapes()
    assert found == config and list(tensors) == list(shapes)
    for name, (shape, scales) in shapes.items():
        codes, exponents = tensors[name]
        assert codes.dtype == exponents.dtype == np.int8
        assert codes.shape == shape and exponents.shape == (scales,)
        assert abs(codes.astype(int)).max() <= WEIGHT_MAX


@each_config
def test_every_parameter_gets_a_gradient(config):
    model = make_model(config, dropout=0.1, token_dropout=0.1, code_dropout=0.1).train()
    model.loss(make_tokens(config)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@each_config
def test_gradients_without_rounding_are_those_of_finite_differences(config):
    model = make_model(config, quantised=False).double()
    tokens = make_tokens(config)
    model.loss(tokens).backward()
    for name, parameter in model.named_parameters():
        direction = parameter.grad / parameter.grad.norm()
        slope = float((parameter.grad * direction).sum())
        values, size = [], 1e-5
        with torch.no_grad():
            for sign in (1, -1):
                parameter.add_(direction, alpha=sign * size)
                values.append(model.loss(tokens).item())
                parameter.sub_(direction, alpha=sign * size)
        assert (values[0] - values[1]) / (2 * size) == pytest.approx(slope, rel=1e-3), name


def test_rounding_costs_little():
    config = make_config(dim=64, hidden=128, rank=16)
    model, tokens = make_model(config), make_tokens(config)
    with torch.no_grad():
        coded = model.loss(tokens).item()
        model.quantised = False
        assert model.loss(tokens).item() == pytest.approx(coded, rel=0.05)


def test_dropout_acts_in_training_only():
    config = make_config()
    model, tokens = make_model(config, dropout=0.5, token_dropout=0.5), make_tokens(config)
    with torch.no_grad():
        assert model.loss(tokens) == model.loss(tokens)
        model.train()
        assert model.loss(tokens) != model.loss(tokens)


def test_a_model_starts_at_the_frequencies_it_is_given():
    config = make_config()
    model = FrameGPT(config).eval()
    counts = np.arange(1, 12) ** 2 * 1000
    model.set_frequencies([counts])
    with torch.no_grad():
        for parameter in (*model.embed, *model.head):
            parameter.zero_()
        (logits,) = model(make_tokens(config))
    share = logits[0, 0, 0].softmax(0).numpy()
    assert share == pytest.approx(counts / counts.sum(), rel=0.1)


def test_multipliers_are_quarter_powers_of_two():
    codes = torch.arange(-128, 128)
    exact = [np.float32(2.0 ** ((c % 4) / 4)) * np.float32(2.0 ** (c // 4)) for c in range(-128, 128)]
    assert multiplier(codes).numpy().tolist() == [float(x) for x in exact]


@pytest.mark.parametrize("unit", [1.0, 8.0, 2.0**-2.5])
def test_codes_times_multipliers_are_within_half_a_step_of_the_weights(unit):
    torch.manual_seed(0)
    weight = torch.randn(50, 70) * torch.logspace(-3, 2, 50)[:, None]
    weight[3, 5] = 100 * weight[3].std()  # an outlier makes the step larger, it is not clipped
    weight[7] = 0
    codes, m, scales = quantise(weight, unit, 50)
    assert torch.equal(codes, codes.round()) and codes.abs().max() <= WEIGHT_MAX
    assert torch.equal(m[:, 0], multiplier(scales))
    assert ((codes * m - weight * unit).abs() <= 0.51 * m).all()


@each_config
def test_nothing_leaves_the_device_of_the_parameters(config):
    """On the meta device, which computes shapes alone, a tensor of another device or a number read back is an error."""
    with torch.device("meta"):
        model = FrameGPT(config, dropout=0.1, token_dropout=0.1, code_dropout=0.1, learned_steps=True).train()
    tokens = make_tokens(config).to("meta")
    assert all(x.is_meta for x in model(tokens))
    (model.loss(tokens, skip=1) + model.weight_bits()).backward()
    assert all(parameter.grad.is_meta for parameter in model.parameters())


def test_integers_within_eight_bits_are_exact_in_bfloat16():
    codes = torch.arange(-256, 257)
    assert torch.equal(codes.to(torch.bfloat16).to(torch.int64), codes)
    assert product(torch.ones(2, 3, 4, device="meta"), torch.ones(2, 4, 5, device="meta"), True).dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@each_config
def test_a_gpu_computes_the_same_logits(config):
    model, tokens = make_model(config), make_tokens(config)
    with torch.no_grad():
        expected = model(tokens)
        for a, b in zip(model.cuda()(tokens.cuda()), expected, strict=True):
            assert torch.equal(a.cpu(), b)


def coded_bits(config, tensors):
    """Size of the coded weights in a .vqm, its head and its checksum left out."""
    data = write_model(config, tensors, 0)
    return 8 * (len(data) - read_config(data)[2] - 4)


@each_config
@pytest.mark.parametrize("learned", [False, True])
def test_weight_bits_are_the_size_that_the_weights_are_coded_in(config, learned):
    model = make_model(config, learned_steps=learned)
    coded = coded_bits(config, model.export()[1])
    assert model.weight_bits().item() == pytest.approx(coded, rel=0.05)


def test_weight_bits_follow_the_coder_where_rows_and_columns_differ():
    config = make_config(dim=64, hidden=256, rank=32)
    model = make_model(config, learned_steps=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("steps."):
                parameter.copy_(torch.rand_like(parameter) * 6 - 3)
        model.get_parameter("blocks.0.down")[:, ::2] *= 0.1
        _, tensors = model.export()
        coded = coded_bits(config, tensors)
        assert 0.1 < np.mean([not row.any() for row in tensors["blocks.0.up"][0]]) < 0.5
        assert model.weight_bits().item() == pytest.approx(coded, rel=0.02)


def test_rows_of_zeros_take_the_scale_of_the_row_before():
    codes = torch.tensor([[0, 0], [1, 0], [0, 0], [0, 0], [0, 2]])
    assert shared_scales(codes, torch.tensor([3, 5, 7, -9, 4])).tolist() == [3, 5, 5, 5, 4]


def test_a_step_twice_as_long_saves_a_bit_of_each_weight():
    config = make_config(dim=64, hidden=256, rank=32)
    model = make_model(config, learned_steps=True)
    model.weight_bits().backward()
    for name in ("blocks.0.up", "blocks.1.down"):
        gradient = model.get_parameter(f"steps.{name}").grad.sum().item()
        assert gradient == pytest.approx(model.get_parameter(name).numel(), rel=0.1), name


def test_weight_bits_push_weights_to_smaller_codes():
    model = make_model(make_config(dim=64, hidden=256), learned_steps=True)
    before = model.weight_bits()
    before.backward()
    with torch.no_grad():
        for name in ("embed.0", "blocks.0.up", "blocks.1.down"):
            weight = model.get_parameter(name)
            weight.sub_(weight.grad * weight.norm() / weight.grad.norm() * 0.3)
        assert model.weight_bits() < before - 100


def test_learned_steps_begin_as_the_fixed_ones_and_change_nothing_but_the_codes():
    config, tokens = make_config(), make_tokens(make_config())
    fixed, learned = make_model(config), FrameGPT(config, learned_steps=True).eval()
    learned.load_state_dict(fixed.state_dict(), strict=False)
    assert torch.equal(fixed.loss(tokens), learned.loss(tokens))
    with torch.no_grad():
        learned.get_parameter("steps.blocks.0.up").add_(3.0)
        _, finer = learned.export()
    _, tensors = fixed.export()
    changed = [name for name, (codes, _) in tensors.items() if not np.array_equal(codes, finer[name][0])]
    assert changed == ["blocks.0.up"]


def test_the_gradient_of_a_step_is_that_of_what_the_codes_stand_for():
    torch.manual_seed(0)
    weight, slope = torch.randn(3, 40), torch.randn(3, 40)
    fineness = torch.full((3, 1), 2.0, requires_grad=True)
    codes, m, _ = quantise(weight, 1.0, 3, fineness)
    (LearnedStep.apply(weight, fineness, codes * m) * slope).sum().backward()
    # With the codes' fractions held, a weight is (w / step + fraction) * step: only the fraction moves with the step.
    fraction = (codes - weight / m).detach()
    assert torch.allclose(fineness.grad, -math.log(2) * (slope * fraction * m).sum(1, keepdim=True), rtol=1e-4)


def test_rows_may_vanish():
    config, tokens = make_config(), make_tokens(make_config())
    model = make_model(config, learned_steps=True)
    with torch.no_grad():
        model.get_parameter("steps.blocks.0.up")[3] = -4.0
        codes, _ = model.export()[1]["blocks.0.up"]
        assert not codes[3].any() and codes[2].any() and codes[4].any()
        assert model.loss(tokens).isfinite()
    model.loss(tokens).backward()
    assert model.get_parameter("blocks.0.up").grad[3].isfinite().all()


@each_config
def test_every_tensor_is_quantised_once_in_a_pass(config, monkeypatch):
    model, quantised = make_model(config), []

    def count(weight, *rest):
        quantised.append(id(weight))
        return quantise(weight, *rest)

    monkeypatch.setattr("vqcomp.training.coded.quantise", count)
    model.loss(make_tokens(config))
    assert sorted(quantised) == sorted(id(parameter) for parameter in model.parameters())


@each_config
def test_codes_that_are_loaded_are_those_of_the_model_that_they_came_from(config):
    model, other = make_model(config), FrameGPT(config).eval()
    _, tensors = model.export()
    other.load_codes(tensors)
    tokens = make_tokens(config)
    with torch.no_grad():
        assert other.loss(tokens).item() == pytest.approx(model.loss(tokens).item(), rel=0.02)


@each_config
def test_a_config_comes_back_from_its_fields_and_from_their_json(config):
    fields = config.to_dict()
    assert ModelConfig.from_dict(fields) == ModelConfig.from_dict(json.loads(json.dumps(fields))) == config


@pytest.mark.parametrize(
    ("name", "text"),
    [("dim", "1e999"), ("dim", "2.5"), ("factors", "[1e999]"), ("flags", "7"), ("copies", "[[1e999, 0, 0]]")],
)
def test_a_config_with_numbers_that_are_no_integers_is_refused(name, text):
    fields = json.loads(json.dumps(make_config().to_dict())) | {name: json.loads(text)}
    with pytest.raises(ModelError, match="model config"):
        ModelConfig.from_dict(fields)
