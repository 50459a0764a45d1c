"""The exact arithmetic of the network as autograd functions: integers forward, straight-through gradients backward.

Rounding is passed straight through by the gradient, clipping passes it inside its range only (Bengio et al. 2013, arXiv
1308.3432). Activations are integers held in float32, weights are integer codes times a multiplier for each row.

Letters in shapes: K columns of a matrix, G groups, H heads, Q queries, N keys, C width of a head, M rows (windows *
frames * positions), R rank, V vocabulary, J copies.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..runtime.arithmetic import ACTIVATION_MAX, HIDDEN_MAX, LOGIT_UNIT, NORM_TARGET, SCORE_RANGE

LOGIT_NATS = math.log(2) / LOGIT_UNIT
"""Nats per unit of a logit."""
ATTENTION_CHUNK = 1 << 18
"""Elements of scores that are worked on at once on a CPU, so that they stay in its cache; more on a GPU."""
OUTPUT_CHUNK = 512
"""The same for rows of logits."""

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


class Codes(torch.autograd.Function):
    """The codes of a tensor with one scale; `step` (1, 1) is what a code of 1 stands for in units of the weights."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, codes: Tensor, step: Tensor) -> Tensor:
        ctx.step = step
        return codes

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad / ctx.step, None, None


class Linear(torch.autograd.Function):
    """clip(round((x @ codes.T) * m), bound): x (..., K) integers, codes (rows, K), m (1, rows) or (1, 1).

    The gradient goes to x and to `weight`, which times `unit` is what codes times multipliers stand for.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, codes: Tensor, m: Tensor, unit: Tensor | float,
        bound: Tensor | float | None, rounded: bool, integers: bool,
    ) -> Tensor:  # fmt: skip
        flat = x.flatten(0, -2)
        y = product(flat, codes.t(), integers).mul_(m)
        if rounded:
            y.round_()
        if bound is not None:
            y.clamp_(-bound, bound)  # type: ignore[arg-type]
        ctx.unit, ctx.bound, ctx.integers = unit, bound, integers
        ctx.shape = x.shape
        ctx.save_for_backward(flat, codes, m, y if bound is not None else None)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, codes, m, y = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        if y is not None:
            grad = grad * (y.abs() < ctx.bound)
        grad_weight = product(grad.t(), x, ctx.integers).mul_(ctx.unit)
        grad_x = product(grad * m, codes, ctx.integers).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return grad_x, grad_weight, None, None, None, None, None, None


class Scaled(torch.autograd.Function):
    """clip(round(codes * m), bound): a table of weights that is used as it is; m (rows, 1) or (1, 1)."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, codes: Tensor, m: Tensor, unit: Tensor | float, bound: float | None, rounded: bool
    ) -> Tensor:
        y = codes * m
        if rounded:
            y.round_()
        if bound is not None:
            y.clamp_(-bound, bound)
        ctx.unit = unit
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad * ctx.unit, None, None, None, None, None


class Norm(torch.autograd.Function):
    """clip(round(h * (NORM_TARGET * D / sum |h|)), 127) of h (..., D): an L1 norm, whose sum is an exact integer."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, rounded: bool) -> Tensor:
        total = h.abs().sum(-1, keepdim=True).clamp_min_(1.0)
        ratio = torch.full_like(total, NORM_TARGET * h.shape[-1]).div_(total)  # number / tensor would round twice
        y = h * ratio
        if rounded:
            y.round_()
        y.clamp_(-ACTIVATION_MAX, ACTIVATION_MAX)
        ctx.save_for_backward(h, total, ratio, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, total, ratio, y = ctx.saved_tensors
        grad = grad * (y.abs() < ACTIVATION_MAX)
        along = (grad * h).sum(-1, keepdim=True) / total
        return (grad - h.sign() * along) * ratio, None


class ReluSquared(torch.autograd.Function):
    """round(clamp(x, 0, sqrt(127))^2) (So et al. 2021, arXiv 2109.08668)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: bool) -> Tensor:
        u = x.clamp(0.0, HIDDEN_MAX)
        ctx.save_for_backward(u)
        y = u * u
        return y.round_() if rounded else y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (u,) = ctx.saved_tensors
        return grad * u.mul(2) * (u < HIDDEN_MAX), None


def _attention_weights(q: Tensor, k: Tensor, bias: Tensor, rounded: bool) -> tuple[Tensor, Tensor]:
    """u and p of `Attention`, (G, H, Q, N)."""
    u = product(q, k.transpose(-1, -2), rounded)
    u.add_(bias)
    u.sub_(u.amax(-1, keepdim=True)).add_(SCORE_RANGE).clamp_min_(0.0).mul_(1.0 / SCORE_RANGE)
    p = u * u
    p.mul_(p)
    p.mul_(p).mul_(ACTIVATION_MAX)
    return u, p.round_() if rounded else p


def _attention_chunks(q: Tensor, k: Tensor) -> list[slice]:
    """Ranges of G that are worked on at once."""
    elements = ATTENTION_CHUNK if q.device.type == "cpu" else 256 * ATTENTION_CHUNK
    size = max(1, elements // (q.shape[1] * q.shape[2] * k.shape[2]))
    return [slice(i, i + size) for i in range(0, q.shape[0], size)]


class Attention(torch.autograd.Function):
    """round(sum_k p_k v_k / sum_k p_k), p = round(127 u^8), u = max(1 - (rowmax - score) / 2^15, 0).

    q (G, H, Q, C), k and v (G, H, N, C), bias (H, Q, N), hugely negative where a key is not seen -> (G, H, Q, C). Works
    in chunks of G that fit the cache, and computes p again for the gradient.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, rounded: bool) -> Tensor:
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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
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
            grad_u.mul_(u).mul_(square).mul_(square.mul_(square)).mul_(8.0 * ACTIVATION_MAX / SCORE_RANGE)
            top = u.floor_()  # 1 at the row's maximum, which every distance is taken from
            grad_u.sub_(top.mul_(grad_u.sum(-1, keepdim=True) / top.sum(-1, keepdim=True)))
            grad_q[part] = product(grad_u, k[part], ctx.rounded)
            grad_k[part] = product(grad_u.transpose(-1, -2), q[part], ctx.rounded)
            grad_bias.add_(grad_u.sum(0))
        return grad_q, grad_k, grad_v, grad_bias, None


class OutputLoss(torch.autograd.Function):
    """Mean cross-entropy in bits of logits that never exist all at once; their gradient is found on the way.

    z (M, R), gates (M, J), embedding (V, R) times multiplier, bias (V,), copies (M, J) ids, target (M,).
    Logits are not rounded here, which is worth less than 1e-4 bits.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, gates: Tensor, embedding: Tensor, multiplier: Tensor, bias: Tensor, copies: Tensor,
        target: Tensor, integers: bool,
    ) -> Tensor:  # fmt: skip
        scale, offset = multiplier * LOGIT_NATS, bias * LOGIT_NATS  # (1, 1) and (V,)
        grad_z, grad_gates = torch.empty_like(z), torch.empty_like(gates)
        grad_embedding, grad_offset = torch.zeros_like(embedding), torch.zeros_like(offset)
        total = z.new_zeros(())
        size = OUTPUT_CHUNK if z.device.type == "cpu" else 32 * OUTPUT_CHUNK
        for start in range(0, z.shape[0], size):
            rows = slice(start, start + size)
            p = product(z[rows], embedding.t(), integers).mul_(scale).add_(offset)  # (rows, V) logits in nats
            p.scatter_add_(1, copies[rows], gates[rows] * LOGIT_NATS)
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
        ctx.save_for_backward(
            grad_z, grad_gates.mul_(bits * LOGIT_NATS), grad_embedding, grad_offset.mul_(bits * LOGIT_NATS)
        )
        return total * bits

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_z, grad_gates, grad_embedding, grad_bias = ctx.saved_tensors
        return grad_z * grad, grad_gates * grad, grad_embedding * grad, None, grad_bias * grad, None, None, None
