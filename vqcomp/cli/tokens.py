"""fetch, sample-data."""

from __future__ import annotations

from pathlib import Path

import click

from ..data import hub
from ..data.synthetic import write_samples, write_synthetic
from ..model_files import find_model
from ..runtime.compute import Compute
from ..world.draw import write_drawn
from .options import compute_options, count, options
from .progress import Bar


@click.command()
@click.argument("dataset", type=click.Choice(["commavq"]))
@click.option("--shards", default="0-1", show_default=True, metavar="N-M,...", help="Which; 0-1 are the challenge's.")
@click.option(
    "--revision", default=hub.COMMAVQ_REVISION, show_default=True, metavar="REV", help="Commit, tag or branch."
)
@click.option("-o", "--output", metavar="DIR", help="Folder to write into  [default: the cache of huggingface_hub]")
def fetch(dataset: str, shards: str, revision: str, output: str | None) -> None:
    """Download shards of commaVQ from the Hugging Face hub and print their paths.

    What is there already is not fetched again, what broke off goes on. HF_HOME says where the cache is, HF_TOKEN who
    asks, and HF_HUB_OFFLINE=1 forbids the network.
    """
    for path in hub.fetch_commavq(hub.parse_shards(shards), revision, Path(output) if output else None):
        click.echo(path)


@click.command("sample-data")
@click.argument("folder", metavar="DIR")
@click.option("--segments", type=click.IntRange(1, 10_000), default=3, show_default=True, metavar="N")
@click.option("--frames", type=click.IntRange(1, 100_000), default=300, show_default=True, metavar="N")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N")
@click.option(
    "--layout", type=click.Choice(["npy", "1x", "1x-v2"]), default="npy", show_default=True,
    help="commaVQ's, or 1X's of v1.1 or v2.0.",
)  # fmt: skip
@click.option(
    "--from", "model", metavar="NAME|PATH",
    help="Draw the tokens from this model's own distribution; costs.json says how many bits they take under it.",
)  # fmt: skip
@compute_options
@options("force", "quiet")
def sample_data(
    folder: str, segments: int, frames: int, seed: int, layout: str, model: str | None, compute: Compute, force: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Write made-up segments into DIR, to try things out with; their rates say nothing about real video.

    The same seed gives the same tokens, on every machine where they are drawn --from a model.
    """
    if model is not None:
        if layout != "npy":
            raise click.UsageError("--from writes .npy files; leave --layout out")
        found = find_model(model, "--from")
        bits = write_drawn(
            Path(folder), found, segments, frames, seed, force=force, compute=compute, progress=Bar(quiet)
        )
        if not quiet:
            per_token = bits / (segments * frames * found.spec.positions)
            drawn = f"{count(segments, 'segment')} drawn from {found.name}, {per_token:.4f} bits/token"
            click.echo(f"wrote {drawn}, into {folder}", err=True)
        return
    if layout == "npy":
        write_samples(Path(folder), segments, frames, seed, force=force)
    else:
        version = "v1.1" if layout == "1x" else "v2.0"
        write_synthetic(Path(folder), segments * frames, segments, seed, version, force=force)
    if not quiet:
        click.echo(f"wrote {count(segments, 'synthetic segment')} into {folder}", err=True)


COMMANDS = (fetch, sample_data)
