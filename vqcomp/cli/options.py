"""Options that several verbs share, and what their values mean."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from ..data.segments import Grid
from ..external_models import TokenOptions
from ..runtime.compute import Compute

Function = Callable[..., Any]


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 segment, 2 segments."""
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def parse_grid(context: click.Context, parameter: click.Parameter, value: str | None) -> Grid | None:
    if value is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", value)
    if not match:
        raise click.BadParameter(f"expected HEIGHTxWIDTH such as 8x16, found {value}")
    return int(match[1]), int(match[2])


def parse_time(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Seconds."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", value)
    if not match or not float(match[1]):
        raise click.BadParameter(f"expected a time such as 90s, 20m or 2h, found {value}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def parse_precision(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,2}),(\d{1,2})", value)
    if not match:
        raise click.BadParameter(f"expected bits of weights and of activations such as 14,15, found {value}")
    return int(match[1]), int(match[2])


def _check_device(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"auto|numpy|cpu|cuda(:\d+)?", value):
        raise click.BadParameter(f"expected auto, numpy, cpu, cuda or cuda:N, found {value}")
    return value


def _say_more(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    """Print what the log says of choices, too."""
    if value:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("vqcomp").setLevel(logging.INFO)
    return value


_DEFAULT = Compute()
_OPTIONS = {
    "device": click.option(
        "--device",
        default=_DEFAULT.device,
        show_default=True,
        metavar="DEVICE",
        callback=_check_device,
        help="auto, numpy, cpu, cuda or cuda:N.",
    ),
    "batch_size": click.option(
        "--batch-size",
        type=click.IntRange(1),
        default=_DEFAULT.batch_size,
        show_default=True,
        metavar="N",
        help="Segments computed together; memory grows with it, bytes do not change.",
    ),
    "threads": click.option("-T", "--threads", type=click.IntRange(1), metavar="N", help="Threads to use."),
    "jobs": click.option(
        "-j",
        "--jobs",
        type=click.IntRange(1),
        metavar="N",
        help="Processes; each learns from, and codes, a group of segments at a time.  [default: as many as there are "
        "CPUs, half as many with a network]",
    ),
    "external": click.option(
        "--model",
        "external",
        metavar="DIR",
        help="Where the network lies that the archive names and does not carry, if it is such an archive.",
    ),
    "precision": click.option(
        "--precision",
        callback=parse_precision,
        metavar="W,A",
        help="Of an external network: bits of weights (7 or 14) and of activations (8 or 15).  [default: 14,15]",
    ),
    "keep_frames": click.option(
        "--keep-frames",
        type=click.IntRange(0),
        metavar="N",
        help="Of an external network: frames that it goes on with when its window is full: more take time, fewer cost "
        "rate.  [default: half of them]",
    ),
    "cluster": click.option(
        "--cluster",
        metavar="ADDRESS",
        help="Code on a cluster of Ray's: auto, local, HOST:PORT or ray://HOST:PORT; see docs/cluster.md.",
    ),
    "grid": click.option(
        "--grid", callback=parse_grid, metavar="HxW", help="Grid of arrays (T, H*W); known for 128 tokens: 8x16."
    ),
    "force": click.option("-f", "--force", is_flag=True, help="Overwrite what exists."),
    "json": click.option("--json", "as_json", is_flag=True, help='Print one JSON object, be it {"error": ...}.'),
    "quiet": click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors and what was asked for."),
    "verbose": click.option("-v", "--verbose", is_flag=True, callback=_say_more, help="Say what is chosen, and why."),
}


def options(*names: str) -> Callable[[Function], Function]:
    """Decorator that adds options which several verbs share."""

    def add(function: Function) -> Function:
        for name in reversed(names):
            function = _OPTIONS[name](function)
        return function

    return add


def token_options(function: Function) -> Function:
    """Decorator that adds the options of external networks, which the verb gets as its argument `token_options`."""

    @wraps(function)
    def call(*args: Any, precision: tuple[int, int] | None, keep_frames: int | None, **more: Any) -> Any:
        given = precision is not None or keep_frames is not None
        return function(*args, token_options=TokenOptions(precision, keep_frames) if given else None, **more)

    return options("precision", "keep_frames")(call)


def compute_options(function: Function) -> Function:
    """Decorator that adds the options of a `Compute`, which the verb gets as its argument `compute`."""

    @wraps(function)
    def call(*args: Any, device: str, threads: int | None, jobs: int | None, batch_size: int, **more: Any) -> Any:
        return function(*args, compute=Compute(device, threads, jobs, batch_size), **more)

    return options("device", "batch_size", "threads", "jobs")(call)


def decode_options(function: Function) -> Function:
    """As `compute_options`, of verbs that decode archives: these may name a network that lies elsewhere."""

    @wraps(function)
    def call(*args: Any, compute: Compute, external: str | None, **more: Any) -> Any:
        return function(*args, compute=compute._replace(model=external), **more)

    return options("external")(compute_options(call))
