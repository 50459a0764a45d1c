"""Training a FrameGPT on segments of tokens: random windows in, the weights that predict held-out frames best out.

A step depends on (seed, step) and on the weights alone, so a training that goes on from a checkpoint ends, on the same
CPU with the same number of threads, in the same bits; on a GPU, where some sums have no order, about there. There is no
autocast: model.py makes its products exactly. Never run here on a GPU.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.config import ModelConfig
from ..runtime.engine import Tensors
from ..runtime.errors import InputError, ModelError
from ..runtime.weights import write_model
from .checkpoint import read_checkpoint, write_checkpoint
from .config import TrainConfig
from .distributed import Group, connect, find_device
from .evaluation import count_frames, evaluate
from .feed import Feed
from .frames import Frames
from .interrupts import Interrupts
from .memory import explain_memory
from .model import FrameGPT
from .optim import make_optimisers, rate_of_step
from .record import Record, Row, summary
from .start import load_integers

__all__ = ["TrainConfig", "TrainResult", "evaluate", "train"]

EVALUATIONS = 10
"""In a time budget."""


@dataclass(frozen=True)
class TrainResult:
    """The trained network and how well it does."""

    model: FrameGPT
    """In eval mode, on the CPU, with the best averaged weights."""
    bits_per_token: float
    """On the held-out frames given their true past, or in training if none were held out."""
    step: int
    """Step at which these weights were reached."""
    rows: tuple[Row, ...]
    """The state at each evaluation."""
    feed: Feed
    """What it was trained on."""
    is_first: bool = True
    """Whether this process, of several, is the one that writes files."""


@dataclass(frozen=True)
class Moment:
    """The state after a step, for a display."""

    done: float
    """Share of the training that is over."""
    step: int
    seconds: float
    training_bits: float
    tokens_per_second: float
    zip_bytes: int
    """As of the last evaluation, 0 before."""


def train(
    segments: Sequence[Frames],
    config: ModelConfig,
    settings: TrainConfig | None = None,
    *,
    init: Tensors | None = None,
    out: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: Callable[[str], None] | None = None,
    watch: Callable[[Moment], None] | None = None,
) -> TrainResult:
    """Train on segments, integers (T, S, F) in arrays or on disk, of at least `frames` frames besides held-out ones.

    init: the integer weights to start from, as of a .vqm with the same config. out: the .vqm that will be written; its
    log (.csv) and its checkpoint (.ckpt), written at each evaluation and on an interrupt, come to lie beside it.
    resume: go on from that checkpoint. device: auto, cpu, cuda or cuda:N; torchrun's processes train together.
    progress gets a line for each evaluation, watch is told of every step.
    Raises InputError if segments or the checkpoint do not fit, or memory runs out; ModelError if training diverges.
    """
    settings = settings or TrainConfig()
    settings.check()
    place = find_device(device)
    with connect(place) as group, explain_memory(settings):
        if settings.accumulate % group.size:
            raise InputError(
                f"training: {group.size} processes cannot share {settings.accumulate} micro-batches evenly: "
                f"set --accumulate to a multiple of {group.size}"
            )
        feed = Feed(segments, config, settings)
        trainer = _Trainer(feed, config, settings, init, out, group, place, progress if group.is_first else None)
        if resume:
            trainer.resume()
        with Interrupts() as interrupts:
            return trainer.run(interrupts, watch if group.is_first else None)


class _Trainer:
    """The state of a training and what a step does to it."""

    def __init__(
        self,
        feed: Feed,
        network: ModelConfig,
        config: TrainConfig,
        init: Tensors | None,
        out: Path | None,
        group: Group,
        device: torch.device,
        progress: Callable[[str], None] | None,
    ) -> None:
        self.feed, self.config, self.group = feed, config, group
        self.progress = progress or (lambda line: None)
        self.checkpoint = out.with_suffix(".ckpt") if out else None
        self.log = out.with_suffix(".csv") if out else None
        torch.manual_seed(config.seed)
        model = FrameGPT(
            network,
            dropout=config.dropout,
            token_dropout=config.token_dropout,
            code_dropout=config.code_dropout,
            quantised=config.quantised,
            learned_steps=config.for_segments > 0,
        )
        if init:
            load_integers(model, init)
        else:
            model.set_frequencies(feed.counts)
        self.model = model.to(device)
        self.average = copy.deepcopy(model).eval()
        self.loss = torch.compile(model.loss) if config.compile else model.loss
        self.parameters = list(model.parameters())
        self.optimisers = make_optimisers(model, config)
        self.device = device
        # Tokens that the weights are paid for by.
        self.served = (config.for_segments or feed.segments) * feed.segment_tokens
        # What changes from step to step, all of it in checkpoints:
        self.step, self.seconds, self.training_bits = 0, 0.0, math.inf
        self.best, self.best_bits, self.best_step, self.stale = math.inf, math.inf, 0, 0
        self.best_weights = copy.deepcopy(self.average.state_dict())
        self.rows: list[Row] = []
        self.saved_step: int | None = None

    # ---- the loop

    def run(self, interrupts: Interrupts, watch: Callable[[Moment], None] | None) -> TrainResult:
        step_tokens = self.config.windows * self.config.frames * self.model.config.positions
        record = Record(self.log, self.rows) if self.log and self.group.is_first else None
        self._began = time.monotonic() - self.seconds
        self.upcoming = self._draw(self.step + 1, 0)
        trained, since = 0.0, self.step  # seconds of steps alone, since the last evaluation
        try:
            while not self._is_over():
                start = time.monotonic()
                rate, stopping = self._step(interrupts.number)
                trained += time.monotonic() - start
                per_second = (self.step - since) * step_tokens / max(trained, 1e-9)
                if self._is_due():
                    row = self._evaluate(rate, per_second, self.step * step_tokens)
                    if record:
                        record.add(row)
                    self.progress(summary(row, self._done(), None if self.config.time else self.config.steps))
                    trained, since = 0.0, self.step
                    self._save()
                if watch:
                    size = self.rows[-1].zip_bytes if self.rows else 0
                    watch(Moment(self._done(), self.step, self.seconds, self.training_bits, per_second, size))
                if stopping:
                    self._save()
                    if self.checkpoint:
                        self.progress(f"interrupted after step {self.step}: the same command with --resume goes on")
                    interrupts.act()
        finally:
            if record:
                record.close()
        self.average.load_state_dict(self.best_weights)
        return TrainResult(
            self.average.cpu(), self.best_bits, self.best_step, tuple(self.rows), self.feed, self.group.is_first
        )

    def _step(self, asked: int) -> tuple[float, bool]:
        """One optimiser step; the share of the peak step size, and whether a process has been asked to stop."""
        config, step = self.config, self.step + 1
        self.model.train()
        share = config.accumulate // self.group.size
        losses = torch.zeros((), device=self.device)
        for i in range(share):
            tokens, seed = self.upcoming
            torch.manual_seed(seed)
            loss = self.loss(tokens.to(self.device, non_blocking=True))
            (loss / share).backward()
            losses += loss.detach() / share
            # While a GPU is still at work: the next windows.
            self.upcoming = self._draw(step, i + 1) if i + 1 < share else self._draw(step + 1, 0)
        if config.for_segments:
            (self.model.weight_bits() / self.served).backward()
        # The clock is the first process's, so that all make the same step.
        now = (time.monotonic() - self._began) * self.group.size * self.group.is_first
        bits, stop, seconds = self.group.average_gradients(self.parameters, [losses.item(), float(asked > 0), now])
        self.seconds = seconds
        norm = nn.utils.clip_grad_norm_(self.parameters, config.clip).item()
        if not (math.isfinite(bits) and math.isfinite(norm)):
            raise ModelError(f"training diverged at step {step}: loss {bits}; lower the learning rate{self._kept()}")
        rate = rate_of_step(step, self._left(step), config)
        for optimiser, peak in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * peak
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        _follow(self.average, self.model, min(config.average, (1 + step) / (10 + step)))
        self.training_bits = bits if step == 1 else 0.95 * self.training_bits + 0.05 * bits
        self.step = step
        return rate, stop > 0

    def _draw(self, step: int, i: int) -> tuple[Tensor, int]:
        """The micro-batch that this process makes as its i-th in a step, and its seed."""
        return self.feed.batch(step, self.group.rank * (self.config.accumulate // self.group.size) + i)

    def _left(self, step: int) -> float:
        """Share of the training that is to come when `step` (from 1) begins."""
        if self.config.time:
            return 1 - self.seconds / self.config.time
        return (self.config.steps + 1 - step) / self.config.steps

    def _done(self) -> float:
        return min(1.0, self.seconds / self.config.time if self.config.time else self.step / self.config.steps)

    def _is_over(self) -> bool:
        stale = self.config.patience and self.stale >= self.config.patience
        return bool(stale) or (self.step > 0 and self._done() >= 1)

    def _is_due(self) -> bool:
        if self.config.time:
            return self._done() >= min(1.0, (len(self.rows) + 1) / EVALUATIONS)
        return self.step % self.config.evaluate_every == 0 or self.step == self.config.steps

    # ---- evaluation

    def _evaluate(self, rate: float, per_second: float, tokens: int) -> Row:
        """Measure the averaged weights, and keep them if they are the best so far."""
        held_out, mine = self.feed.held_out, self.feed.held_out[self.group.rank :: self.group.size]
        frames = self.config.held_out
        sums = [evaluate(self.average, mine, frames) * count_frames(mine, frames), float(count_frames(mine, frames))]
        total, count = self.group.total(sums)
        bits = total / count if held_out else math.nan
        known = bits if held_out else self.training_bits
        weights = len(write_model(*self.average.export(), 0))
        size = round(known * self.served / 8) + weights
        score = size if self.config.for_segments else known
        # Without held-out frames nothing can be chosen: the last weights are the trained ones.
        if score < self.best or not held_out:
            self.best, self.best_bits, self.best_step, self.stale = score, known, self.step, 0
            self.best_weights = copy.deepcopy(self.average.state_dict())
        else:
            self.stale += 1
        seconds, per_second = round(self.seconds, 1), round(per_second, 1)
        self.rows.append(Row(self.step, seconds, tokens, rate, self.training_bits, bits, per_second, weights, size))
        return self.rows[-1]

    # ---- checkpoints

    def _same(self) -> dict[str, dict[str, Any]]:
        """What must not change between a checkpoint and its resumption."""
        network = {k: _plain(v) for k, v in self.model.config.to_dict().items()}
        return {"settings": self.config.to_dict(), "network": network, "data": dict(self.feed.fingerprint)}

    def _save(self) -> None:
        if not self.checkpoint or not self.group.is_first or self.saved_step == self.step:
            return
        write_checkpoint(
            self.checkpoint,
            {
                **self._same(),
                "step": self.step,
                "seconds": self.seconds,
                "training_bits": self.training_bits,
                "best": [self.best, self.best_bits, self.best_step, self.stale],
                "best_weights": self.best_weights,
                "rows": [list(row) for row in self.rows],
                "model": self.model.state_dict(),
                "average": self.average.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser, _ in self.optimisers],
            },
        )
        self.saved_step = self.step

    def resume(self) -> None:
        """Go on from the checkpoint. Raises InputError."""
        if not self.checkpoint:
            raise InputError("training: to resume takes the name of the model whose checkpoint there is")
        state = read_checkpoint(self.checkpoint, self._same())
        self.step, self.seconds, self.training_bits = state["step"], state["seconds"], state["training_bits"]
        self.best, self.best_bits, self.best_step, self.stale = state["best"]
        self.best_weights = state["best_weights"]
        self.rows = [Row(*row) for row in state["rows"]]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for (optimiser, _), saved in zip(self.optimisers, state["optimisers"]):
            optimiser.load_state_dict(saved)
        self.saved_step = self.step
        self.progress(f"going on after step {self.step}")

    def _kept(self) -> str:
        if not self.checkpoint or self.saved_step is None:
            return ""
        return f". {self.checkpoint} keeps the state after step {self.saved_step}"


@torch.no_grad()
def _follow(average: FrameGPT, model: FrameGPT, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value
