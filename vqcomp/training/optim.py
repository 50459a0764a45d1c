"""Optimisers: Muon for the matrices of the blocks, AdamW for everything else; and the schedule of their step sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .config import TrainConfig
from .model import FrameGPT


def rate_of_step(step: int, left: float, config: TrainConfig) -> float:
    """Share of the peak step size at `step` (from 1), with a share `left` of the training to come: up, level, down.

    Of a time budget the rise takes a twentieth at most, however few steps that is.
    """
    rise = step / max(1, config.warmup)
    if config.time:
        rise = max(rise, 20 * (1 - left))
    return max(0.0, min(1.0, rise, left / max(config.decay, 1e-9)))


def make_optimisers(model: FrameGPT, config: TrainConfig) -> list[tuple[torch.optim.Optimizer, float]]:
    """Optimisers with their peak step sizes."""
    named = dict(model.named_parameters())
    weights = {name for name in model.config.tensor_shapes() if "bias" not in name}
    matrices = {name for name in weights if name.startswith("blocks.")} if config.muon_rate else set()
    groups = [
        {"params": [p for n, p in named.items() if n in weights - matrices], "weight_decay": config.weight_decay},
        {"params": [p for n, p in named.items() if n not in weights], "weight_decay": 0.0},
    ]
    rate = config.learning_rate
    adam = torch.optim.AdamW(groups, lr=rate, betas=config.betas, foreach=True)
    optimisers: list[tuple[torch.optim.Optimizer, float]] = [(adam, rate)]
    if matrices:
        muon = Muon([named[n] for n in sorted(matrices)], config.muon_rate, config.weight_decay)
        optimisers.append((muon, config.muon_rate))
    return optimisers


class Muon(torch.optim.Optimizer):
    """Steps along the momentum made orthogonal (Jordan et al. 2024, kellerjordan.github.io/posts/muon), in float32.

    torch.optim.Muon computes in bfloat16, which is thirty times slower on a CPU without instructions for it.
    """

    MOMENTUM = 0.95

    def __init__(self, params: Sequence[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                momentum = self.state[p]["momentum"]
                momentum.lerp_(p.grad, 1 - self.MOMENTUM)
                update = _orthogonal(p.grad.lerp(momentum, self.MOMENTUM))
                # An update as large as AdamW's (Liu et al. 2025, arXiv 2502.16982).
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-0.2 * group["lr"] * math.sqrt(max(p.shape)))


def _orthogonal(matrix: Tensor) -> Tensor:
    """About U V^T of the singular value decomposition, by five Newton-Schulz iterations."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.t() if tall else matrix
    x = x / (x.norm() + 1e-12)
    for _ in range(5):
        square = x @ x.t()
        x = torch.addmm(x, torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.t() if tall else x
