"""train."""

from __future__ import annotations

import os
import shlex

import click

from .. import api
from ..data.segments import Grid
from ..training.config import describe_settings
from ..training.presets import PRESETS
from .options import options, parse_time
from .progress import TrainingBar


def _parse_settings(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    for value in values:
        if "=" not in value:
            raise click.BadParameter(f"expected FIELD=VALUE such as dropout=0.1, found {value!r}")
    return dict(value.split("=", 1) for value in values)


_PRESETS = "\b\nPresets:\n" + "\n".join(f"  {name:6} {preset.about}" for name, preset in PRESETS.items())
_FIELDS = "\b\nFields of --set; presets have values of their own for some:\n" + describe_settings()


@click.command(epilog=f"{_PRESETS}\n\n{_FIELDS}")
@click.argument("data", nargs=-1, required=True)
@click.option("-o", "--output", required=True, metavar="MODEL.vqm", help="File to write.")
@click.option("--preset", metavar="NAME", help="Network and recipe, see below  [default: mini, or that of --init]")
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Optimiser steps.")
@click.option("--time", callback=parse_time, metavar="TIME", help="Train for so long (90s, 20m, 2h) instead.")
@click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Windows at a time.")
@click.option("--accumulate", type=click.IntRange(1), metavar="N", help="So many times that in a step.")
@click.option(
    "--held-out", type=click.IntRange(0), metavar="N",
    help="Choose weights by the last N frames of each segment; of 20 segments or more, by those of some whole ones. "
    "[default: the preset's, a quarter of a segment at most]",
)  # fmt: skip
@click.option("--patience", type=click.IntRange(0), metavar="N", help="Stop after N evaluations without a gain.")
@click.option(
    "--for-segments", type=click.FloatRange(0), metavar="N",
    help="Make weights and coded tokens of N segments together smallest.",
)  # fmt: skip
@click.option("--init", metavar="NAME|PATH", help="Start from a shipped model or a .vqm, with smaller steps.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint that an interrupted run of it left.")
@click.option("--seed", type=click.IntRange(0), metavar="N", help="Seed of weights, windows and dropout.")
@click.option("--compile", is_flag=True, default=None, help="Use torch.compile.")
@click.option(
    "--set", "more", multiple=True, callback=_parse_settings, metavar="FIELD=VALUE",
    help="Any of the fields below, such as dropout=0.1 (may be repeated).",
)  # fmt: skip
@click.option("--device", default="auto", show_default=True, metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")
@options("threads", "grid", "force", "quiet")
@click.pass_obj
def train(
    arguments: list[str], data: tuple[str, ...], output: str, preset: str | None, time: float | None,
    batch_size: int | None, init: str | None, resume: bool, more: dict[str, str], device: str, threads: int | None,
    grid: Grid | None, force: bool, quiet: bool, **settings: float | None,
) -> None:  # fmt: skip
    """Train a model on DATA for `compress --model MODEL.vqm`.

    Beside it are written a card (MODEL.md), a log (MODEL.csv) and a checkpoint (MODEL.ckpt), from which --resume goes
    on, to the same result, after Ctrl-C or worse. torchrun trains on several GPUs: torchrun --nproc-per-node 8 -m
    vqcomp train ...
    """
    quiet = quiet or os.environ.get("RANK", "0") != "0"  # of torchrun's processes the first one speaks
    settings |= {"time": time, "batch": batch_size}
    display = TrainingBar(quiet)
    try:
        result = api.train(
            data, output, {**{k: v for k, v in settings.items() if v is not None}, **more}, preset=preset, init=init,
            resume=resume, device=device, threads=threads, grid=grid, force=force,
            command=shlex.join(["vqcomp", *(arguments or [])]), report=display.line, watch=display.show,
        )  # fmt: skip
    finally:
        display.end()
    if not quiet:
        click.echo(
            f"{output}: {result.size:,} bytes, {result.bits_per_token:.4f} bits/token (step {result.step})", err=True
        )


COMMANDS = (train,)
