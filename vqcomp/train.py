"""Training a FrameGPT on segments of tokens: random windows in, the weights that predict held-out frames best out."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .model import FrameGPT
from .runtime.config import ModelConfig
from .runtime.errors import InputError, ModelError


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. The defaults are for one segment: they learn fast, then stop before they overfit."""

    steps: int = 1500
    """Optimiser steps."""
    batch: int = 1
    """Windows in a step."""
    frames: int = 16
    """Frames in a window."""
    held_out: int = 300
    """Frames at the end of every segment that choose the weights and are not trained on; 0 trains on all of them."""
    evaluate_every: int = 150
    """Steps between evaluations on the held-out frames."""
    learning_rate: float = 0.03
    """Peak step size of AdamW, for everything that Muon does not train."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay of its two averages."""
    weight_decay: float = 0.25
    """Decoupled weight decay of all tensors but the biases."""
    muon_rate: float = 0.01
    """Peak step size of Muon for the matrices of the blocks, 0 to leave them to AdamW."""
    warmup: int = 40
    """Steps in which the step size rises from 0."""
    decay: float = 0.9
    """Last share of the steps, in which the step size falls to 0."""
    average: float = 0.99
    """Decay of the moving average of the weights; the average is what is evaluated and returned."""
    clip: float = 1.0
    """Largest norm of a gradient."""
    dropout: float = 0.17
    """Share of the residual updates that are dropped."""
    token_dropout: float = 0.08
    """Share of input tokens whose identity is hidden."""
    code_dropout: float = 0.05
    """Share of codes whose identity is hidden wherever they are in a window."""
    reverse: float = 0.1
    """Share of windows that run backwards."""
    mirror: float = 0.2
    """Share of windows that are flipped left to right, codes kept."""
    stride: float = 0.25
    """Share of windows that take every second frame."""
    quantised: bool = True
    """Train with the integer arithmetic that is shipped; False only to measure what it costs."""
    seed: int = 0
    """Seed of initial weights, windows and dropout."""


@dataclass(frozen=True)
class TrainResult:
    """The trained network and how well it does."""

    model: FrameGPT
    """In eval mode, with the best averaged weights."""
    bits_per_token: float
    """On the held-out frames given their true past, or in training if none were held out."""
    step: int
    """Step at which these weights were reached."""


def train(
    segments: Sequence[np.ndarray],
    config: ModelConfig,
    settings: TrainConfig | None = None,
    *,
    progress: Callable[[str], None] | None = None,
) -> TrainResult:
    """Train on integer arrays (T, S, F) of at least `frames` frames besides the held-out ones.

    Raises InputError if segments do not fit the config, ModelError if training diverges.
    """
    settings = settings or TrainConfig()
    data = [_check(segment, config) for segment in segments]
    kept = [x[: len(x) - settings.held_out] for x in data]
    if not kept or min(len(x) for x in kept) < settings.frames:
        raise InputError(
            f"train: every segment needs {settings.frames} frames besides the {settings.held_out} held out; "
            f"the shortest has {min((len(x) for x in data), default=0)} in all"
        )
    torch.manual_seed(settings.seed)
    model = FrameGPT(
        config,
        dropout=settings.dropout,
        token_dropout=settings.token_dropout,
        code_dropout=settings.code_dropout,
        quantised=settings.quantised,
    )
    model.set_frequencies(
        [
            np.bincount(torch.cat([x[..., f].flatten() for x in kept]), minlength=size)
            for f, size in enumerate(config.factors)
        ]
    )
    average = copy.deepcopy(model).eval()
    optimisers = _optimisers(model, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    best, best_step, best_weights, recent = math.inf, 0, average.state_dict(), math.inf
    began = time.monotonic()
    for step in range(1, settings.steps + 1):
        model.train()
        rate = _rate(step, settings)
        loss = model.loss(_windows(kept, config, settings, generator))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            raise ModelError(f"training diverged at step {step}: loss {loss.item()}; lower the learning rate")
        for optimiser, peak in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * peak
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        _follow(average, model, min(settings.average, (1 + step) / (10 + step)))
        recent = loss.item() if step == 1 else 0.95 * recent + 0.05 * loss.item()
        if step % settings.evaluate_every == 0 or step == settings.steps:
            bits = evaluate(average, data, settings.held_out) if settings.held_out else recent
            if progress:
                progress(
                    f"step {step}/{settings.steps}  training {recent:.4f}  held out {bits:.4f} bits/token  "
                    f"{time.monotonic() - began:.0f} s"
                )
            # Without held-out frames nothing can be chosen: the last weights are the trained ones.
            if bits < best or not settings.held_out:
                best, best_step, best_weights = bits, step, copy.deepcopy(average.state_dict())
    average.load_state_dict(best_weights)
    return TrainResult(average, best, best_step)


@torch.no_grad()
def evaluate(model: FrameGPT, segments: Sequence[np.ndarray | Tensor], frames: int, chunk: int = 64) -> float:
    """Bits/token of the last `frames` frames of every segment (T, S, F), each given all the past that is seen."""
    config = model.config
    reach = config.history + config.blocks * (config.window - 1)
    training = model.training
    model.eval()
    total, count = 0.0, 0
    for segment in segments:
        tokens = torch.as_tensor(np.asarray(segment), dtype=torch.int64)
        for first in range(max(len(tokens) - frames, 0), len(tokens), chunk):
            last = min(first + chunk, len(tokens))
            start = max(first - reach, 0)
            total += float(model.loss(tokens[None, start:last], skip=first - start)) * (last - first)
            count += last - first
    model.train(training)
    return total / max(count, 1)


def _check(segment: np.ndarray, config: ModelConfig) -> Tensor:
    array = np.asarray(segment)
    s, factors = config.positions, len(config.factors)
    if array.ndim != 3 or array.shape[1:] != (s, factors) or array.dtype.kind not in "iu":
        raise InputError(f"train: expected integers (frames, {s}, {factors}), found {array.dtype} {array.shape}")
    if array.size and (array.min() < 0 or (array >= np.array(config.factors)).any()):
        raise InputError(f"train: expected ids from 0 to below {config.factors}, found {array.min()} to {array.max()}")
    return torch.from_numpy(array.astype(np.int64))


def _windows(data: Sequence[Tensor], config: ModelConfig, settings: TrainConfig, generator: torch.Generator) -> Tensor:
    """Random windows (batch, frames, S, F), segments drawn in proportion to their length."""

    def chance(share: float) -> bool:
        return bool(torch.rand((), generator=generator) < share)

    lengths = torch.tensor([float(len(x)) for x in data])
    windows = []
    for _ in range(settings.batch):
        tokens = data[int(torch.multinomial(lengths, 1, generator=generator))]
        span = settings.frames
        stride = 2 if len(tokens) >= 2 * span and chance(settings.stride) else 1
        start = int(torch.randint(len(tokens) - stride * span + stride, (), generator=generator))
        window = tokens[start : start + stride * span : stride]
        if chance(settings.reverse):
            window = window.flip(0)
        if chance(settings.mirror):
            window = window.view(span, config.height, config.width, -1).flip(2).reshape(window.shape)
        windows.append(window)
    return torch.stack(windows)


def _rate(step: int, settings: TrainConfig) -> float:
    """Share of the peak step size: up, level, down to 0."""
    falling = max(1, round(settings.steps * settings.decay))
    return min(1.0, step / max(1, settings.warmup), (settings.steps + 1 - step) / falling)


def _optimisers(model: FrameGPT, settings: TrainConfig) -> list[tuple[torch.optim.Optimizer, float]]:
    """Optimisers with their peak step sizes."""
    named = dict(model.named_parameters())
    biases = {name for name in named if "bias" in name}
    matrices = {name for name in named if name.startswith("blocks.")} - biases if settings.muon_rate else set()
    groups = [
        {"params": [p for n, p in named.items() if n not in biases | matrices], "weight_decay": settings.weight_decay},
        {"params": [p for n, p in named.items() if n in biases], "weight_decay": 0.0},
    ]
    rate = settings.learning_rate
    adam = torch.optim.AdamW(groups, lr=rate, betas=settings.betas, foreach=True)
    optimisers: list[tuple[torch.optim.Optimizer, float]] = [(adam, rate)]
    if matrices:
        muon = Muon([named[n] for n in sorted(matrices)], settings.muon_rate, settings.weight_decay)
        optimisers.append((muon, settings.muon_rate))
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
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
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


@torch.no_grad()
def _follow(average: FrameGPT, model: FrameGPT, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
