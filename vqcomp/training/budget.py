"""How long a training lasts, by steps or by the clock: what is over, what is to come, and when to evaluate."""

from __future__ import annotations

from collections.abc import Mapping

from .config import TrainConfig

EVALUATIONS = 10
"""In a time budget."""
EVALUATION_SHARE = 0.2
"""Of a time budget, for all evaluations."""
BACKWARD = 3
"""A frame of a window costs so many times what one costs that is only predicted."""


class Budget:
    """The state of a training's time. `config.time` decides between seconds and steps."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.step = 0
        """Steps that are over."""
        self.seconds = 0.0
        """As of the last step or evaluation."""
        self.evaluated = 0.0
        """Seconds at the end of the last evaluation."""
        self.evaluations = 0
        self.evaluation_seconds = 0.0
        """What the longest evaluation so far took."""
        self.evaluation_frames = 0
        """Frames that one evaluation computes."""

    def state(self) -> dict[str, float]:
        """Plain values, for checkpoints."""
        return {name: value for name, value in vars(self).items() if name != "config"}

    def restore(self, state: Mapping[str, float]) -> None:
        """Inverse of `state`."""
        vars(self).update(state)

    def left(self, step: int) -> float:
        """Share of the training that is to come when `step` (from 1) begins."""
        if self.config.time:
            return 1 - self.seconds / self.config.time
        return (self.config.steps + 1 - step) / self.config.steps

    def done(self, evaluated: float = 0.0, seconds: float | None = None) -> float:
        """Share of the training that is over, a share `evaluated` of an evaluation that is under way included.

        By the clock it is that of `seconds`, by default of the last step or evaluation.
        """
        c = self.config
        if c.time:
            return min(1.0, (self.seconds if seconds is None else seconds) / c.time)
        # Evaluations count by what they cost, so that the time left is about right.
        step = BACKWARD * c.windows * c.frames
        whole = c.steps * step + -(-c.steps // c.evaluate_every) * self.evaluation_frames
        return min(1.0, (self.step * step + (self.evaluations + evaluated) * self.evaluation_frames) / whole)

    @property
    def is_over(self) -> bool:
        """Whether no step is to come. Of a time budget, that of one evaluation is kept."""
        if self.config.time:
            kept = min(self.evaluation_seconds, EVALUATION_SHARE * self.config.time)
            return self.step > 0 and self.seconds + kept >= self.config.time
        return self.step >= self.config.steps

    @property
    def is_due(self) -> bool:
        """Whether to evaluate now."""
        if self.config.time:
            gap = max(self.config.time / EVALUATIONS, self.evaluation_seconds / EVALUATION_SHARE)
            return self.is_over or self.seconds - self.evaluated >= gap
        return self.is_over or self.step % self.config.evaluate_every == 0

    def affordable(self, spans: int, seconds: float) -> int:
        """How many of so many spans to evaluate, where one takes so many seconds: all if steps are counted."""
        if not self.config.time:
            return spans
        share = EVALUATION_SHARE * self.config.time / EVALUATIONS
        return min(spans, max(1, int(share / max(seconds, 1e-9))))

    def evaluation_over(self, seconds: float) -> None:
        """Note an evaluation that ended now and began after `seconds`."""
        self.evaluations += 1
        self.evaluation_seconds = max(self.evaluation_seconds, self.seconds - seconds)
        self.evaluated = self.seconds
