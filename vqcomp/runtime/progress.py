"""What is told of progress, and a line that shows it."""

from __future__ import annotations

import sys
import time

WIDTH = 60
"""Columns of the line."""


class Progress:
    """Stages of so many segments and tokens, one after another. This one shows nothing; others override."""

    def begin(self, stage: str, segments: int, tokens: int) -> None:
        """Start a stage of this many segments and tokens."""

    def advance(self, segments: int, tokens: int) -> None:
        """So many more are done."""

    def groups_done(self, done: int, total: int) -> None:
        """Of the groups that share a stream so many are done, those of an earlier run included."""

    def end(self) -> None:
        """The stage is over, well or not. May be called again, and where there is none."""


class ProgressLine(Progress):
    """A line on standard error, rewritten while work goes on; silent unless that is a terminal."""

    def __init__(self) -> None:
        self.quiet = not sys.stderr or not sys.stderr.isatty()

    def begin(self, stage: str, segments: int, tokens: int) -> None:
        self.stage, self.all, self.done = stage, tokens, 0
        self.start = self.shown = time.monotonic()

    def advance(self, segments: int, tokens: int) -> None:
        self.done += tokens
        now = time.monotonic()
        if not self.quiet and now - self.shown > 0.2:
            self.shown = now
            rate = self.done / (now - self.start)
            line = f"{self.stage}: {100 * self.done // self.all} %, {rate:,.0f} tokens/s"
            print("\r" + line.ljust(WIDTH), end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if not self.quiet:
            print("\r" + " " * WIDTH, end="\r", file=sys.stderr, flush=True)
