"""compress, decompress, test, list, evaluate."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import click

from .. import api, model_files
from ..archive.reader import Archive
from ..archive.summary import Summary, summarize
from ..choice import LEVEL, LEVELS
from ..data.segments import Grid
from ..external_models import TokenOptions
from ..runtime import layout
from ..runtime.adapt import GROUP_LIMIT
from ..runtime.compute import Compute
from ..runtime.kinds import TOKEN, TOKEN_MIXED
from ..runtime.restore import report_loss
from ..runtime.token_external import parse_external
from ..world.decoders import load_decoder
from ..world.protocol import Score
from .options import Function, compute_options, count, decode_options, options, parse_time, token_options
from .progress import Bar

SKIPPED = 4
"""Exit code where --skip-bad left something out."""


def _add_levels(function: Function) -> Function:
    for number in reversed(LEVELS):
        function = click.option(f"-{number}", "level", flag_value=number, type=int, hidden=True)(function)
    return click.option(
        "--level", "level", type=click.IntRange(1, len(LEVELS)), default=LEVEL, show_default=True, metavar="N",
        help="Or -1, fast (learn while coding, weigh no model), to -9, small (weigh all, larger groups).",
    )(function)  # fmt: skip


@click.command()
@click.argument("paths", nargs=-1, metavar="DATA... OUT")
@click.option(
    "--model", default="auto", show_default=True, metavar="NAME|PATH",
    help="A shipped model, the path of a .vqm or its address on the hub (hf://OWNER/NAME/FILE), none (learn while "
    "coding), or auto (whatever makes the zip smallest). Or an external network, which the zip names and does not "
    "carry: a folder with the checkpoint of a GPT-2, or hf://OWNER/NAME.",
)  # fmt: skip
@click.option(
    "--train", callback=parse_time, metavar="TIME",
    help="With --model auto: train a network on DATA for so long (90s, 20m, 2h), as one more to choose from.",
)  # fmt: skip
@click.option(
    "--adapt/--no-adapt", default=True, show_default=True,
    help="Learn while coding on top of a model, too: smaller, but slower than the model alone.",
)  # fmt: skip
@_add_levels
@click.option(
    "--group-size", type=click.IntRange(1, GROUP_LIMIT), metavar="N",
    help=f"Segments that learn together, 1 to {GROUP_LIMIT}: more make the zip smaller, but to read one segment takes "
    "decoding its group.  [default: the level's]",
)  # fmt: skip
@click.option("--no-decoder", is_flag=True, help="Leave the decoder out: then it takes vqcomp to read the zip.")
@click.option("--no-verify", is_flag=True, help="Do not decode and compare what was written.")
@click.option("--skip-bad", is_flag=True, help="Leave out what cannot be read, list it, and do the rest.")
@click.option("--keep-all", is_flag=True, help="Keep byte for byte what is no tokens, too: files, members of shards.")
@click.option("--resume", is_flag=True, help="Go on from OUT.partial, which an interrupted run of it left; or begin.")
@compute_options
@token_options
@options("cluster", "grid", "force", "json", "quiet", "verbose")
def compress(
    paths: tuple[str, ...], model: str, train: float | None, adapt: bool, level: int, group_size: int | None,
    no_decoder: bool, no_verify: bool, skip_bad: bool, keep_all: bool, resume: bool, compute: Compute,
    token_options: TokenOptions | None, cluster: str | None, grid: Grid | None, force: bool, as_json: bool,
    quiet: bool, verbose: bool,
) -> int:  # fmt: skip
    """Compress DATA into the zip OUT; "-" is standard output.

    DATA is a .npy file, a shard of commaVQ (.tar.gz, or an older .zip), a folder of these, a folder of 1X's world-model
    data, an archive of vqcomp's, several of these, or an address on the hub (hf://datasets/OWNER/NAME/FILE). Arrays are
    (T, H, W) or (T, H*W), of integers in 0..65535. The zip holds all that it takes to restore them.
    """

    if len(paths) < 2:
        missing = "OUT, the name of the zip to write" if paths else "DATA and OUT"
        raise click.UsageError(f"missing {missing}: vqcomp compress DATA... OUT.zip")
    *data, out = paths
    to_stdout = out == "-"
    if to_stdout and sys.stdout.isatty():
        raise click.UsageError("a zip is not written to a terminal; redirect it, or give a name")

    def report(line: str) -> None:
        if verbose or line.startswith(("note", "skipped")):
            click.echo(line, err=True)

    with tempfile.TemporaryDirectory() if to_stdout else nullcontext("") as folder:
        path = os.path.join(folder, "out.zip") if to_stdout else out
        summary = api.compress(
            data, path, model=model, train=train, adapt=adapt, level=level, group_size=group_size,
            decoder=not no_decoder, grid=grid, force=force, verify=not no_verify, skip_bad=skip_bad, keep_all=keep_all,
            resume=resume, cluster=cluster, token_options=token_options, compute=compute, progress=Bar(quiet),
            report=report,
        )  # fmt: skip
        if to_stdout:
            with open(path, "rb") as handle:
                shutil.copyfileobj(handle, sys.stdout.buffer)
    if summary.left_out and not quiet and not verbose:
        left_out = count(summary.left_out, "file")
        click.echo(f"note: left out, no tokens: {left_out} (-v names them, --keep-all keeps them)", err=True)
    if summary.runtime_bytes > summary.zip_bytes / 2 and not quiet:
        share = f"{summary.runtime_bytes:,} of {summary.zip_bytes:,} bytes"
        click.echo(f"note: the decoder outweighs the data, {share}; --no-decoder leaves it out", err=True)
    elif summary.weights_bytes > summary.zip_bytes / 2 and summary.rate < 1 and not quiet:
        share = f"{summary.weights_bytes:,} of {summary.zip_bytes:,} bytes"
        click.echo(f"note: the model outweighs the data, {share}; --model auto takes one only where it pays", err=True)
    _print_summary(summary, as_json, quiet, to_stdout)
    return SKIPPED if summary.skipped else 0


@click.command()
@click.argument("archive")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("-o", "--output", default="decompressed", show_default=True, metavar="DIR", help="Folder to write into.")
@click.option("--only", multiple=True, metavar="NAME", help="Restore this file or segment alone (may be repeated).")
@decode_options
@options("cluster", "force", "quiet", "verbose")
def decompress(
    archive: str, names: tuple[str, ...], output: str, only: tuple[str, ...], compute: Compute, cluster: str | None,
    force: bool, quiet: bool, verbose: bool,
) -> int:  # fmt: skip
    """Restore the files in ARCHIVE, or those named.

    ARCHIVE is a zip or the folder it was unpacked into. Where segments are damaged, the others are restored still.
    """
    chosen = {*only, *names} or None
    restored, lost = api.restore_files(
        archive, output, chosen, force=force, cluster=cluster, compute=compute, progress=Bar(quiet)
    )
    if verbose:
        for name in restored:
            click.echo(name, err=True)
    if lost:
        click.echo(f"error: {report_loss(lost, len(lost) + len(restored))}", err=True)
    if not quiet:
        click.echo(f"restored {count(len(restored), 'file')} into {output}", err=True)
    return 3 if lost else 0


@click.command()
@click.argument("archive")
@decode_options
@options("cluster", "json", "quiet")
def test(archive: str, compute: Compute, cluster: str | None, as_json: bool, quiet: bool) -> None:
    """Decode all of ARCHIVE and check every checksum; write nothing."""
    summary = api.check(archive, cluster=cluster, compute=compute, progress=Bar(quiet))
    if as_json:
        click.echo(json.dumps(asdict(summary)))
    elif not quiet:
        click.echo(f"{archive}: {count(summary.segments, 'segment')}, {count(summary.tokens, 'token')}: all is well")


@click.command("list")
@click.argument("archive")
@options("json")
def list_(archive: str, as_json: bool) -> None:
    """List the segments in ARCHIVE; runs no model.

    The bytes of segments that share a stream, marked by ~, are its bytes shared out by their numbers of tokens.
    """
    with Archive(archive) as opened:
        table = describe(opened)
    if as_json:
        click.echo(json.dumps(table))
        return
    width = max(len(row["name"]) for row in table["segments"] + table["files"])
    click.echo(f"{'name':{width}}  {'dtype':5}  {'shape':>16}  {'bytes':>12}  {'rate':>7}  codec")
    for row in table["segments"]:
        shape = "x".join(str(n) for n in row["shape"])
        size = f"{'~' if row['in_stream'] > 1 else ''}{row['bytes']:,}"
        coded = f"{size:>12}  {row['rate']:7.3f}  {row['codec']}"
        click.echo(f"{row['name']:{width}}  {row['dtype']:5}  {shape:>16}  {coded}")
    for file in table["files"]:
        click.echo(f"{file['name']:{width}}  {'':5}  {'':>16}  {file['bytes']:12,}  {file['rate']:7.3f}  xz")
    largest = max(row["in_stream"] for row in table["segments"])
    if largest > 1:
        click.echo(f"up to {largest} segments share a stream: to read one takes decoding all of them")
    click.echo(f"format {table['format']}, written by vqcomp {table['vqcomp']}")
    model = table["model"]
    click.echo(_model_line(model))
    sizes = ", ".join(f"{key} {table[key + '_bytes']:,}" for key in ("payload", "weights", "runtime", "files"))
    click.echo(f"{count(len(table['segments']), 'segment')}, {count(table['tokens'], 'token')}")
    click.echo(
        f"{table['raw_bytes']:,} bytes raw, {table['zip_bytes']:,} bytes of zip ({sizes}): rate {table['rate']:.4f}"
    )


def _model_line(model: dict[str, Any] | None) -> str:
    if not model:
        return "model none"
    if external := model.get("external"):
        origin = f", from {external['source']}" if external["source"] else ""
        return (
            f"model not in the zip: {external['file']}, {external['bytes']:,} bytes, sha256 {external['sha256']}"
            f"{origin}; "
            f"weights of {external['weight_bits']} bits, activations of {external['activation_bits']}, "
            f"{count(external['keep'], 'frame')} kept"
        )
    return f"model {model['name'] or 'of its own'}, sha256 {model['sha256']}"


def describe(archive: Archive) -> dict[str, Any]:
    """What `list --json` prints."""
    manifest, segments = archive.manifest, []
    for segment in manifest.segments:
        group = manifest.groups[segment.group]
        together = sum(manifest.segments[i].tokens for i in group.segments)
        spec, kind = manifest.coding_of(segment)
        raw = segment.tokens * spec.bits / 8
        share = group.size * segment.tokens / together
        segments.append(
            {
                "name": segment.name,
                "dtype": segment.dtype.str,
                "shape": list(segment.shape),
                "codec": kind.name,
                "vocabulary": spec.vocabulary,
                "bytes": round(share),
                "rate": raw / share if share else 0.0,
                "group": segment.group,
                "in_stream": len(group.segments),
            }
        )
    summary = asdict(summarize(archive, 0.0))
    for key in ("seconds", "tokens_per_second", "segments", "skipped", "left_out"):
        del summary[key]
    model = None
    if manifest.model:
        size, sha256 = manifest.model
        model = {"name": model_files.model_name(sha256), "bytes": size, "sha256": sha256}
        if any(kind in (TOKEN, TOKEN_MIXED) for _, kind in manifest.codings):
            model["external"] = json.loads(parse_external(archive.read(layout.MODEL, size)).to_bytes())
    files = [{"name": f.name, "size": f.size, "bytes": f.stored, "rate": f.size / f.stored} for f in archive.kept]
    head = {"format": layout.FORMAT, "vqcomp": manifest.version, "model": model}
    return {**head, **summary, "segments": segments, "files": files}


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="ARCHIVE DATA...")
@click.option(
    "--protocol", type=click.Choice(["1x"]), help="Score --model on one of 1X's folders, or an archive of one."
)
@click.option(
    "--model",
    metavar="NAME|PATH",
    help="The model that --protocol scores; or where the network lies that ARCHIVE names.",
)
@click.option("--skip-bad", is_flag=True, help="Leave out what cannot be read, list it, and compare the rest.")
@click.option("--max-windows", type=click.IntRange(1), metavar="N", help="Score the first N windows only.")
@click.option(
    "--steps", type=click.IntRange(1), default=1, show_default=True, metavar="M",
    help="Generate frames in M steps (MaskGIT), by a model trained with --set within_frame=true.",
)  # fmt: skip
@click.option(
    "--decoder", metavar="FILE|hf://...", help="With --protocol: render frames by it, as `render` does, for LPIPS."
)
@compute_options
@options("cluster", "grid", "json", "quiet")
def evaluate(
    paths: tuple[str, ...], protocol: str | None, model: str | None, skip_bad: bool, max_windows: int | None,
    steps: int, decoder: str | None, compute: Compute, cluster: str | None, grid: Grid | None, as_json: bool,
    quiet: bool,
) -> int:  # fmt: skip
    """Decode ARCHIVE, compare it with DATA token by token, and print the compression rate.

    With --protocol 1x, score a model by the metric of 1X's challenge instead, on one of its folders or an archive
    of one.
    """
    if protocol:
        if len(paths) != 1 or not model:
            raise click.UsageError("--protocol 1x takes --model MODEL and one FOLDER or ARCHIVE")
        if cluster:
            raise click.UsageError("--protocol 1x runs on this machine alone, without --cluster")
        decode = load_decoder(decoder, compute).decode if decoder else None
        scores = api.evaluate_1x(model, paths[0], max_windows=max_windows, steps=steps, decode=decode, compute=compute)
        _print_scores(scores, as_json)
        return 0
    if len(paths) < 2:
        raise click.UsageError("Missing argument 'DATA'.")
    summary = api.evaluate(
        paths[0], paths[1:], grid=grid, skip_bad=skip_bad, cluster=cluster, compute=compute._replace(model=model),
        progress=Bar(quiet),
    )  # fmt: skip
    click.echo(json.dumps(asdict(summary)) if as_json else f"Compression rate: {summary.rate:.4f}")
    return SKIPPED if summary.skipped else 0


def _print_scores(scores: Mapping[str, Score | None], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({name: score and asdict(score) for name, score in scores.items()}))
        return
    for name, score in scores.items():
        if score is None:
            click.echo(f"{name}: does not apply, the model predicts all tokens of a frame at once")
        else:
            click.echo(
                f"{name}: cross-entropy {score.cross_entropy:.4f} nats, accuracy {score.accuracy:.4f}, "
                f"{score.seconds_per_frame:.4f} s/frame"
                + (f", LPIPS {score.lpips:.4f}" if score.lpips is not None else "")
                + f" ({count(score.windows, 'window')})"
            )


def _print_summary(summary: Summary, as_json: bool, quiet: bool, to_stderr: bool = False) -> None:
    if as_json:
        click.echo(json.dumps(asdict(summary)), err=to_stderr)
        return
    if quiet:
        return
    s = summary
    click.echo(
        f"{count(s.segments, 'segment')}, {count(s.tokens, 'token')}, "
        f"{s.seconds:.1f} s, {s.tokens_per_second:,.0f} tokens/s\n"
        f"raw      {s.raw_bytes:15,} bytes\n"
        f"zip      {s.zip_bytes:15,} bytes\n"
        f"  payload{s.payload_bytes:15,} bytes, {s.payload_bits_per_token:.4f} bits/token\n"
        f"  weights{s.weights_bytes:15,} bytes\n"
        f"  runtime{s.runtime_bytes:15,} bytes\n"
        + (f"  files  {s.files_bytes:15,} bytes\n" if s.files_bytes else "")
        + f"  rest   {s.rest_bytes:15,} bytes\n"
        f"Compression rate: {s.rate:.4f}",
        err=to_stderr,
    )


COMMANDS = (compress, decompress, test, list_, evaluate)
