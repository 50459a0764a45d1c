"""compress, decompress, check, evaluate, open: what the commands do, as functions."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from . import choice, container
from .reading import Archive
from .runtime import archive as format
from .runtime.codec import Codec, make_codec
from .runtime.engine import Engine
from .runtime.errors import DamageError, DependencyError, InputError
from .runtime.exact import make_ops
from .runtime.gpt import self_test
from .runtime.main import Progress, Reporter, replacing, report_loss, restore
from .runtime.spec import TokenSpec
from .runtime.weights import write_model
from .tokens import COMMAVQ, Data, Grid, Segment, find_segments, find_specs
from .version import __version__

BATCH_SIZE = 16
"""Segments computed together, and in memory at a time."""


@dataclass(frozen=True)
class Summary:
    """What a compression, or an evaluation, came to. Sizes in bytes.

    raw_bytes counts ceil(log2 vocabulary) bits per token (commaVQ: 10); rate is raw_bytes / zip_bytes. payload is the
    streams, weights the model's file, runtime what decodes (compressed). seconds is the time of everything, the check
    of what was written included; tokens_per_second is tokens / seconds.
    """

    segments: int
    tokens: int
    raw_bytes: int
    zip_bytes: int
    payload_bytes: int
    weights_bytes: int
    runtime_bytes: int
    rate: float
    payload_bits_per_token: float
    seconds: float
    tokens_per_second: float

    @property
    def rest_bytes(self) -> int:
        """The manifest and the zip's own headers."""
        return self.zip_bytes - self.payload_bytes - self.weights_bytes - self.runtime_bytes


def summarize(archive: Archive, seconds: float) -> Summary:
    """The sums of an open archive; `seconds` is how long the work on it took."""
    sizes, tokens = archive.sizes(), archive.tokens
    payload, raw = sizes[format.STREAMS], archive.raw_bytes
    return Summary(
        segments=len(archive),
        tokens=tokens,
        raw_bytes=raw,
        zip_bytes=sizes["total"],
        payload_bytes=payload,
        weights_bytes=sizes.get(format.MODEL, 0),
        runtime_bytes=sizes.get(format.BOOTSTRAP, 0) + sizes.get(format.RUNTIME, 0),
        rate=raw / sizes["total"],
        payload_bits_per_token=8 * payload / tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds if seconds else 0.0,
    )


def open_archive(path: str | os.PathLike[str], *, device: str = "auto", threads: int | None = None) -> Archive:
    """Open a zip, or the folder it was unpacked into: a mapping from segment names to arrays.

    Arrays are decoded when they are asked for; `Archive.decode` yields many, computed in batches. Use it in a `with`.
    Raises FormatError, DamageError, UnsafeNameError or InputError.
    """
    return Archive(path, device=device, threads=threads)


def compress(
    data: Data,
    out: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] = "auto",
    device: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    grid: Grid | None = None,
    force: bool = False,
    verify: bool = True,
    progress: Reporter | None = None,
    report: Callable[[str], None] | None = None,
) -> Summary:
    """Write `data` as one self-contained zip, and decode and compare what was written (unless verify=False).

    data: a .npy file, a folder of them at any depth, or a mapping from names to arrays; arrays of integers
    (T, H, W) or (T, H * W), ids in 0..65535. `grid` is (H, W) for the latter; (8, 16) is known for 128 tokens.
    model: "auto" (whatever makes the zip smallest), "none" (a model that learns as it codes), the name of a shipped
    model, or the path of a .vqm file; segments that it does not fit are coded as with "none".
    batch_size segments are in memory at a time. `report` gets lines about choices made.
    `out` appears at the end, whole, or not at all. Raises InputError, ModelError, PlatformError, DependencyError; and
    DamageError if what was written does not decode to `data`.
    """
    start = time.monotonic()
    out, batch = Path(out), BATCH_SIZE if batch_size is None else batch_size
    progress, report = progress or Progress(quiet=True), report or (lambda line: None)
    if batch < 1:
        raise InputError(f"batch size: expected at least 1, found {batch}")
    _check_output(out, force)
    models = choice.find_models(model)
    segments, skipped = find_segments(data, grid)
    if out.exists() and any(isinstance(s.source, Path) and out.samefile(s.source) for s in segments):
        raise InputError(f"{out}: the output would replace the input; choose another name")
    for name in skipped:
        report(f"left out, no .npy file: {name}")
    _check_disk(out, segments)
    try:
        by_spec = _sort(segments, [*(m.spec for m in models), COMMAVQ], progress)
        if os.fspath(model) == "auto":
            chosen, estimates = choice.choose(models, by_spec, device=device, threads=threads, progress=progress)
            for line in _table(estimates):
                report(line)
            if models and not estimates:
                report("no shipped model fits these tokens, or they are too few to be worth its weights")
        else:
            chosen = models[0] if models else None
            if chosen:
                choice.require_fit(chosen, by_spec)
        report(f"model: {chosen.name if chosen else 'none'}")
        codecs = {
            spec: make_codec(
                spec, chosen.data if chosen and chosen.spec == spec else None, device=device, threads=threads
            )
            for spec in by_spec
        }
        with replacing(out) as temporary:
            _write(temporary, by_spec, codecs, chosen.data if chosen else None, batch, progress)
            if verify:
                _verify(temporary, by_spec, batch, progress, device, threads)
            _check_output(out, force)
    finally:
        progress.end()
    with Archive(out) as archive:
        return summarize(archive, time.monotonic() - start)


def decompress(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] = "decompressed",
    only: Collection[str] | None = None,
    *,
    device: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Reporter | None = None,
) -> list[str]:
    """Restore the segments, or those named in `only`, as .npy files under the folder `out`; returns their names.

    Each is just what was compressed: name, dtype, shape and values. Raises InputError where a file exists already
    (unless force=True), and DamageError that names what was lost, after everything else has been written.
    """
    only = {only} if isinstance(only, str) else only
    with Archive(path, device=device, threads=threads) as archive:
        lost = restore(archive, Path(out), only, force=force, batch_size=batch_size or BATCH_SIZE, progress=progress)
        names = [s.name for s in archive.segments if only is None or s.name in only]
    if lost:
        raise DamageError(f"{path}: {report_loss(lost, len(names))}")
    return names


def check(
    path: str | os.PathLike[str],
    *,
    device: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    progress: Reporter | None = None,
) -> Summary:
    """Decode everything and check every checksum, writing nothing. Raises DamageError that names what is lost."""
    start = time.monotonic()
    with Archive(path, device=device, threads=threads) as archive:
        lost: dict[str, str] = {}
        for _ in _decoded(archive, batch_size or BATCH_SIZE, progress or Progress(quiet=True), "testing", lost):
            pass
        if lost:
            raise DamageError(f"{path}: {report_loss(lost, len(archive))}")
        archive.check_entries()
        return summarize(archive, time.monotonic() - start)


def evaluate(
    path: str | os.PathLike[str],
    data: Data,
    *,
    device: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    grid: Grid | None = None,
    progress: Reporter | None = None,
) -> Summary:
    """Decode and compare with `data` token by token. Raises InputError where they differ, DamageError on damage."""
    start = time.monotonic()
    progress = progress or Progress(quiet=True)
    with Archive(path, device=device, threads=threads) as archive:
        segments = {s.name: s for s in find_segments(data, grid)[0]}
        for here, there, names in (
            ("the archive", "the data", sorted(archive.keys() - segments.keys())),
            ("the data", "the archive", sorted(segments.keys() - archive.keys())),
        ):
            if names:
                raise InputError(
                    f"{path}: {len(names)} segments of {here} are not in {there}, the first is {names[0]!r}"
                )
        lost: dict[str, str] = {}
        for name, array in _decoded(archive, batch_size or BATCH_SIZE, progress, "evaluating", lost):
            if difference := _difference(array, segments[name].array()):
                raise InputError(f"{path}: segment {name!r} is not what {segments[name].label} holds: {difference}")
        if lost:
            raise DamageError(f"{path}: {report_loss(lost, len(archive))}")
        return summarize(archive, time.monotonic() - start)


@dataclass(frozen=True)
class Trained:
    """What a training came to: bytes of the .vqm, bits/token on the held-out frames, the step that was best."""

    size: int
    bits_per_token: float
    step: int


def train(
    data: Data,
    out: str | os.PathLike[str],
    settings: Mapping[str, int | float] | None = None,
    *,
    threads: int | None = None,
    grid: Grid | None = None,
    force: bool = False,
    report: Callable[[str], None] | None = None,
) -> Trained:
    """Train a FrameGPT on `data`, whose segments must share a grid, and write it as a .vqm file.

    `settings` are fields of train.TrainConfig. Raises InputError, ModelError, DependencyError (no torch).
    """
    out = Path(out)
    _check_output(out, force)
    try:
        import torch

        from .presets import small
        from .train import TrainConfig
        from .train import train as run
    except ImportError as error:
        raise DependencyError("training needs torch, which is not installed: pip install torch") from error
    if threads:
        torch.set_num_threads(threads)
    by_spec = _sort(find_segments(data, grid)[0], [COMMAVQ], Progress(quiet=True))
    if len(by_spec) > 1:
        raise InputError(f"{data}: expected segments of one grid and vocabulary, found {list(by_spec)}")
    ((spec, segments),) = by_spec.items()
    tokens = [segment.tokens_of(spec) for segment in segments]
    result = run(tokens, small(spec), TrainConfig(**settings or {}), progress=report)  # type: ignore[arg-type]
    config, tensors = result.model.export()
    with replacing(out) as temporary:
        size = temporary.write_bytes(
            write_model(config, tensors, self_test(Engine(config, tensors, make_ops("numpy"))))
        )
        _check_output(out, force)
    return Trained(size, result.bits_per_token, result.step)


def _check_output(out: Path, force: bool) -> None:
    if out.is_dir():
        raise InputError(f"{out}: expected the name of a zip to write, found a folder")
    if out.exists() and not force:
        raise InputError(f"{out}: exists already; -f overwrites it")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: no such folder; make it first")


def _check_disk(out: Path, segments: Sequence[Segment]) -> None:
    """Stop early where it cannot work out: 10 bits of a token hardly ever become fewer than 2."""
    least, free = sum(s.tokens for s in segments) // 4, shutil.disk_usage(out.parent).free
    if free < least:
        raise InputError(f"{out}: too little disk: at least {least:,} bytes are needed, {free:,} are free")


def _sort(
    segments: Sequence[Segment], known: Sequence[TokenSpec], progress: Reporter
) -> dict[TokenSpec, list[Segment]]:
    """Look through all values once, and sort segments by spec (in the order of their first segments)."""
    progress.begin("reading", len(segments), sum(s.tokens for s in segments))
    maxima = []
    for segment in segments:
        maxima.append(segment.maximum())
        progress.advance(1, segment.tokens)
    progress.end()
    by_spec: dict[TokenSpec, list[Segment]] = {}
    for segment, spec in zip(segments, find_specs(segments, maxima, known)):
        by_spec.setdefault(spec, []).append(segment)
    return by_spec


def _write(
    path: Path,
    by_spec: dict[TokenSpec, list[Segment]],
    codecs: dict[TokenSpec, Codec],
    model: bytes | None,
    batch_size: int,
    progress: Reporter,
) -> None:
    everything = [s for segments in by_spec.values() for s in segments]
    progress.begin("compressing", len(everything), sum(s.tokens for s in everything))
    specs = [container.CodedSpec(spec, codecs[spec].name) for spec in by_spec]
    bound = sum(s.tokens * len(spec.factors) for spec, segments in by_spec.items() for s in segments)
    with container.Writer(path, specs, model, bound, __version__) as writer:
        for index, (spec, segments) in enumerate(by_spec.items()):
            codec, size, factors = codecs[spec], codecs[spec].group_size, len(spec.factors)
            groups = [segments[i : i + size] for i in range(0, len(segments), size)]
            step = max(1, batch_size // size)
            for i in range(0, len(groups), step):
                batch = groups[i : i + step]
                tokens = [[segment.tokens_of(spec) for segment in group] for group in batch]
                streams = codec.encode(tokens, partial(_count, progress, factors))
                for group, arrays, stream in zip(batch, tokens, streams):
                    names, dtypes = [s.name for s in group], [s.dtype for s in group]
                    writer.add(index, names, dtypes, [s.shape for s in group], arrays, stream)
                    progress.advance(len(group), 0)
    progress.end()


def _count(progress: Reporter, factors: int, done: int) -> None:
    """Codecs count tokens times factors."""
    progress.advance(0, done // factors)


def _verify(
    path: Path,
    by_spec: dict[TokenSpec, list[Segment]],
    batch_size: int,
    progress: Reporter,
    device: str,
    threads: int | None,
) -> None:
    """Decode the file just written and compare every array with its source. Raises DamageError."""
    sources = {s.name: s for segments in by_spec.values() for s in segments}
    with Archive(path, device=device, threads=threads) as archive:
        if list(archive) != list(sources):
            raise DamageError("verification failed: the archive's names are not those of the data; please report this")
        for name, array in _decoded(archive, batch_size, progress, "verifying", None):
            if difference := _difference(array, sources[name].array()):
                raise DamageError(
                    f"verification failed: {sources[name].label} does not come back: {difference}; "
                    "either the file changed meanwhile, or this is a bug: please report it"
                )


def _decoded(
    archive: Archive, batch_size: int, progress: Reporter, stage: str, lost: dict[str, str] | None
) -> Iterator[tuple[str, np.ndarray]]:
    progress.begin(stage, len(archive), archive.tokens)
    try:
        for item in archive.decode(batch_size=batch_size, damaged=lost, progress=lambda n: progress.advance(0, n)):
            yield item
            progress.advance(1, 0)
    finally:
        progress.end()


def _difference(found: np.ndarray, expected: np.ndarray) -> str:
    """What differs between two arrays, or nothing."""
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return f"expected {expected.dtype} {expected.shape}, found {found.dtype} {found.shape}"
    wrong = np.argwhere(found != expected)
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        return (
            f"{len(wrong)} of {prod(found.shape)} tokens, the first at {at}: expected {expected[at]}, found {found[at]}"
        )
    return ""


def _table(estimates: Sequence[choice.Estimate]) -> Iterator[str]:
    if estimates:
        yield f"{'model':24}{'payload':>15}{'weights':>13}{'runtime':>10}{'zip, estimated':>18}"
    for e in estimates:
        yield f"{e.model:24}{e.payload:15,}{e.weights:13,}{e.runtime:10,}{e.total:18,}"
