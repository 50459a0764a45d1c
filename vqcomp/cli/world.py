"""imagine."""

from __future__ import annotations

from fractions import Fraction

import click

from .. import api
from ..data.segments import Grid
from ..external_models import TokenOptions
from ..runtime.compute import Compute
from ..world.sampling import Sampling
from .options import compute_options, options, token_options
from .progress import Bar


def _fraction(context: click.Context, parameter: click.Parameter, value: str | None) -> Fraction | None:
    if value is None:
        return None
    try:
        return Fraction(value)
    except (ValueError, ZeroDivisionError):
        raise click.BadParameter(f"expected a number such as 0.9, found {value}") from None


@click.command()
@click.argument("place", metavar="DATA|ARCHIVE[:NAME]")
@click.option("-o", "--output", required=True, metavar="OUT", help="File (.npy) to write; a folder with --layout 1x.")
@click.option("--frames", type=click.IntRange(1), metavar="N", help="Frames to imagine.  [default: 100; 8 for 1x]")
@click.option(
    "--prompt", type=click.IntRange(0), metavar="P", help="True frames before them.  [default: all there are; 8 for 1x]"
)
@click.option("--start", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="First true frame.")
@click.option("--every", type=click.IntRange(1), metavar="N", help="Take every Nth frame.  [default: 1; 15 for 1x]")
@click.option(
    "--model", default="auto", show_default=True, metavar="NAME|PATH",
    help="A shipped model, the path of a .vqm or its address on the hub, none (with --learn), or auto: the archive's "
    "own network, else the largest that ships for these tokens. Or an external network, which draws token by token: a "
    "folder with the checkpoint of a GPT-2, or hf://OWNER/NAME.",
)  # fmt: skip
@click.option("--learn", is_flag=True, help="Learn from the prompt as compress does; draw bit by bit, from that, too.")
@click.option(
    "--temperature", default="1", show_default=True, callback=_fraction, metavar="X",
    help="Divide logits by it: below 1 the likely gets likelier; 0 takes the likeliest.",
)  # fmt: skip
@click.option("--top-k", type=click.IntRange(1), metavar="K", help="Draw from the K likeliest tokens alone.")
@click.option(
    "--top-p",
    callback=_fraction,
    metavar="X",
    help="Draw from the likeliest tokens that together have this probability.",
)
@click.option(
    "--seed", type=click.IntRange(0, (1 << 64) - 1), default=0, show_default=True, metavar="N",
    help="The same seed gives the same future on every machine.",
)  # fmt: skip
@click.option(
    "--samples", type=click.IntRange(1), default=1, show_default=True, metavar="K",
    help="Futures of the same prompt; several are written to OUT-0, OUT-1, ... (before .npy).",
)  # fmt: skip
@click.option(
    "--steps", type=click.IntRange(1), default=1, show_default=True, metavar="M",
    help="Draw each frame in so many steps (MaskGIT), by a model trained with --set within_frame=true.",
)  # fmt: skip
@click.option(
    "--order", type=click.Choice(["random", "confidence"]), default="random", show_default=True,
    help="Which tokens each of the steps keeps.",
)  # fmt: skip
@click.option(
    "--layout", type=click.Choice(["npy", "1x"]), default="npy", show_default=True,
    help="1x: continue one of 1X's folders into a folder that their visualize.py reads.",
)  # fmt: skip
@compute_options
@token_options
@options("grid", "force", "quiet", "verbose")
def imagine(
    place: str, output: str, frames: int | None, prompt: int | None, start: int, every: int | None, model: str,
    learn: bool, temperature: Fraction, top_k: int | None, top_p: Fraction | None, seed: int, samples: int, steps: int,
    order: str, layout: str, compute: Compute, token_options: TokenOptions | None, grid: Grid | None, force: bool,
    quiet: bool, verbose: bool,
) -> None:  # fmt: skip
    """Imagine how a segment of DATA, or of ARCHIVE, goes on.

    OUT holds the prompt's true frames, then the imagined ones. Where there are several segments, name one:
    tokens.zip:drive/0001.npy.
    """
    paths = api.imagine(
        place, output, frames=frames, prompt=prompt, start=start, every=every, model=model, learn=learn,
        sampling=Sampling(temperature, top_k, top_p, seed), samples=samples, steps=steps, order=order, layout=layout,
        grid=grid, force=force, token_options=token_options, compute=compute, progress=Bar(quiet),
        report=(lambda line: click.echo(line, err=True)) if verbose else None,
    )  # fmt: skip
    if not quiet:
        for path in paths:
            click.echo(f"wrote {path}", err=True)


COMMANDS = (imagine,)
