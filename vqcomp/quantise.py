"""From float weights to integer codes in training: the step of each row, its gradient, and what the codes cost.

A row's step is a quarter power of two, 2^-fineness of the row's standard deviation. The fineness is fixed, or learned
for each row: then its gradient is that of learned step size quantisation (Esser et al. 2020, arXiv 1902.08153), and
`code_bits` puts the size of the coded weights into the loss, as in self-compressing networks (Cséfalvay & Imber 2023,
arXiv 2301.13142).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .runtime.config import WEIGHT_MAX

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


def quantise(
    weight: Tensor, unit: Tensor | float, scales: int, fineness: Tensor | float = FINENESS
) -> tuple[Tensor, Tensor, Tensor]:
    """Float weights (rows, cols) -> codes (rows, cols), multipliers (scales, 1), scale codes (scales,).

    All are float32 tensors of exact values. `scales` is the number of rows, or 1 for one scale for the whole tensor;
    fineness is a number or (scales, 1). The scale is the quarter power of two nearest to std * 2^-fineness, and large
    enough that no code is clipped.
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
    return codes, multipliers, exponents


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


def code_bits(scaled: Tensor, codes: Tensor) -> Tensor:
    """Bits of the codes (n,) under one adaptive table of `runtime/weights.py`, with a gradient for `scaled` (n,).

    `scaled` are the weights in steps: their codes before rounding. A weight's gradient is what the next larger code
    costs more than the next smaller one, by the frequencies of all n codes.
    """
    signed = occurrences(codes + WEIGHT_MAX, 2 * WEIGHT_MAX + 1)
    magnitudes = signed[WEIGHT_MAX:] + signed[: WEIGHT_MAX + 1].flip(0)
    # Frequencies of both signs together, and never rising with the magnitude: rare codes are counted too seldom.
    cost = torch.cummax(-torch.log2(magnitudes / 2 + PRIOR), 0).values
    place = scaled.detach().abs().floor_().clamp_(0, WEIGHT_MAX - 1).to(torch.int64)
    slope = cost.diff().to(scaled.dtype)[place] * scaled.detach().sign()
    moved = (slope * scaled).sum()
    return adaptive_bits(signed).to(scaled.dtype) + moved - moved.detach()


PRIOR = 1 / 16
"""What a symbol's count starts with, in occurrences: see `runtime.weights.Histogram`."""


def occurrences(symbols: Tensor, size: int) -> Tensor:
    """How often each of 0..size-1 occurs, float64 (size,)."""
    index = symbols.detach().flatten().to(torch.int64)
    ones = torch.ones((), dtype=torch.float64, device=index.device).expand(index.shape)
    return torch.zeros(size, dtype=torch.float64, device=index.device).scatter_add_(0, index, ones)


def adaptive_bits(counts: Tensor) -> Tensor:
    """Bits of symbols that occur so often, coded one after another by frequencies of what was coded before."""
    prior, size = torch.full_like(counts, PRIOR), counts.numel()
    total, start = counts.sum() + size * PRIOR, torch.full_like(counts[0], size * PRIOR)
    nats = torch.lgamma(total) - torch.lgamma(start) - (torch.lgamma(counts + PRIOR) - torch.lgamma(prior)).sum()
    return nats / math.log(2)
