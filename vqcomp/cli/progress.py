"""Progress on standard error."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from ..runtime.progress import Progress

if TYPE_CHECKING:
    from ..training.record import Moment


LINE_SECONDS = 60.0
"""Where standard error is no terminal, a line takes the bar's place whenever there has been none for so long."""


class Bar(Progress):
    """A tqdm bar on standard error: tokens, their rate, time left, segments, groups; lines where it is no terminal."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.bar: Any = None
        self.said = time.monotonic()

    def begin(self, stage: str, segments: int, tokens: int) -> None:
        from tqdm import tqdm

        self.end()
        self.stage, self.tokens, self.coded, self.start = stage, tokens, 0, time.monotonic()
        self.done, self.segments, self.counted = 0, segments, ""
        # disable=None: silent where standard error is no terminal.
        self.bar = tqdm(
            total=tokens, desc=stage, unit=" tokens", unit_scale=True, leave=False, disable=self.quiet or None,
            postfix={"segments": f"0/{segments}"}, dynamic_ncols=True,
        )  # fmt: skip

    def advance(self, segments: int, tokens: int) -> None:
        self.bar.update(tokens)
        self.coded += tokens
        if segments:
            self.done += segments
            self._show()
        now = time.monotonic()
        if not self.quiet and not sys.stderr.isatty() and now - self.said >= LINE_SECONDS and self.coded:
            self.said, left = now, (self.tokens - self.coded) * (now - self.start) / self.coded
            share = f"{100 * self.coded // self.tokens} % of {self.tokens:,} tokens"
            segments_done = f"{self.done:,} of {self.segments:,} segments"
            click.echo(f"{self.stage}: {share}, {segments_done}, about {left:,.0f} s to go", err=True)

    def groups_done(self, done: int, total: int) -> None:
        self.counted = f"{done}/{total}"
        self._show()

    def _show(self) -> None:
        groups = {"groups": self.counted} if self.counted else {}
        self.bar.set_postfix(segments=f"{self.done}/{self.segments}", refresh=False, **groups)

    def end(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = None


class TrainingBar:
    """Lines on standard error and, on a terminal, a tqdm bar below them: bits/token, tokens/s, size of a zip, time."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.bar: Any = None
        self.said = time.monotonic()

    def line(self, text: str) -> None:
        if not self.quiet:
            if self.bar is not None:
                self.bar.clear()
            click.echo(text, err=True)
            self.said = time.monotonic()

    def show(self, moment: Moment) -> None:
        from tqdm import tqdm

        what = "evaluating, " if moment.is_evaluating else ""
        if not sys.stderr.isatty() and time.monotonic() - self.said >= LINE_SECONDS:
            bits = f"{moment.training_bits:.3f} bits/token in training"
            self.line(f"step {moment.step}, {100 * moment.done:.0f} % of the training, {what}{bits}")
        if self.bar is None:
            form = "training {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
            self.bar = tqdm(total=1.0, leave=False, disable=self.quiet or None, dynamic_ncols=True, bar_format=form)
        size = f", zip {moment.zip_bytes:,} bytes" if moment.zip_bytes else ""
        rate = f"{moment.training_bits:.3f} bits/token, {moment.tokens_per_second:,.0f} tokens/s"
        self.bar.set_postfix_str(f"step {moment.step}, {what}{rate}{size}", refresh=False)
        self.bar.update(moment.done - self.bar.n)

    def end(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = None
