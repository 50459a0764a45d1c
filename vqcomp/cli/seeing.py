"""render, tokenize, report."""

from __future__ import annotations

import click

from .. import seeing
from ..data.segments import Grid
from ..runtime.compute import Compute
from ..world.video import CROPS, FPS
from .options import compute_options, count, options
from .progress import Bar

_DECODER = (
    "Checkpoint that turns tokens into pictures: comma's (.onnx or PyTorch), 1X's MAGVIT2, or hf://OWNER/NAME/FILE."
)


def _note(quiet: bool, line: str) -> None:
    if not quiet:
        click.echo(f"note: {line}", err=True)


@click.command()
@click.argument("tokens")
@click.option("-o", "--output", required=True, metavar="FILE", help="Film (.mp4, .gif) or contact sheet (.png).")
@click.option("--decoder", metavar="FILE|hf://...", help=_DECODER)
@click.option("--compare", metavar="TOKENS", help="Other tokens, drawn to the right: imagined ones, say.")
@click.option("--surprise", is_flag=True, help="Show each token's cost in bits as heat.")
@click.option(
    "--model", default="auto", show_default=True, metavar="NAME|PATH",
    help="Whose embedding gives the colours and whose predictions the costs: a shipped model, a .vqm, none (learning "
    "alone), or auto (the archive's own, else the largest that ships).",
)  # fmt: skip
@click.option("--start", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="First frame.")
@click.option("--frames", type=click.IntRange(1), metavar="N", help="How many  [default: all; on a sheet, 48 of all]")
@click.option("--every", type=click.IntRange(1), metavar="N", help="Only each Nth frame.")
@click.option(
    "--fps", type=click.FloatRange(0, 240, min_open=True), default=FPS, show_default=True, metavar="N",
    help="Frames a second.",
)  # fmt: skip
@compute_options
@options("grid", "force", "quiet")
def render(
    tokens: str, output: str, decoder: str | None, compare: str | None, surprise: bool, model: str, start: int,
    frames: int | None, every: int | None, fps: float, compute: Compute, grid: Grid | None, force: bool, quiet: bool,
) -> None:  # fmt: skip
    """Draw a segment, in colours that are near for near codes, or by a decoder.

    TOKENS is a .npy file, an archive, a shard or a folder; ARCHIVE:NAME picks one of several segments.
    """
    drawn = seeing.render(
        tokens, output, compare=compare, surprise=surprise, model=model, decoder=decoder, start=start, frames=frames,
        every=every, fps=fps, grid=grid, force=force, compute=compute, progress=Bar(quiet),
        report=lambda line: _note(quiet, line),
    )  # fmt: skip
    if not quiet:
        click.echo(f"{output}: {count(drawn, 'frame')}", err=True)


@click.command()
@click.argument("video")
@click.option("-o", "--output", required=True, metavar="FILE.npy", help="File to write: int16 (T, 8, 16).")
@click.option(
    "--encoder", required=True, metavar="FILE|hf://...", help="comma's encoder: encoder.onnx, or the PyTorch file."
)
@click.option(
    "--crop", type=click.Choice(list(CROPS)), default="comma", show_default=True,
    help="comma: the piece that comma takes of its camera's 1928 x 1208; centre: the largest piece of its shape.",
)  # fmt: skip
@click.option(
    "--fps", type=click.FloatRange(0, min_open=True), metavar="N", help="Take so many frames a second; comma's has 20."
)
@compute_options
@options("force", "quiet")
def tokenize(
    video: str, output: str, encoder: str, crop: str, fps: float | None, compute: Compute, force: bool, quiet: bool
) -> None:
    """Turn VIDEO, any that PyAV reads, into tokens by comma's encoder, cut and resized as comma does."""
    shape = seeing.tokenize(
        video, output, encoder, crop=crop, fps=fps, force=force, compute=compute, progress=Bar(quiet)
    )
    if not quiet:
        click.echo(f"{output}: {'x'.join(map(str, shape))} tokens", err=True)


@click.command()
@click.argument("data", nargs=-1, required=True, metavar="DATA|ARCHIVE...")
@click.option("-o", "--output", required=True, metavar="FILE.html", help="Page to write.")
@click.option(
    "--model", default="auto", show_default=True, metavar="NAME|PATH", help="Of DATA that are no archive: see compress."
)
@click.option("--adapt/--no-adapt", default=True, show_default=True, help="Of DATA that are no archive: see compress.")
@click.option("--decoder", metavar="FILE|hf://...", help=_DECODER)
@click.option(
    "--segments", type=click.IntRange(1), default=16, show_default=True, metavar="N",
    help="Look at so many segments token by token, spread over the archive.",
)  # fmt: skip
@compute_options
@options("grid", "force", "quiet", "verbose")
def report(
    data: tuple[str, ...], output: str, model: str, adapt: bool, decoder: str | None, segments: int, compute: Compute,
    grid: Grid | None, force: bool, quiet: bool, verbose: bool,
) -> None:  # fmt: skip
    """Write a page about ARCHIVE, or about what DATA would be as one: where the bits go, when and why.

    The page is one file that needs no network.
    """
    told = seeing.report(
        data, output, model=model, adapt=adapt, decoder=decoder, segments=segments, grid=grid, force=force,
        compute=compute, progress=Bar(quiet), note=lambda line: _note(not verbose, line),
    )  # fmt: skip
    if not quiet:
        click.echo(
            f"{output}: {count(len(told.rows), 'segment')}, {len(told.measured)} of them token by token", err=True
        )


COMMANDS = (render, tokenize, report)
