"""FrameGPT, the network that is trained: exactly the integer network that `runtime/engine.py` runs, with gradients.

Every activation is an integer held in float32 and every weight an integer code in [-63, 63] times a step (a quarter
power of two, one per row). The master weights are floats. Rounding is passed straight through by the gradient, clipping
passes it inside its range only (Bengio et al. 2013, arXiv 1308.3432). So what is trained is what is shipped, and in
eval mode the logits equal the engine's bit for bit. FORMAT.md is normative for the arithmetic.

Letters in shape comments: B windows, T frames, S positions, F factors, V vocabulary of a factor, D dim, R rank,
H heads, A heads * head_dim, N temporal window, J copies, M = B * T * S.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..runtime.config import ACTIVATION_MAX, ModelConfig, Offset
from ..runtime.errors import ModelError
from ..runtime.weights import SPREADS, kind_of
from .quantise import (
    FINENESS,
    FINENESS_TABLES,
    SMALLEST,
    LearnedStep,
    adaptive_bits,
    code_bits,
    code_contexts,
    occurrences,
    quantise,
    shared_scales,
)

NORM_MEAN = 25
"""Mean absolute code after `norm`; in the unit of 1/32 that is the 0.8 of a standard normal variable."""
HIDDEN_MAX = math.sqrt(ACTIVATION_MAX)
GATE_MAX = 2048
BIAS_MAX = 1 << 14
RELATIVE_BIAS_MAX = 1 << 20
ATTENTION_RANGE = 1 << 15
"""Scores this far below the row's maximum get no attention; the weight is (1 - distance / range)^8."""
LOGIT = math.log(2) / 64
"""Nats per unit of a logit, which is 1/64 bit."""
MASKED = -1e9
ATTENTION_CHUNK = 1 << 18
"""Elements of scores that are worked on at once on a CPU, so that they stay in its cache; more on a GPU."""
OUTPUT_CHUNK = 512
"""The same for rows of logits."""

# Master weights are in units in which one step size, about 0.03 for AdamW, suits all of them; a row of codes has the
# multiplier m = unit * step. Where the units of the activations come from: norm outputs, q, k, v, attention outputs,
# MLP hidden 1/32; residual 1/256; logits and gates 1/64 bit; scores 1/4096 nat.
_UNITS = {
    "embed": 2.0,
    "position": 256.0,
    "flags": 256.0,
    "qkv": 1.0,
    "proj": 8.0,
    "up": 2.0**-2.5,
    "down": 8.0,
    "bias_s": 8 * 4096.0,
    "bias_t": 8 * 4096.0,
    "bias": 4 * 64.0,
}


def default_flags(past: int) -> tuple[tuple[Offset, Offset], ...]:
    """Equality features that know no code: is it the same as k frames ago, did it come from or go to a neighbour."""
    same = [((1, 0, 0), (dt, 0, 0)) for dt in range(2, past + 1)]
    still = [((2, 0, 0), (3, 0, 0))]
    moved = [((1, 0, 0), (2, dy, dx)) for dy, dx in _NEIGHBOURS] + [((2, 0, 0), (1, dy, dx)) for dy, dx in _NEIGHBOURS]
    return tuple(same + still + moved)


def default_copies(past: int) -> tuple[Offset, ...]:
    """The same position in the last `past` frames and its eight neighbours in the last one."""
    return tuple([(dt, 0, 0) for dt in range(1, past + 1)] + [(1, dy, dx) for dy, dx in _NEIGHBOURS])


_NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


_MIXED = tuple(int(x) for x in torch.__version__.split(".")[:2]) >= (2, 8)
"""Whether torch multiplies bfloat16 into float32."""


def product(a: Tensor, b: Tensor, integers: bool) -> Tensor:
    """a (..., n, k) @ b (..., k, m), batched alike. Integers within 8 bits are multiplied in bfloat16 on a GPU.

    Both operands are then exact in bfloat16 and the sums, below 2^24, in the float32 that they are added in, so the
    result is that of the float32 product. Gradients are rounded to bfloat16 on the way there.
    """
    if integers and _MIXED and a.device.type in ("cuda", "meta"):
        x, y = a.to(torch.bfloat16), b.to(torch.bfloat16)
        if a.dim() == 2:
            return torch.mm(x, y, out_dtype=torch.float32)
        batch = a.shape[:-2]
        return torch.bmm(x.flatten(0, -3), y.flatten(0, -3), out_dtype=torch.float32).unflatten(0, batch)
    return torch.matmul(a, b)


def _fixed_fineness(name: str) -> float:
    return FINENESS_TABLES if "bias" in name or "embed" in name else FINENESS


class _Codes(torch.autograd.Function):
    """A tensor with one scale -> its codes."""

    @staticmethod
    def forward(ctx, weight, codes, step):
        ctx.step = step
        return codes

    @staticmethod
    def backward(ctx, grad):
        return grad / ctx.step, None, None


class _Linear(torch.autograd.Function):
    """clip(round((x @ codes.T) * m), bound), with x (..., K) integers and codes (rows, K)."""

    @staticmethod
    def forward(ctx, x, weight, codes, m, unit, bound, rounded, integers):
        flat = x.flatten(0, -2)
        y = product(flat, codes.t(), integers).mul_(m)
        if rounded:
            y.round_()
        if bound is not None:
            y.clamp_(-bound, bound)
        ctx.unit, ctx.bound, ctx.integers = unit, bound, integers
        ctx.shape = x.shape
        ctx.save_for_backward(flat, codes, m, y if bound is not None else None)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):
        x, codes, m, y = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        if y is not None:
            grad = grad * (y.abs() < ctx.bound)
        grad_weight = product(grad.t(), x, ctx.integers).mul_(ctx.unit)
        grad_x = product(grad * m, codes, ctx.integers).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return grad_x, grad_weight, None, None, None, None, None, None


class _Scaled(torch.autograd.Function):
    """clip(round(codes * m), bound): a table of weights that is used as it is."""

    @staticmethod
    def forward(ctx, weight, codes, m, unit, bound, rounded):
        y = codes * m
        if rounded:
            y.round_()
        if bound is not None:
            y.clamp_(-bound, bound)
        ctx.unit = unit
        return y

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.unit, None, None, None, None, None


class _Norm(torch.autograd.Function):
    """clip(round(h * (NORM_MEAN * D / sum |h|)), 127): an L1 norm, whose sum is an exact integer."""

    @staticmethod
    def forward(ctx, h, rounded):
        total = h.abs().sum(-1, keepdim=True).clamp_min_(1.0)
        ratio = torch.full_like(total, NORM_MEAN * h.shape[-1]).div_(total)  # number / tensor would round twice
        y = h * ratio
        if rounded:
            y.round_()
        y.clamp_(-ACTIVATION_MAX, ACTIVATION_MAX)
        ctx.save_for_backward(h, total, ratio, y)
        return y

    @staticmethod
    def backward(ctx, grad):
        h, total, ratio, y = ctx.saved_tensors
        grad = grad * (y.abs() < ACTIVATION_MAX)
        along = (grad * h).sum(-1, keepdim=True) / total
        return (grad - h.sign() * along) * ratio, None


class _ReluSquared(torch.autograd.Function):
    """round(clamp(x, 0, sqrt(127))^2) (So et al. 2021, arXiv 2109.08668)."""

    @staticmethod
    def forward(ctx, x, rounded):
        u = x.clamp(0.0, HIDDEN_MAX)
        ctx.save_for_backward(u)
        y = u * u
        return y.round_() if rounded else y

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad * u.mul(2) * (u < HIDDEN_MAX), None


def _attention_weights(q, k, bias, rounded):
    u = product(q, k.transpose(-1, -2), rounded)
    u.add_(bias)
    u.sub_(u.amax(-1, keepdim=True)).add_(ATTENTION_RANGE).clamp_min_(0.0).mul_(1.0 / ATTENTION_RANGE)
    p = u * u
    p.mul_(p)
    p.mul_(p).mul_(ACTIVATION_MAX)
    return u, p.round_() if rounded else p


def _attention_chunks(q, k):
    elements = ATTENTION_CHUNK if q.device.type == "cpu" else 256 * ATTENTION_CHUNK
    size = max(1, elements // (q.shape[1] * q.shape[2] * k.shape[2]))
    return [slice(i, i + size) for i in range(0, q.shape[0], size)]


class _Attention(torch.autograd.Function):
    """round(sum_k p_k v_k / sum_k p_k), p = round(127 u^8), u = max(1 - (rowmax - score) / 2^15, 0).

    q (G, H, Q, C), k and v (G, H, K, C), bias (H, Q, K), MASKED where a key is not seen -> (G, H, Q, C). Works in
    chunks of G that fit the cache and computes p again for the gradient.
    """

    @staticmethod
    def forward(ctx, q, k, v, bias, rounded):
        o = torch.empty_like(q)
        for part in _attention_chunks(q, k):
            _, p = _attention_weights(q[part], k[part], bias, rounded)
            torch.mul(product(p, v[part], rounded), 1.0 / p.sum(-1, keepdim=True), out=o[part])
        if rounded:
            o.round_()
        ctx.rounded = rounded
        ctx.save_for_backward(q, k, v, bias, o)
        return o

    @staticmethod
    def backward(ctx, grad):
        q, k, v, bias, o = ctx.saved_tensors
        grad_q, grad_k, grad_v, grad_bias = (torch.empty_like(x) for x in (q, k, v, bias))
        grad_bias.zero_()
        for part in _attention_chunks(q, k):
            u, p = _attention_weights(q[part], k[part], bias, ctx.rounded)
            share = grad[part] / p.sum(-1, keepdim=True)
            grad_v[part] = product(p.transpose(-1, -2), share, ctx.rounded)
            grad_u = product(share, v[part].transpose(-1, -2), ctx.rounded)
            grad_u.sub_((share * o[part]).sum(-1, keepdim=True))
            square = u * u
            grad_u.mul_(u).mul_(square).mul_(square.mul_(square)).mul_(8.0 * ACTIVATION_MAX / ATTENTION_RANGE)
            top = u.floor_()  # 1 at the row's maximum, which every distance is taken from
            grad_u.sub_(top.mul_(grad_u.sum(-1, keepdim=True) / top.sum(-1, keepdim=True)))
            grad_q[part] = product(grad_u, k[part], ctx.rounded)
            grad_k[part] = product(grad_u.transpose(-1, -2), q[part], ctx.rounded)
            grad_bias.add_(grad_u.sum(0))
        return grad_q, grad_k, grad_v, grad_bias, None


class _OutputLoss(torch.autograd.Function):
    """Mean cross-entropy in bits of logits that never exist all at once; their gradient is found on the way.

    z (M, R), gates (M, J), embedding (V, R) times multiplier, bias (V,), copies (M, J) ids, target (M,).
    Logits are not rounded here, which is worth less than 1e-4 bits.
    """

    @staticmethod
    def forward(ctx, z, gates, embedding, multiplier, bias, copies, target, integers):
        scale, offset = multiplier * LOGIT, bias * LOGIT  # (1, 1) and (V,)
        grad_z, grad_gates = torch.empty_like(z), torch.empty_like(gates)
        grad_embedding, grad_offset = torch.zeros_like(embedding), torch.zeros_like(offset)
        total = z.new_zeros(())
        size = OUTPUT_CHUNK if z.device.type == "cpu" else 32 * OUTPUT_CHUNK
        for start in range(0, z.shape[0], size):
            rows = slice(start, start + size)
            p = product(z[rows], embedding.t(), integers).mul_(scale).add_(offset)  # (rows, V) logits in nats
            p.scatter_add_(1, copies[rows], gates[rows] * LOGIT)
            p.sub_(p.amax(1, keepdim=True))
            at = p.gather(1, target[rows, None])
            p.exp_()
            norm = p.sum(1, keepdim=True)
            total += (norm.log() - at).sum()
            p.div_(norm).scatter_add_(1, target[rows, None], torch.full_like(at, -1.0))
            grad_z[rows] = product(p, embedding, integers)
            torch.gather(p, 1, copies[rows], out=grad_gates[rows])
            grad_embedding += product(p.t(), z[rows], integers)
            grad_offset.add_(p.sum(0))
        bits = 1.0 / (z.shape[0] * math.log(2))
        grad_z.mul_(scale * bits)
        grad_embedding.mul_(scale * bits)
        ctx.save_for_backward(grad_z, grad_gates.mul_(bits * LOGIT), grad_embedding, grad_offset.mul_(bits * LOGIT))
        return total * bits

    @staticmethod
    def backward(ctx, grad):
        grad_z, grad_gates, grad_embedding, grad_bias = ctx.saved_tensors
        return grad_z * grad, grad_gates * grad, grad_embedding * grad, None, grad_bias * grad, None, None, None


class Block(nn.Module):
    """Attention over space and time, then an MLP. Its parameters; `FrameGPT` does the arithmetic."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        shapes = config.tensor_shapes()
        d, a = config.dim, config.attention_dim
        self.qkv = nn.Parameter(torch.randn(shapes["blocks.0.qkv"][0]) * d**-0.5)
        if config.spatial_heads:
            # Heads begin with reaches of about 1, 2, 4, ... tokens; 1/8 nat is the unit of the bias.
            dy = torch.arange(1 - config.height, config.height).abs()[:, None]
            dx = torch.arange(1 - config.width, config.width).abs()[None, :]
            slopes = 2.0 ** -torch.arange(config.spatial_heads)
            self.bias_s = nn.Parameter(-slopes[:, None] * (dy + dx).flatten()[None, :] / 8)
        if config.temporal_heads:
            slopes = 0.5 * 2.0 ** -torch.arange(config.temporal_heads)
            self.bias_t = nn.Parameter(-slopes[:, None] * torch.arange(config.window)[None, :] / 8)
        self.proj = nn.Parameter(torch.randn(shapes["blocks.0.proj"][0]) * (2 * config.blocks * a) ** -0.5)
        self.up = nn.Parameter(torch.randn(shapes["blocks.0.up"][0]) * d**-0.5)
        self.down = nn.Parameter(torch.randn(shapes["blocks.0.down"][0]) * (2 * config.blocks * config.hidden) ** -0.5)


class FrameGPT(nn.Module):
    """Predicts every token of a frame at once from the frames before it.

    tokens are int64 (B, T, S, F); output t is the prediction of frame t from frames < t, so there is no shift to make
    outside. `quantised=False` gives the same network without any rounding, to measure what rounding costs. Dropout
    (share of residual updates) and token_dropout (share of input tokens whose identity is hidden) act in training.
    `learned_steps` adds a parameter `steps.<tensor>` for each tensor: the fineness of its rows, to be trained without
    decay and with `weight_bits` in the loss.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dropout: float = 0.0,
        token_dropout: float = 0.0,
        code_dropout: float = 0.0,
        quantised: bool = True,
        learned_steps: bool = False,
    ) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.dropout, self.token_dropout, self.code_dropout = dropout, token_dropout, code_dropout
        self.quantised = quantised
        self._scales = {name: scales for name, (_, scales) in config.tensor_shapes().items()}
        d, r, copies = config.dim, config.rank, len(config.copies)
        shapes = config.tensor_shapes()
        embed_std = 0.3
        stack_std = 1.0 / (embed_std * math.sqrt(r * config.stack * len(config.factors)))
        self.embed = nn.ParameterList(torch.randn(size + 1, r) * embed_std for size in config.factors)
        self.stack = nn.ModuleList(
            nn.ParameterList(torch.randn(d, r) * stack_std for _ in config.factors) for _ in range(config.stack)
        )
        self.position = nn.Parameter(torch.randn(d, config.positions) * 0.2)
        if config.flags:
            self.flags = nn.Parameter(torch.randn(d, len(config.flags)) * 0.2)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.head = nn.ParameterList(
            torch.cat([torch.randn(r, d) * 0.5 * d**-0.5, torch.zeros(copies, d)]) for _ in config.factors
        )
        self.bias = nn.ParameterList(torch.zeros(1, size) for size in config.factors)
        found = {name: tuple(p.shape) for name, p in self.named_parameters()}
        if found != {name: shape for name, (shape, _) in shapes.items()}:
            raise ModelError("model: the parameters do not have the names and shapes of ModelConfig.tensor_shapes()")
        self.learned_steps = learned_steps
        if learned_steps:
            self.steps = nn.Module()
            for name, (_, scales) in shapes.items():
                *path, leaf = name.split(".")
                module = self.steps
                for part in path:
                    if part not in module._modules:
                        module.add_module(part, nn.Module())
                    module = module.get_submodule(part)
                module.register_parameter(leaf, nn.Parameter(torch.full((scales, 1), _fixed_fineness(name))))

    # ---- weights

    def unit(self, name: str) -> Tensor | float:
        """What a row's step is multiplied with to give its multiplier."""
        kind = kind_of(name)
        if kind == "stack":
            return _UNITS["position"] * self._embed_step(int(name.split(".")[-1]))
        if kind == "head":
            units = self.head[0].new_ones(self.config.rank + len(self.config.copies), 1)
            units[self.config.rank :] = 2.0
            return units
        return _UNITS[kind.split(".")[-1]]

    def _embed_step(self, f: int) -> Tensor | float:
        """What a code 1 of the embedding stands for."""
        return self._quantise(f"embed.{f}")[1] / _UNITS["embed"] if self.quantised else 1.0 / _UNITS["embed"]

    def _fineness(self, name: str) -> Tensor | float:
        if self.learned_steps:
            return self.get_parameter(f"steps.{name}")
        return _fixed_fineness(name)

    def _quantise(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        return quantise(self.get_parameter(name), self.unit(name), self._scales[name], self._fineness(name))

    def _coded(self, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor | float]:
        """Weights with a gradient, codes, multipliers (1, rows) or (1, 1), unit. Unrounded codes are no integers."""
        weight, unit = self.get_parameter(name), self.unit(name)
        if not self.quantised:
            return weight, weight.detach() * unit, weight.new_ones(1, 1), unit
        codes, m, _ = self._quantise(name)
        if self.learned_steps:
            weight = LearnedStep.apply(weight, self.get_parameter(f"steps.{name}"), codes * (m / unit))
        return weight, codes, m, unit

    def _linear(self, x: Tensor, name: str, bound: Tensor | float | None = None, rounded: bool = True) -> Tensor:
        weight, codes, m, unit = self._coded(name)
        rounded = rounded and self.quantised
        return _Linear.apply(x, weight, codes, m.reshape(1, -1), unit, bound, rounded, self.quantised)

    def _table(self, name: str, bound: float | None = None) -> Tensor:
        weight, codes, m, unit = self._coded(name)
        return _Scaled.apply(weight, codes, m, unit, bound, self.quantised)

    def _embedding(self, f: int) -> tuple[Tensor, Tensor]:
        """Codes (V + 1, R) with a gradient, and the multiplier of their products with z."""
        weight, codes, m, _ = self._coded(f"embed.{f}")
        return _Codes.apply(weight, codes, self._embed_step(f)), m

    def weight_bits(self) -> Tensor:
        """Size of all weights and scales as `runtime.weights.write_model` codes them, in bits, with a gradient."""
        scaled, coded, contexts = [], [], []
        told: dict[str, list[Tensor]] = {}
        changes: dict[str, list[Tensor]] = {}
        for name, scales in self._scales.items():
            weight, unit = self.get_parameter(name), self.unit(name)
            codes, m, exponents = self._quantise(name)
            rows = (weight * unit).reshape(scales, -1)
            step = rows.square().mean(1, keepdim=True).clamp_min(SMALLEST**2).sqrt()
            fineness = self._fineness(name)
            if isinstance(fineness, Tensor):
                step = step * torch.exp2(-fineness)
            # The gradient is that of a step that is not rounded.
            scaled.append((rows / (step * (m / step).detach())).flatten())
            coded.append(codes.flatten())
            context, spread = code_contexts(codes)
            contexts.append(context.flatten())
            told.setdefault(kind_of(name), []).append(spread)
            exponents = shared_scales(codes, exponents)
            changes.setdefault(kind_of(name), []).append(exponents.diff(prepend=exponents.new_zeros(1)))
        bits = code_bits(torch.cat(scaled), torch.cat(coded), torch.cat(contexts))
        rest = [adaptive_bits(occurrences(torch.cat(x), SPREADS)) for x in told.values()]
        rest += [adaptive_bits(occurrences(torch.cat(x).remainder(256), 256)) for x in changes.values()]
        return bits + torch.stack(rest).sum().to(bits.dtype)

    def export(self) -> tuple[ModelConfig, dict[str, tuple[np.ndarray, np.ndarray]]]:
        """The integer network: config, and for each tensor int8 codes (rows, cols) and int8 scale codes (scales,)."""
        tensors = {}
        for name in self.config.tensor_shapes():
            codes, _, scales = self._quantise(name)
            scales = shared_scales(codes, scales)
            tensors[name] = (codes.to(torch.int8).cpu().numpy(), scales.to(torch.int8).cpu().numpy())
        return self.config, tensors

    @torch.no_grad()
    def set_frequencies(self, counts: Sequence[np.ndarray]) -> None:
        """Start the output biases at the log frequencies of the tokens; counts has an array (V_f,) for each factor."""
        for bias, count in zip(self.bias, counts, strict=True):
            share = torch.as_tensor(np.asarray(count, dtype=np.float64) + 1.0)
            share = torch.log2(share / share.sum())
            bias.copy_(((share - share.mean()) * (64.0 / _UNITS["bias"])).to(torch.float32)[None, :])

    # ---- arithmetic

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """tokens (B, T, S, F) -> for each factor logits (B, T, S, V_f) in nats: their softmax predicts frame t."""
        copies, inside = self._copied(tokens)
        outputs = []
        h = self.residual(tokens)
        for f in range(len(self.config.factors)):
            z, gates, codes, m, bias = self._head(h, f)
            logits = product(z.flatten(0, -2), codes.t(), self.quantised).mul_(m).view(*z.shape[:-1], -1)
            if self.quantised:
                logits = logits.round()
            logits = logits + bias
            logits = logits.scatter_add(-1, copies[..., f], gates * inside)
            outputs.append(logits * LOGIT)
        return tuple(outputs)

    def loss(self, tokens: Tensor, skip: int = 0) -> Tensor:
        """Mean bits per token (summed over factors) of frames skip.. of each window; the same as of `forward`."""
        copies, inside = self._copied(tokens)
        h = self.residual(tokens)[:, skip:].flatten(0, 2)  # (M, D)
        copies, inside = copies[:, skip:].flatten(0, 2), inside[:, skip:].flatten(0, 2)
        targets = tokens[:, skip:].flatten(0, 2)
        total = h.new_zeros(())
        for f in range(len(self.config.factors)):
            z, gates, codes, m, bias = self._head(h, f)
            ids = copies[..., f].contiguous()  # (M, J)
            total = total + _OutputLoss.apply(z, gates * inside, codes, m, bias, ids, targets[:, f], self.quantised)
        return total

    def residual(self, tokens: Tensor) -> Tensor:
        """tokens (B, T, S, F) -> the residual stream (B, T, S, D) that the heads read."""
        c, limit = self.config, self.config.residual_max
        b, t, s, _ = tokens.shape
        shown = self._hide(tokens) if self.training else tokens
        h = self._table("position").t()[None, None]  # (1, 1, S, D)
        for f, size in enumerate(c.factors):
            codes, _ = self._embedding(f)
            for i in range(c.stack):
                table = self._linear(codes, f"stack.{i}.{f}")  # (V + 1, D)
                start = tokens.new_full((b, min(i + 1, t), s), size)
                past = torch.cat([start, shown[:, : max(t - i - 1, 0), :, f]], 1)  # (B, T, S)
                h = h + functional.embedding(past, table)
        if c.flags:
            h = h + self._linear(self._flags(tokens), "flags")
        h = self._drop(h.clamp(-limit, limit))
        for i in range(c.blocks):
            a = _Norm.apply(h, self.quantised)
            qkv = self._linear(a, f"blocks.{i}.qkv", ACTIVATION_MAX)
            o = self._attention(qkv, i)
            h = (h + self._drop(self._linear(o, f"blocks.{i}.proj"))).clamp(-limit, limit)
            a = _Norm.apply(h, self.quantised)
            g = _ReluSquared.apply(self._linear(a, f"blocks.{i}.up", rounded=False), self.quantised)
            h = (h + self._drop(self._linear(g, f"blocks.{i}.down"))).clamp(-limit, limit)
        return h

    def _head(self, h: Tensor, f: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """h (..., D) -> z (..., R), gates (..., J), and the codes (V, R), multiplier and bias (V,) of the output."""
        rank, size = self.config.rank, self.config.factors[f]
        bounds = [float(ACTIVATION_MAX)] * rank + [float(GATE_MAX)] * len(self.config.copies)
        bound = torch.tensor(bounds, dtype=h.dtype, device=h.device)
        y = self._linear(_Norm.apply(h, self.quantised), f"head.{f}", bound)
        codes, m = self._embedding(f)
        bias = self._table(f"bias.{f}", BIAS_MAX)[0]
        return y[..., :rank], y[..., rank:], codes[:size], m, bias

    def _attention(self, qkv: Tensor, i: int) -> Tensor:
        """qkv (B, T, S, 3A) -> o (B, T, S, A)."""
        c = self.config
        b, t, s, _ = qkv.shape
        q, k, v = qkv.view(b, t, s, 3, c.heads, c.head_dim).unbind(3)  # (B, T, S, H, C)
        outputs = []
        if c.spatial_heads:
            parts = [x[..., : c.spatial_heads, :].flatten(0, 1).transpose(1, 2) for x in (q, k, v)]  # (BT, H, S, C)
            bias = self._table(f"blocks.{i}.bias_s", RELATIVE_BIAS_MAX)[:, self._displacement()]  # (H, S, S)
            o = _Attention.apply(*(x.contiguous() for x in parts), bias, self.quantised)
            outputs.append(o.transpose(1, 2).reshape(b, t, s, -1))
        if c.temporal_heads:
            n = c.window
            count = -(-t // n)
            # Queries in blocks of N frames; the keys of a block are its own frames and those of the block before.
            heads = [x[..., c.spatial_heads :, :].permute(0, 2, 1, 3, 4) for x in (q, k, v)]  # (B, S, T, H, C)
            heads = [functional.pad(x, (0, 0, 0, 0, 0, count * n - t)) for x in heads]
            queries = heads[0].unflatten(2, (count, n)).flatten(0, 1)  # (BS, blocks, N, H, C)
            keys = [functional.pad(x, (0, 0, 0, 0, n, 0)).unflatten(2, (count + 1, n)).flatten(0, 1) for x in heads[1:]]
            keys = [torch.cat([x[:, :-1], x[:, 1:]], 2) for x in keys]  # (BS, blocks, 2N, H, C)
            # Heads of a block side by side: (BS, blocks * H, N or 2N, C)
            parts = [x.transpose(2, 3).flatten(1, 2).contiguous() for x in (queries, *keys)]
            table = self._table(f"blocks.{i}.bias_t", RELATIVE_BIAS_MAX)  # (H, N)
            place = torch.arange(2 * n, device=table.device)
            distance = place[:n, None] + n - place[None, :]  # (N, 2N)
            seen = (distance >= 0) & (distance < n)
            bias = torch.where(seen, table[:, distance.clamp(0, n - 1)], MASKED)  # (H, N, 2N)
            before = torch.where(place < n, MASKED, 0.0)
            bias = torch.cat([bias + before] + [bias] * (count - 1))  # (blocks * H, N, 2N)
            o = _Attention.apply(*parts, bias, self.quantised)
            o = o.view(b, s, count, c.temporal_heads, n, c.head_dim).permute(0, 2, 4, 1, 3, 5)
            outputs.append(o.reshape(b, count * n, s, -1)[:, :t])
        return torch.cat(outputs, -1)

    def _displacement(self) -> Tensor:
        """(S, S) indices of [query, key] into the table of relative biases."""
        h, w = self.config.height, self.config.width
        place = torch.arange(h * w, device=self.position.device)
        y, x = place // w, place % w
        return (y[None, :] - y[:, None] + h - 1) * (2 * w - 1) + x[None, :] - x[:, None] + w - 1

    # ---- what is read from the tokens themselves

    def _shifted(self, grid: Tensor, offset: Offset) -> Tensor:
        """grid (B, T, S) -> the value at an offset of each token, -1 outside of the grid and before the first frame."""
        (dt, dy, dx), (b, t, _), c = offset, grid.shape, self.config
        out = grid.new_full((b, t, c.height, c.width), -1)
        if dt < t:
            rows, cols = slice(max(dy, 0), c.height + min(dy, 0)), slice(max(dx, 0), c.width + min(dx, 0))
            to_rows, to_cols = slice(max(-dy, 0), c.height - max(dy, 0)), slice(max(-dx, 0), c.width - max(dx, 0))
            out[:, dt:, to_rows, to_cols] = grid.view(b, t, c.height, c.width)[:, : t - dt, rows, cols]
        return out.view(b, t, -1)

    def _flags(self, tokens: Tensor) -> Tensor:
        """(B, T, S, F) -> (B, T, S, number of flags) of 0.0 and 1.0."""
        ids = tokens[..., 0]
        size = self.config.factors[0]
        for f in range(1, len(self.config.factors)):
            ids = ids + tokens[..., f] * size
            size *= self.config.factors[f]
        flags = []
        for first, second in self.config.flags:
            a = self._shifted(ids, first)
            flags.append((a == self._shifted(ids, second)) & (a >= 0))
        return torch.stack(flags, -1).to(self.position.dtype)

    def _copied(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, S, F) -> ids at the copy offsets (B, T, S, J, F), and (B, T, S, J) 1.0 where there is one."""
        b, t, s, factors = tokens.shape
        if not self.config.copies:
            return tokens.new_zeros(b, t, s, 0, factors), self.position.new_zeros(b, t, s, 0)
        each = [[self._shifted(tokens[..., f], o) for o in self.config.copies] for f in range(factors)]
        copies = torch.stack([torch.stack(x, -1) for x in each], -1)  # (B, T, S, J, F)
        return copies.clamp_min(0), (copies[..., 0] >= 0).to(self.position.dtype)

    # ---- noise in training

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout) if self.training and self.dropout else x

    def _hide(self, tokens: Tensor) -> Tensor:
        """Show some tokens, and all tokens of some codes, as if there were no frame: their equality stays known."""
        b, device = tokens.shape[0], tokens.device
        shown = tokens
        unknown = torch.tensor(self.config.factors, device=device)
        if self.token_dropout:
            hide = torch.rand((*tokens.shape[:-1], 1), device=device) < self.token_dropout
            shown = torch.where(hide, unknown, shown)
        if self.code_dropout:
            for f, size in enumerate(self.config.factors):
                lost = torch.rand(b, size, device=device) < self.code_dropout
                hide = lost.gather(1, tokens[..., f].flatten(1)).view(tokens.shape[:-1])
                shown = shown.clone()
                shown[..., f] = torch.where(hide, size, shown[..., f])
        return shown
