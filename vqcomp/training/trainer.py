"""Training a FrameGPT on segments of tokens: random windows in, the weights that predict held-out frames best out.

A step depends on (seed, step) and on the weights alone, so a training that goes on from a checkpoint ends, on the same
CPU with the same number of threads, in the same bits; on a GPU, where some sums have no order, about there. There is no
autocast: functions.py makes its products exactly. Never run here on a GPU.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.config import ModelConfig
from ..runtime.engine import Tensors
from ..runtime.errors import InputError, ModelError
from ..runtime.exact import load_torch
from ..version import __version__
from .budget import Budget
from .checkpoint import read_checkpoint, require_room, write_checkpoint
from .config import TrainConfig
from .distributed import ProcessGroup, connect, find_device
from .evaluation import cost, count_frames, evaluate, spans_of
from .feed import Feed
from .frames import Frames
from .interrupts import Interrupts
from .memory import explain_memory
from .model import FrameGPT
from .optim import make_optimisers, rate_of_step
from .record import Moment, Record, Row, summary
from .result import TrainResult

Watch = Callable[[Moment], None]


def train(
    segments: Sequence[Frames],
    network: ModelConfig,
    config: TrainConfig | None = None,
    *,
    init: Tensors | None = None,
    out: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: Callable[[str], None] | None = None,
    watch: Watch | None = None,
) -> TrainResult:
    """Train on segments, integers (T, S, F) in arrays or on disk, of at least `frames` frames besides held-out ones.

    init: the integer weights to start from, as of a .vqm with the same network.
    out: the .vqm that the caller will write; a log (.csv) and a checkpoint (.ckpt) are written beside it, at each
    evaluation and on an interrupt.
    resume: go on from that checkpoint.
    device: auto, cpu, cuda or cuda:N; the processes of torchrun train together.
    progress: gets a line for each evaluation. watch: is called after every step, and after every 64 frames evaluated.
    A time budget begins with this call, and holds to within one step and one evaluation.
    Raises InputError if segments or the checkpoint do not fit, a file cannot be written or memory runs out; ModelError
    if training diverges; DependencyError if torch does not work with NumPy.
    """
    began = time.monotonic()
    load_torch()
    config = config or TrainConfig()
    config.check()
    place = find_device(device)
    with connect(place) as group, explain_memory(config):
        if config.accumulate % group.size:
            raise InputError(
                f"training: {group.size} processes cannot share {config.accumulate} micro-batches evenly: "
                f"set --accumulate to a multiple of {group.size}"
            )
        feed = Feed(segments, network, config)
        if not group.is_first:
            progress = watch = None
        trainer = _Trainer(feed, network, config, init, out, group, place, began, progress, watch)
        if resume:
            trainer.resume()
        with Interrupts() as interrupts:
            return trainer.run(interrupts)


class _Trainer:
    """The state of a training, and what a step, an evaluation and a checkpoint do with it."""

    def __init__(
        self,
        feed: Feed,
        network: ModelConfig,
        config: TrainConfig,
        init: Tensors | None,
        out: Path | None,
        group: ProcessGroup,
        device: torch.device,
        began: float,
        progress: Callable[[str], None] | None,
        watch: Watch | None,
    ) -> None:
        self.feed, self.config, self.group, self.device, self.began = feed, config, group, device, began
        self.progress = progress or (lambda line: None)
        self.watch = watch or (lambda moment: None)
        self.checkpoint = out.with_suffix(".ckpt") if out else None
        self.log = out.with_suffix(".csv") if out else None
        if self.checkpoint and group.is_first:
            require_room(self.checkpoint, network.parameters())
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
            model.load_codes(init)
        else:
            model.set_frequencies(feed.counts)
        self.model = model.to(device)
        self.average = copy.deepcopy(model).eval()
        self.loss = torch.compile(model.loss) if config.compile else model.loss
        self.parameters = list(model.parameters())
        self.optimisers = make_optimisers(model, config)
        self.spans = spans_of(feed.held_out, config.held_out)
        # Tokens that the weights are paid for by.
        self.served = (config.for_segments or feed.segments) * feed.segment_tokens
        # What changes from step to step, all of it in checkpoints:
        self.budget, self.training_bits = Budget(config), math.inf
        self.best, self.best_bits, self.best_step, self.stale = math.inf, math.inf, 0, 0
        self.best_weights = copy.deepcopy(self.average.state_dict())
        self.rows: list[Row] = []
        self.chosen_spans = 0
        self.saved_step: int | None = None

    # ---- the loop

    def run(self, interrupts: Interrupts) -> TrainResult:
        """Make all steps that are to come. On an interrupt, save a checkpoint and act as the signal would have."""
        budget, config = self.budget, self.config
        step_tokens = config.windows * config.frames * self.model.config.positions
        record = Record(self.log, self.rows) if self.log and self.group.is_first else None
        self._choose_spans()
        self.upcoming = self._draw(budget.step + 1, 0)
        trained, since = 0.0, budget.step  # seconds of steps alone, since the last evaluation
        try:
            while not self._is_over():
                start = time.monotonic()
                rate, stopping = self._step(interrupts.number)
                trained += time.monotonic() - start
                per_second = (budget.step - since) * step_tokens / max(trained, 1e-9)
                if budget.is_due:
                    row = self._evaluate(rate, per_second, budget.step * step_tokens)
                    if record:
                        record.add(row)
                    self.progress(summary(row, budget.done(), None if config.time else config.steps))
                    trained, since = 0.0, budget.step
                    self._save()
                self.watch(self._moment(budget.done(), per_second))
                if stopping:
                    self._save()
                    if self.checkpoint:
                        self.progress(f"interrupted after step {budget.step}: the same command with --resume goes on")
                    interrupts.act()
        finally:
            if record:
                record.close()
        self.average.load_state_dict(self.best_weights)
        spans, rows = tuple(self.spans), tuple(self.rows)
        return TrainResult(
            self.average.cpu(), self.best_bits, self.best_step, rows, self.feed, spans, self.group.is_first
        )

    def _step(self, asked: int) -> tuple[float, bool]:
        """Make one optimiser step; returns its share of the peak step size, and whether a process was asked to stop."""
        config, step = self.config, self.budget.step + 1
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
        now = self._now() * self.group.size * self.group.is_first
        bits, stop, seconds = self.group.average_gradients(self.parameters, [losses.item(), float(asked > 0), now])
        self.budget.seconds = seconds
        norm = nn.utils.clip_grad_norm_(self.parameters, config.clip).item()
        if not (math.isfinite(bits) and math.isfinite(norm)):
            raise ModelError(
                f"training diverged at step {step}: loss {bits:g}; lower the step sizes, "
                f"--set learning_rate=X and --set muon_rate=X{self._kept()}"
            )
        rate = rate_of_step(step, self.budget.left(step), config)
        for optimiser, peak in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * peak
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        _follow(self.average, self.model, min(config.average, (1 + step) / (10 + step)))
        self.training_bits = bits if step == 1 else 0.95 * self.training_bits + 0.05 * bits
        self.budget.step = step
        return rate, stop > 0

    def _draw(self, step: int, i: int) -> tuple[Tensor, int]:
        """The micro-batch that this process makes as its i-th in a step, and its seed."""
        return self.feed.batch(step, self.group.rank * (self.config.accumulate // self.group.size) + i)

    def _is_over(self) -> bool:
        return self.budget.is_over or bool(self.config.patience and self.stale >= self.config.patience)

    def _now(self) -> float:
        """Seconds of training so far."""
        return time.monotonic() - self.began

    def _moment(self, done: float, per_second: float, is_evaluating: bool = False) -> Moment:
        size = self.rows[-1].zip_bytes if self.rows else 0
        seconds = self.budget.seconds
        return Moment(done, self.budget.step, seconds, self.training_bits, per_second, size, is_evaluating)

    # ---- evaluation

    def _choose_spans(self) -> None:
        """Keep as many held-out frames, evenly spread, as there is time to evaluate: all, where steps are counted."""
        if self.config.time and not self.chosen_spans and self.spans:
            start = time.monotonic()
            evaluate(self.average, self.spans[len(self.spans) // 2 :][:1])
            seconds = (time.monotonic() - start) / self.group.size
            (seconds,) = self.group.total([seconds * self.group.is_first])
            self.chosen_spans = self.budget.affordable(len(self.spans), seconds)
        every, count = self.spans, self.chosen_spans or len(self.spans)
        self.spans = [every[(2 * i + 1) * len(every) // (2 * count)] for i in range(count)]
        self.budget.evaluation_frames = sum(cost(span, self.model.config) for span in self.spans)

    def _evaluate(self, rate: float, per_second: float, tokens: int) -> Row:
        """Measure the averaged weights, and keep them if they are the best so far."""
        budget, group, start = self.budget, self.group, self.budget.seconds
        mine = self.spans[group.rank :: group.size]

        def watch(done: int) -> None:
            self.watch(self._moment(budget.done(done / len(mine), self._now()), per_second, is_evaluating=True))

        count = float(count_frames(mine))
        bits, known_frames, budget.seconds = group.total(
            [evaluate(self.average, mine, watch) * count, count, self._now() * group.is_first]
        )
        budget.evaluation_over(start)
        held_out = bits / known_frames if self.spans else math.nan
        known = held_out if self.spans else self.training_bits
        with torch.no_grad():
            weights = round(self.average.weight_bits().item() / 8)
        size = round(known * self.served / 8) + weights
        score = size if self.config.for_segments else known
        # Without held-out frames nothing can be chosen: the last weights are the trained ones.
        if score < self.best or not self.spans:
            self.best, self.best_bits, self.best_step, self.stale = score, known, budget.step, 0
            self.best_weights = copy.deepcopy(self.average.state_dict())
        else:
            self.stale += 1
        seconds, per_second = round(budget.seconds, 1), round(per_second, 1)
        row = Row(budget.step, seconds, tokens, rate, self.training_bits, held_out, per_second, weights, size)
        self.rows.append(row)
        return row

    # ---- checkpoints

    def _same(self) -> dict[str, dict[str, Any]]:
        """What must not change between a checkpoint and its resumption."""
        network = {k: _plain(v) for k, v in self.model.config.to_dict().items()}
        return {"settings": self.config.to_dict(), "network": network, "data": dict(self.feed.fingerprint)}

    def _save(self) -> None:
        budget = self.budget
        if not self.checkpoint or not self.group.is_first or self.saved_step == budget.step:
            return
        try:
            write_checkpoint(
                self.checkpoint,
                {
                    **self._same(),
                    "budget": budget.state(),
                    "training_bits": self.training_bits,
                    "best": [self.best, self.best_bits, self.best_step, self.stale],
                    "best_weights": self.best_weights,
                    "rows": [list(row) for row in self.rows],
                    "chosen_spans": self.chosen_spans,
                    "model": self.model.state_dict(),
                    "average": self.average.state_dict(),
                    "optimisers": [optimiser.state_dict() for optimiser, _ in self.optimisers],
                },
            )
        except InputError as error:
            raise InputError(f"{error}{self._kept()}") from error
        self.saved_step = budget.step

    def resume(self) -> None:
        """Go on from the checkpoint. Raises InputError."""
        if not self.checkpoint:
            raise InputError("training: resuming needs `out`, the model beside which the checkpoint is")
        state = read_checkpoint(self.checkpoint, self._same())
        self.budget.restore(state["budget"])
        self.training_bits = state["training_bits"]
        self.best, self.best_bits, self.best_step, self.stale = state["best"]
        self.best_weights = state["best_weights"]
        self.rows = [Row(*row) for row in state["rows"]]
        self.chosen_spans = state["chosen_spans"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for (optimiser, _), saved in zip(self.optimisers, state["optimisers"]):
            optimiser.load_state_dict(saved)
        self.began -= self.budget.seconds
        self.saved_step = self.budget.step
        if (version := state["vqcomp"]) != __version__:
            self.progress(
                f"note: vqcomp {version} wrote the checkpoint, this is {__version__}: the weights may not be those "
                "that either would have come to alone"
            )
        self.progress(f"going on after step {self.budget.step}")

    def _kept(self) -> str:
        if not self.checkpoint or self.saved_step is None:
            return ""
        return f". {self.checkpoint} keeps the state after step {self.saved_step}: --resume goes on from there"


@torch.no_grad()
def _follow(average: FrameGPT, model: FrameGPT, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value
