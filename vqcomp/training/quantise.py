"""From float weights to integer codes in training: the step of each row, its gradient, and what the codes cost.

A row's step is a quarter power of two, 2^-fineness of the row's standard deviation. The fineness is fixed, or learned
for each row: then its gradient is that of learned step size quantisation (Esser et al. 2020, arXiv 1902.08153), and
`code_bits` puts the size of the coded weights into the loss, as in self-compressing networks (Cséfalvay & Imber 2023,
arXiv 2301.13142).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..runtime.arithmetic import WEIGHT_MAX
from ..runtime.weights import CODES_AT_ONCE, SPREADS, code_counts

FINENESS = 2.0
"""Fineness where it is not learned: a standard deviation of 4 steps, about 4 bits of entropy per weight."""
FINENESS_TABLES = math.log2(12)
"""The same for the embedding, which was measured to bear all of the loss (0.01 bits/token at 2), and for the biases."""
SMALLEST = 2.0**-31
"""Steps are at least this."""


def multiplier(scale_codes: Tensor) -> Tensor:
    """2^(c mod 4 / 4) * 2^(c div 4): the float32 that a scale code c stands for."""
    c = scale_codes.to(torch.int64)
    mantissa = torch.exp2(torch.arange(4, dtype=torch.float64, device=c.device) / 4).to(torch.float32)
    return torch.ldexp(mantissa[torch.remainder(c, 4)], torch.div(c, 4, rounding_mode="floor"))


class Quantised(NamedTuple):
    """What float weights become: float32 tensors of exact values, without a gradient."""

    codes: Tensor
    """(rows, cols), integers in -63..63."""
    multipliers: Tensor
    """(scales, 1): what the codes of a row are multiplied with."""
    scale_codes: Tensor
    """(scales,): four times the multipliers' binary logarithms."""


def quantise(weight: Tensor, unit: Tensor | float, scales: int, fineness: Tensor | float = FINENESS) -> Quantised:
    """Float weights (rows, cols) times their unit as codes times multipliers.

    `scales` is the number of rows, or 1 for one scale for the whole tensor; fineness is a number or (scales, 1). The
    multiplier is the quarter power of two nearest to std * 2^-fineness, and large enough that no code is clipped.
    """
    grouped = (weight.detach() * unit).reshape(scales, -1)
    if isinstance(fineness, Tensor):
        fineness = fineness.detach()[:, 0]
    deviation = grouped.square().mean(1).sqrt().clamp_min(SMALLEST)
    wanted = (deviation.log2() - fineness).mul(4).round()
    needed = (grouped.abs().amax(1) / (WEIGHT_MAX + 0.4)).clamp_min(SMALLEST).log2().mul(4).ceil()
    exponents = torch.maximum(wanted, needed).clamp_(-127, 127)
    multipliers = multiplier(exponents)[:, None]
    codes = (grouped / multipliers).round_().clamp_(-WEIGHT_MAX, WEIGHT_MAX).reshape(weight.shape)
    return Quantised(codes, multipliers, exponents)


def shared_scales(codes: Tensor, scale_codes: Tensor) -> Tensor:
    """Scale codes (scales,) in which a row of zeros alone has that of the row before: its own makes no difference."""
    scales = scale_codes.numel()
    live = codes.reshape(scales, -1).abs().amax(1) > 0
    row = torch.where(live, torch.arange(scales, device=codes.device), 0)
    return scale_codes[torch.cummax(row, 0).values]


class LearnedStep(torch.autograd.Function):
    """Weights (rows, cols) -> what their codes stand for, in the same unit; fineness (scales, 1).

    The weights' gradient is passed straight through the rounding. A change of a row's step, of its logarithm, moves
    each of its weights by the error of their rounding, which gives the gradient of the fineness.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, fineness: Tensor, coded: Tensor) -> Tensor:
        ctx.save_for_backward(weight, coded)
        ctx.scales = fineness.shape[0]
        return coded.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, coded = ctx.saved_tensors
        error = (grad * (coded - weight)).reshape(ctx.scales, -1).sum(1, keepdim=True)
        return grad, error.mul_(-math.log(2)), None


def code_contexts(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (rows, cols) -> the contexts that `runtime.weights` codes them in (rows, cols), the rows' spreads (rows,).

    Codes of a row of zeros alone are not coded; their context is -1.
    """
    magnitudes = codes.detach().abs()
    rows, columns = codes.shape
    mean = magnitudes.mean(1)
    told = torch.where(mean > 0, (torch.log2(mean + 1e-9).round() + 5).clamp(1, SPREADS - 1), 0.0)
    step = max(1, CODES_AT_ONCE // columns)
    blocks = torch.arange(rows, device=codes.device) // step * step
    expect = torch.where(told > 0, torch.exp2(told - 1), 0.0)
    found = 64 + 16 * (magnitudes.cumsum(0) - magnitudes)[blocks]
    expected = 64 + (expect.cumsum(0) - expect)[blocks]
    x = torch.floor(found * torch.exp2(told)[:, None] / (3 * expected)[:, None])
    contexts = (torch.log2(x + 0.5).floor() + 1).clamp(max=SPREADS - 1)
    return torch.where(told[:, None] > 0, contexts, -1.0).to(torch.int64), told


def code_bits(scaled: Tensor, codes: Tensor, contexts: Tensor) -> Tensor:
    """Bits of codes (n,) in their contexts (n,) as `runtime.weights` codes them, with a gradient for `scaled` (n,).

    `scaled` are the weights in steps: their codes before rounding. A weight's gradient is what the next larger code
    costs more than the next smaller one, by the frequencies of all n codes.
    """
    size = 2 * WEIGHT_MAX + 1
    coded = contexts >= 0
    place = torch.where(coded, contexts * size + codes.detach().to(torch.int64) + WEIGHT_MAX, SPREADS * size)
    counts = occurrences(place, SPREADS * size + 1)[:-1].view(SPREADS, size)
    prior = torch.as_tensor(code_counts() / 16, device=codes.device)
    # Frequencies of both signs together, and never rising with the magnitude: rare codes are counted too seldom.
    both = counts + prior
    both = both[:, WEIGHT_MAX:] + both[:, : WEIGHT_MAX + 1].flip(1)
    cost = torch.cummax(-torch.log2(both), 1).values
    below = scaled.detach().abs().floor().clamp(0, WEIGHT_MAX - 1).to(torch.int64)
    slope = cost.diff(dim=1).to(scaled.dtype)[contexts.clamp_min(0), below] * coded * scaled.detach().sign()
    moved = (slope * scaled).sum()
    return adaptive_bits(counts, prior).to(scaled.dtype) + moved - moved.detach()


def occurrences(symbols: Tensor, size: int) -> Tensor:
    """How often each of 0..size-1 occurs, float64 (size,)."""
    index = symbols.detach().flatten().to(torch.int64)
    ones = torch.ones((), dtype=torch.float64, device=index.device).expand(index.shape)
    return torch.zeros(size, dtype=torch.float64, device=index.device).scatter_add_(0, index, ones)


def adaptive_bits(counts: Tensor, prior: Tensor | float = 1 / 16) -> Tensor:
    """Bits of symbols that occur `counts` (..., size) times, coded one by one by the frequencies of those before.

    `prior` is added to the frequencies: 1 in units of 16, `runtime.weights` counts an occurrence as 16.
    """
    start = torch.zeros_like(counts) + prior
    nats = torch.lgamma((counts + start).sum(-1)) - torch.lgamma(start.sum(-1))
    return (nats.sum() - (torch.lgamma(counts + start) - torch.lgamma(start)).sum()) / math.log(2)
