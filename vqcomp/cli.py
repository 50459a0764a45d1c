"""The command line: each verb parses, calls one function, prints."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import api, choice
from .archive.reader import Archive
from .data import hub
from .data.segments import Grid
from .data.synthetic import write_samples, write_synthetic
from .runtime import archive as format
from .runtime.errors import VqcompError
from .runtime.main import default_jobs, report_loss, restore, terminate
from .training.memory import is_out_of_memory
from .training.presets import PRESETS
from .version import __version__
from .world.protocol import Score

if TYPE_CHECKING:
    from .training.trainer import Moment

EXAMPLES = """
\b
Examples:
  vqcomp sample-data samples/
  vqcomp compress samples/ samples.zip
  vqcomp decompress samples.zip -o restored/
  vqcomp evaluate samples.zip samples/

Exit codes: 0 done, 1 error, 2 wrong usage, 3 damaged archive, 130 interrupted.
"""

Function = Callable[..., Any]


class Bar:
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


def options(*names: str) -> Callable[[Function], Function]:
    """Decorator that adds options which several verbs share."""
    table = {
        "device": click.option(
            "--device", default="auto", show_default=True, metavar="DEVICE", callback=_check_device,
            help="auto, numpy, cpu, cuda or cuda:N.",
        ),
        "batch_size": click.option(
            "--batch-size", type=click.IntRange(1), default=api.BATCH_SIZE, show_default=True, metavar="N",
            help="Segments computed together; memory grows with it, bytes do not change.",
        ),
        "threads": click.option("-T", "--threads", type=click.IntRange(1), metavar="N", help="Threads to use."),
        "jobs": click.option(
            "-j", "--jobs", type=click.IntRange(1), default=default_jobs, metavar="N",
            help="Processes; each learns from, and codes, 8 segments at a time.  [default: half the CPUs]",
        ),
        "grid": click.option(
            "--grid", callback=_parse_grid, metavar="HxW", help="Grid of arrays (T, H*W); known for 128 tokens: 8x16."
        ),
        "force": click.option("-f", "--force", is_flag=True, help="Overwrite what exists."),
        "json": click.option("--json", "as_json", is_flag=True, help="Print one JSON object, be it {\"error\": ...}."),
        "quiet": click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors and what was asked for."),
        "verbose": click.option("-v", "--verbose", is_flag=True, help="Say what is chosen, and why."),
    }  # fmt: skip

    def add(function: Function) -> Function:
        for name in reversed(names):
            function = table[name](function)
        return function

    return add


def _check_device(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"auto|numpy|cpu|cuda(:\d+)?", value):
        raise click.BadParameter(f"expected auto, numpy, cpu, cuda or cuda:N, found {value!r}")
    return value


def _parse_grid(context: click.Context, parameter: click.Parameter, value: str | None) -> Grid | None:
    if value is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", value)
    if not match:
        raise click.BadParameter(f"expected HEIGHTxWIDTH such as 8x16, found {value!r}")
    return int(match[1]), int(match[2])


def _parse_time(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", value)
    if not match or not float(match[1]):
        raise click.BadParameter(f"expected a time such as 90s, 20m or 2h, found {value!r}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXAMPLES)
@click.version_option(__version__, prog_name="vqcomp", message="%(prog)s %(version)s")
def cli() -> None:
    """Lossless compression of video tokens into self-contained zips."""


@cli.command()
@click.argument("data", nargs=-1, required=True)
@click.argument("out")
@click.option(
    "--model", default="auto", show_default=True, metavar="NAME|PATH",
    help="A shipped model, the path of a .vqm or its address on the hub (hf://OWNER/NAME/FILE), none (learn while "
    "coding), or auto (whatever makes the zip smallest).",
)  # fmt: skip
@click.option(
    "--train", callback=_parse_time, metavar="TIME",
    help="With --model auto: train a network on DATA for so long (90s, 20m, 2h), as one more to choose from.",
)  # fmt: skip
@click.option(
    "--adapt/--no-adapt", default=True, show_default=True,
    help="Learn while coding on top of a model, too: smaller, but slower than the model alone.",
)  # fmt: skip
@click.option("--no-verify", is_flag=True, help="Do not decode and compare what was written.")
@click.option("--skip-bad", is_flag=True, help="Leave out what cannot be read, list it, and do the rest.")
@click.option("--keep-all", is_flag=True, help="Keep byte for byte what is no tokens, too: files, members of shards.")
@options("device", "batch_size", "threads", "jobs", "grid", "force", "json", "quiet", "verbose")
def compress(
    data: tuple[str, ...], out: str, model: str, train: float | None, adapt: bool, no_verify: bool, skip_bad: bool,
    keep_all: bool, device: str, batch_size: int, threads: int | None, jobs: int, grid: Grid | None, force: bool,
    as_json: bool, quiet: bool, verbose: bool,
) -> None:  # fmt: skip
    """Compress DATA into the zip OUT.

    DATA is a .npy file, a shard of commaVQ (.tar.gz, or an older .zip), a folder of these, a folder of 1X's world-model
    data, several of these, or an address on the hub (hf://datasets/OWNER/NAME/FILE). Arrays are (T, H, W) or (T, H*W),
    of integers in 0..65535. The zip holds all that it takes to restore them.
    """

    def report(line: str) -> None:
        if verbose or line.startswith("skipped"):
            click.echo(line, err=True)

    summary = api.compress(
        data, out, model=model, train=train, adapt=adapt, device=device, batch_size=batch_size, threads=threads,
        jobs=jobs, grid=grid, force=force, verify=not no_verify, skip_bad=skip_bad, keep_all=keep_all,
        progress=Bar(quiet), report=report,
    )  # fmt: skip
    if summary.left_out and not quiet and not verbose:
        left_out = _count(summary.left_out, "file")
        click.echo(f"note: left out, no tokens: {left_out} (-v names them, --keep-all keeps them)", err=True)
    _print_summary(summary, as_json, quiet)


@cli.command()
@click.argument("archive")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("-o", "--output", default="decompressed", show_default=True, metavar="DIR", help="Folder to write into.")
@click.option("--only", multiple=True, metavar="NAME", help="Restore this file or segment alone (may be repeated).")
@options("device", "batch_size", "threads", "jobs", "force", "quiet", "verbose")
def decompress(
    archive: str, names: tuple[str, ...], output: str, only: tuple[str, ...], device: str, batch_size: int,
    threads: int | None, jobs: int, force: bool, quiet: bool, verbose: bool,
) -> int:  # fmt: skip
    """Restore the files in ARCHIVE, or those named.

    ARCHIVE is a zip or the folder it was unpacked into. Where segments are damaged, the others are restored still.
    """
    chosen = {*only, *names} or None
    with Archive(archive, device=device, threads=threads, jobs=jobs) as opened:
        lost = restore(opened, Path(output), chosen, force=force, batch_size=batch_size, progress=Bar(quiet))
        restored = [n for n in opened.outputs(chosen) if n not in lost]
        noun = "file" if opened.manifest.extras else "segment"
    if verbose:
        for name in restored:
            click.echo(name, err=True)
    if lost:
        click.echo(f"error: {report_loss(lost, len(lost) + len(restored))}", err=True)
    if not quiet:
        click.echo(f"restored {_count(len(restored), noun)} into {output}", err=True)
    return 3 if lost else 0


@cli.command()
@click.argument("archive")
@options("device", "batch_size", "threads", "jobs", "json", "quiet")
def test(
    archive: str, device: str, batch_size: int, threads: int | None, jobs: int, as_json: bool, quiet: bool
) -> None:
    """Decode all of ARCHIVE and check every checksum; write nothing."""
    summary = api.check(archive, device=device, batch_size=batch_size, threads=threads, jobs=jobs, progress=Bar(quiet))
    if as_json:
        click.echo(json.dumps(asdict(summary)))
    elif not quiet:
        click.echo(f"{archive}: {_count(summary.segments, 'segment')}, {_count(summary.tokens, 'token')}: all is well")


@cli.command("list")
@click.argument("archive")
@options("json")
def list_(archive: str, as_json: bool) -> None:
    """List the segments in ARCHIVE; runs no model.

    The bytes of segments that share a stream are their part of it by their number of tokens.
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
        coded = f"{row['bytes']:12,}  {row['rate']:7.3f}  {row['codec']}"
        click.echo(f"{row['name']:{width}}  {row['dtype']:5}  {shape:>16}  {coded}")
    for file in table["files"]:
        click.echo(f"{file['name']:{width}}  {'':5}  {'':>16}  {file['bytes']:12,}  {file['rate']:7.3f}  xz")
    click.echo(f"format {table['format']}, written by vqcomp {table['vqcomp']}")
    model = table["model"]
    click.echo(f"model {model['name'] or 'of its own'}, sha256 {model['sha256']}" if model else "model none")
    sizes = ", ".join(f"{key} {table[key + '_bytes']:,}" for key in ("payload", "weights", "runtime", "files"))
    click.echo(f"{_count(len(table['segments']), 'segment')}, {_count(table['tokens'], 'token')}")
    click.echo(
        f"{table['raw_bytes']:,} bytes raw, {table['zip_bytes']:,} bytes of zip ({sizes}): rate {table['rate']:.4f}"
    )


def describe(archive: Archive) -> dict[str, Any]:
    """What `list --json` prints."""
    manifest, segments = archive.manifest, []
    for segment in manifest.segments:
        group = manifest.groups[segment.group]
        together = sum(manifest.segments[i].tokens for i in group.segments)
        spec = manifest.specs[group.spec]
        raw = segment.tokens * (spec.vocabulary - 1).bit_length() / 8
        share = group.size * segment.tokens / together
        segments.append(
            {
                "name": segment.name,
                "dtype": segment.dtype.str,
                "shape": list(segment.shape),
                "codec": manifest.codecs[group.spec],
                "vocabulary": spec.vocabulary,
                "bytes": round(share),
                "rate": raw / share if share else 0.0,
                "group": segment.group,
            }
        )
    summary = asdict(api.summarize(archive, 0.0))
    for key in ("seconds", "tokens_per_second", "segments", "skipped", "left_out"):
        del summary[key]
    model = None
    if manifest.model:
        size, sha256 = manifest.model
        model = {"name": choice.model_name(sha256), "bytes": size, "sha256": sha256}
    files = [{"name": f.name, "size": f.size, "bytes": f.stored, "rate": f.size / f.stored} for f in archive.kept]
    head = {"format": format.FORMAT, "vqcomp": manifest.version, "model": model}
    return {**head, **summary, "segments": segments, "files": files}


@cli.command()
@click.argument("paths", nargs=-1, required=True, metavar="ARCHIVE DATA...")
@click.option(
    "--protocol", type=click.Choice(["1x"]), help="Score --model on one of 1X's folders: evaluate ... FOLDER."
)
@click.option("--model", metavar="NAME|PATH", help="The model that --protocol scores.")
@click.option("--max-windows", type=click.IntRange(1), metavar="N", help="Score the first N windows only.")
@options("device", "batch_size", "threads", "jobs", "grid", "json", "quiet")
def evaluate(
    paths: tuple[str, ...], protocol: str | None, model: str | None, max_windows: int | None, device: str,
    batch_size: int, threads: int | None, jobs: int, grid: Grid | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Decode ARCHIVE, compare it with DATA token by token, and print the compression rate.

    With --protocol 1x, score a model by the metric of 1X's challenge instead; there is no ARCHIVE then.
    """
    if protocol:
        if len(paths) != 1 or not model:
            raise click.UsageError("--protocol 1x takes --model MODEL and one FOLDER")
        _print_scores(
            api.evaluate_1x(
                model, paths[0], batch_size=batch_size, max_windows=max_windows, device=device, threads=threads
            ),
            as_json,
        )
        return
    if len(paths) < 2:
        raise click.UsageError("Missing argument 'DATA'.")
    summary = api.evaluate(
        paths[0], paths[1:], device=device, batch_size=batch_size, threads=threads, jobs=jobs, grid=grid,
        progress=Bar(quiet),
    )  # fmt: skip
    click.echo(json.dumps(asdict(summary)) if as_json else f"Compression rate: {summary.rate:.4f}")


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
                f"{score.seconds_per_frame:.4f} s/frame ({_count(score.windows, 'window')})"
            )


@cli.command()
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


@cli.command("sample-data")
@click.argument("folder", metavar="DIR")
@click.option("--segments", type=click.IntRange(1, 1000), default=3, show_default=True, metavar="N")
@click.option("--frames", type=click.IntRange(1, 100_000), default=300, show_default=True, metavar="N")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N")
@click.option(
    "--layout", type=click.Choice(["npy", "1x", "1x-v2"]), default="npy", show_default=True,
    help="commaVQ's, or 1X's of v1.1 or v2.0.",
)  # fmt: skip
@options("force", "quiet")
def sample_data(folder: str, segments: int, frames: int, seed: int, layout: str, force: bool, quiet: bool) -> None:
    """Write synthetic segments into DIR, to try things out with; their rates say nothing about real video."""
    if layout == "npy":
        write_samples(Path(folder), segments, frames, seed, force=force)
    else:
        version = "v1.1" if layout == "1x" else "v2.0"
        write_synthetic(Path(folder), segments * frames, segments, seed, version, force=force)
    if not quiet:
        click.echo(f"wrote {_count(segments, 'synthetic segment')} into {folder}", err=True)


def _parse_settings(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    for value in values:
        if "=" not in value:
            raise click.BadParameter(f"expected FIELD=VALUE such as dropout=0.1, found {value!r}")
    return dict(value.split("=", 1) for value in values)


_PRESETS = "\b\nPresets:\n" + "\n".join(f"  {name:6} {preset.about}" for name, preset in PRESETS.items())


@cli.command(epilog=_PRESETS)
@click.argument("data", nargs=-1, required=True)
@click.option("-o", "--output", required=True, metavar="MODEL.vqm", help="File to write.")
@click.option("--preset", metavar="NAME", help="Network and recipe, see below  [default: mini, or that of --init]")
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Optimiser steps.")
@click.option("--time", callback=_parse_time, metavar="TIME", help="Train for so long (90s, 20m, 2h) instead.")
@click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Windows at a time.")
@click.option("--accumulate", type=click.IntRange(1), metavar="N", help="So many times that in a step.")
@click.option(
    "--held-out", type=click.IntRange(0), metavar="N",
    help="Choose weights by the last N frames of each segment; of 20 segments or more, by those of some whole ones.",
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
    help="Any field of TrainConfig, such as dropout=0.1 (may be repeated).",
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


def _print_summary(summary: api.Summary, as_json: bool, quiet: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(summary)))
        return
    if quiet:
        return
    s = summary
    click.echo(
        f"{_count(s.segments, 'segment')}, {_count(s.tokens, 'token')}, "
        f"{s.seconds:.1f} s, {s.tokens_per_second:,.0f} tokens/s\n"
        f"raw      {s.raw_bytes:15,} bytes\n"
        f"zip      {s.zip_bytes:15,} bytes\n"
        f"  payload{s.payload_bytes:15,} bytes, {s.payload_bits_per_token:.4f} bits/token\n"
        f"  weights{s.weights_bytes:15,} bytes\n"
        f"  runtime{s.runtime_bytes:15,} bytes\n"
        + (f"  files  {s.files_bytes:15,} bytes\n" if s.files_bytes else "")
        + f"  rest   {s.rest_bytes:15,} bytes\n"
        f"Compression rate: {s.rate:.4f}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def main() -> None:
    """Run the command line and exit with its code."""
    # A name that the terminal's encoding lacks must not end a listing.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Asked to end, leave by an exception: temporary files are removed on the way out.
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) != signal.SIG_IGN:  # ignored under nohup, and so it shall be
            signal.signal(number, terminate)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    try:
        return cli.main(arguments, prog_name="vqcomp", standalone_mode=False, obj=arguments) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130
    except VqcompError as error:
        if "--json" in arguments:
            click.echo(json.dumps({"error": str(error)}))
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        click.echo("error: out of memory; try a smaller --batch-size", err=True)
        return 1
    except BrokenPipeError:
        # Whoever read our output has gone; Python must not complain when it flushes what is left.
        sys.stdout = None
        return 1
