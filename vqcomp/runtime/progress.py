"""What is told of progress, and a line that shows it."""

from __future__ import annotations

import sys
import time


class Progress:
    """Stages of so many segments and tokens, one after another. This one shows nothing; others override."""

    def begin(self, stage: str, segments: int, tokens: int) -> None:
        """Start a stage of this many segments and tokens."""

    def advance(self, segments: int, tokens: int) -> None:
        """So many more are done."""

    def groups(self, done: int, total: int) -> None:
        """Of the groups that share a stream so many are done, those of an earlier run included."""

    def end(self) -> None:
        """The stage is over, well or not. May be called again, and where there is none."""


class ProgressLine(Progress):
    """A line on standard error, rewritten while work goes on; silent unless that is a terminal."""

    def __init__(self) -> None:
        self.quiet = not sys.stderr or not sys.stderr.isatty()

    def begin(self, stage: str, segments: int, tokens: int) -> None:
        self.stage, self.all, self.done = stage, (segments, tokens), [0, 0]
        self.start = self.shown = time.monotonic()

    def advance(self, segments: int, tokens: int) -> None:
        self.done[0] += segments
        self.done[1] += tokens
        now = time.monotonic()
        if not self.quiet and now - self.shown > 0.2:
            self.shown = now
            rate = self.done[1] / (now - self.start)
            counts = (
                f"{self.done[0]:,}/{self.all[0]:,} segments, {100 * self.done[1] / max(self.all[1], 1):.0f} % of tokens"
            )
            print(f"\r{self.stage}: {counts}, {rate:,.0f} tokens/s   ", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if not self.quiet:
            print("\r" + " " * 78 + "\r", end="", file=sys.stderr, flush=True)
