"""Progress on standard error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..runtime.progress import Progress

if TYPE_CHECKING:
    from ..training.trainer import Moment


class Bar(Progress):
    """A tqdm bar on standard error: tokens, tokens/s and segments. Silent unless that is a terminal."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.bar: Any = None

    def begin(self, stage: str, segments: int, tokens: int) -> None:
        from tqdm import tqdm

        self.end()
        self.done, self.segments = 0, segments
        # disable=None: silent where standard error is no terminal.
        self.bar = tqdm(
            total=tokens, desc=stage, unit=" tokens", unit_scale=True, leave=False, disable=self.quiet or None,
            postfix={"segments": f"0/{segments}"}, dynamic_ncols=True,
        )  # fmt: skip

    def advance(self, segments: int, tokens: int) -> None:
        self.bar.update(tokens)
        if segments:
            self.done += segments
            self.bar.set_postfix(segments=f"{self.done}/{self.segments}", refresh=False)

    def end(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = None


class TrainingBar:
    """Lines on standard error and, on a terminal, a tqdm bar below them: bits/token, tokens/s, size of a zip, time."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.bar: Any = None

    def line(self, text: str) -> None:
        if not self.quiet:
            if self.bar is not None:
                self.bar.clear()
            click.echo(text, err=True)

    def show(self, moment: Moment) -> None:
        from tqdm import tqdm

        if self.bar is None:
            form = "training {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
            self.bar = tqdm(total=1.0, leave=False, disable=self.quiet or None, dynamic_ncols=True, bar_format=form)
        size = f", zip {moment.zip_bytes:,} bytes" if moment.zip_bytes else ""
        rate = f"{moment.training_bits:.3f} bits/token, {moment.tokens_per_second:,.0f} tokens/s"
        self.bar.set_postfix_str(f"step {moment.step}, {rate}{size}", refresh=False)
        self.bar.update(moment.done - self.bar.n)

    def end(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = None
