"""bench."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..data.segments import Grid
from ..runtime.compute import Compute
from .options import compute_options, count, options
from .progress import Bar


@click.command()
@click.argument("data", nargs=-1, required=True)
@click.option("--all", "everything", is_flag=True, help="Measure on all of DATA, not on a sample.")
@click.option("--model", "models", multiple=True, metavar="NAME|PATH", help="A model besides those that ship.")
@click.option("--plot", metavar="OUT.png", help="Draw rate against speed (needs vqcomp[plot]).")
@compute_options
@options("grid", "json", "quiet")
def bench(
    data: tuple[str, ...], everything: bool, models: tuple[str, ...], plot: str | None, compute: Compute,
    grid: Grid | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Measure rates and speeds on DATA: zstd, lzma, zpaq where it is there, vqcomp without and with networks.

    DATA is what compress takes, archives included. The rate is that of all DATA, with the whole zip counted: decoder
    and weights come once. From a sample it is an estimate. Everything is decoded and compared.
    """
    from .. import bench as benchmark

    if plot:
        benchmark.require_matplotlib()
    chosen = benchmark.models_of(models)
    tokens = benchmark.load(data, grid, everything=everything, models=chosen, compute=compute)
    what = f"{count(len(tokens.segments), 'segment')}, {count(tokens.count, 'token')}"
    is_sample = tokens.share < 1
    if not quiet and is_sample:
        of = f"{count(tokens.all_segments, 'segment')}, {count(tokens.all_tokens, 'token')}"
        click.echo(f"a sample of {what}, out of {of}; --all measures on everything", err=True)
    if not as_json:
        rate = "rate, est." if is_sample else "rate"
        click.echo(f"{'method':44} {'bits/token':>10} {'zip bytes':>13} {rate:>10} {'encode/s':>11} {'decode/s':>11}")
    rows = []

    def report(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    for row in benchmark.measure(tokens, chosen, compute=compute, progress=Bar(quiet), report=report):
        rows.append(row)
        if not as_json:
            size = "" if row.zip_bytes is None else f"{row.zip_bytes:,}"
            speeds = (f"{row.tokens / max(s, 1e-9):11,.0f}" for s in (row.encode_seconds, row.decode_seconds))
            rate = f"{row.rate_of(tokens.share):10.4f}"
            click.echo(f"{row.method:44} {row.bits_per_token:10.4f} {size:>13} {rate} {' '.join(speeds)}")
    if plot:
        benchmark.plot(rows, tokens.share, Path(plot))
    if as_json:
        table = {
            "sample": is_sample,
            "segments": len(tokens.segments),
            "tokens": tokens.count,
            "all_segments": tokens.all_segments,
            "all_tokens": tokens.all_tokens,
            "rows": [row.as_table(tokens.share) for row in rows],
        }
        click.echo(json.dumps(table))


COMMANDS = (bench,)
