"""What a training reports while it runs: a CSV file always, TensorBoard where that is installed."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..runtime.disk import replacing


class Row(NamedTuple):
    """The state at one evaluation."""

    step: int
    seconds: float
    """Of training so far, evaluations included."""
    tokens: int
    """Seen in training so far."""
    rate: float
    """Share of the peak step size."""
    training_bits: float
    """Bits/token in training, with dropout; averaged over some twenty steps."""
    held_out_bits: float
    """Bits/token on the held-out frames; NaN where none are held out."""
    tokens_per_second: float
    """Trained since the last evaluation."""
    weights_bytes: int
    """Size of the coded weights, to about 1 %; the head of the .vqm, some 300 bytes, comes on top."""
    zip_bytes: int
    """Weights and coded tokens of the segments that the model is for; a zip's decoder comes on top."""


@dataclass(frozen=True)
class Moment:
    """The state after a step or in an evaluation, for a display."""

    done: float
    """Share of the training that is over."""
    step: int
    seconds: float
    training_bits: float
    tokens_per_second: float
    """Trained since the last evaluation."""
    zip_bytes: int
    """As of the last evaluation, 0 before."""
    is_evaluating: bool = False


def summary(row: Row, done: float, steps: int | None) -> str:
    """A line about an evaluation. done: share of the training that is over; steps: of how many, if they are counted."""
    held_out = "" if math.isnan(row.held_out_bits) else f"held out {row.held_out_bits:.4f} "
    left = f", {_clock(row.seconds / done - row.seconds)} to go" if 0 < done < 1 else ""
    return (
        f"step {row.step}{f'/{steps}' if steps else ''}  training {row.training_bits:.4f}  {held_out}bits/token  "
        f"zip {row.zip_bytes:,} bytes  {row.tokens_per_second:,.0f} tokens/s  {_clock(row.seconds)}{left}"
    )


def _clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Record:
    """The rows so far, in a CSV file and, if it can be imported, in TensorBoard."""

    def __init__(self, path: Path, rows: Sequence[Row] = ()) -> None:
        self.path, self.rows = path, list(rows)
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            return
        self._writer = SummaryWriter(str(path.with_suffix(".tensorboard")))

    def add(self, row: Row) -> None:
        """Append a row and replace the file. Raises InputError if it cannot be written."""
        self.rows.append(row)
        with replacing(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            writer.writerow(Row._fields)
            writer.writerows(self.rows)
        if self._writer:
            for name, value in zip(Row._fields[1:], row[1:]):
                self._writer.add_scalar(name, value, row.step)
            self._writer.flush()

    def close(self) -> None:
        if self._writer:
            self._writer.close()
