"""compress, decompress, check, evaluate, open: what the commands do, as functions."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from math import prod
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from . import choice
from .archive import writer as container
from .archive.reader import Archive
from .data.files import File
from .data.segments import Grid, SegmentSource
from .data.sources import Data, Found, find_segments, label, places
from .data.specs import COMMAVQ, find_specs
from .runtime import archive as format
from .runtime.codec import Codec, make_codec
from .runtime.errors import DamageError, DependencyError, InputError, ModelError
from .runtime.exact import load_torch
from .runtime.main import Progress, Reporter, replacing, report_loss, restore
from .runtime.spec import TokenSpec
from .version import __version__
from .world import protocol

if TYPE_CHECKING:
    from .training.fit import Trained
    from .training.trainer import Moment

BATCH_SIZE = 16
"""Segments computed together, and in memory at a time."""


@dataclass(frozen=True)
class Summary:
    """What a compression, or an evaluation, came to. Sizes in bytes.

    raw_bytes counts ceil(log2 vocabulary) bits per token (commaVQ: 10), and the files that are kept as they are; rate
    is raw_bytes / zip_bytes. payload is the streams, weights the model's file, runtime what decodes, files what else is
    kept (compressed). seconds is the time of everything, the check
    of what was written included; tokens_per_second is tokens / seconds.
    """

    segments: int
    tokens: int
    raw_bytes: int
    zip_bytes: int
    payload_bytes: int
    weights_bytes: int
    runtime_bytes: int
    files_bytes: int
    rate: float
    payload_bits_per_token: float
    seconds: float
    tokens_per_second: float
    skipped: int = 0
    """Pieces of the data that were bad and, with skip_bad, are not in the zip."""
    left_out: int = 0
    """Files, and members of shards, that hold no tokens and are not in the zip."""

    @property
    def rest_bytes(self) -> int:
        """The manifest and the zip's own headers."""
        return self.zip_bytes - self.payload_bytes - self.weights_bytes - self.runtime_bytes - self.files_bytes


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
        files_bytes=sizes.get(format.FILES, 0),
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
    train: float | None = None,
    adapt: bool = True,
    device: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    jobs: int = 1,
    grid: Grid | None = None,
    force: bool = False,
    verify: bool = True,
    skip_bad: bool = False,
    keep_all: bool = False,
    progress: Reporter | None = None,
    report: Callable[[str], None] | None = None,
) -> Summary:
    """Write `data` as one self-contained zip, and decode and compare what was written (unless verify=False).

    data: see `sources.find_segments`: a .npy file, a shard, a folder of them at any depth, a folder of 1X's, several of
    these, or a mapping from names to arrays; arrays of integers (T, H, W) or (T, H * W), ids in 0..65535. `grid` is
    (H, W) for the latter; (8, 16) is known for 128 tokens. skip_bad leaves out, and reports, what cannot be used.
    keep_all keeps what is no tokens, too, byte for byte: other files of folders, other members of shards.
    model: "auto" (whatever makes the zip smallest), "none" (a model that learns as it codes), the name of a shipped
    model, or the path of a .vqm file; segments that it does not fit are coded as with "none".
    train: with "auto", seconds in which a network is trained on these very data; it is one more to choose from.
    adapt: whether to learn while coding on top of a model, too; smaller, but slower than the model alone.
    batch_size segments are in memory at a time. jobs: processes that code groups side by side while learning; more than
    one need `if __name__ == "__main__":` in scripts. `report` gets lines about choices made.
    `out` appears at the end, whole, or not at all. Raises InputError, ModelError, PlatformError, DependencyError; and
    DamageError if what was written does not decode to `data`.
    """
    start = time.monotonic()
    out, batch = Path(out), BATCH_SIZE if batch_size is None else batch_size
    progress, report = progress or Progress(quiet=True), report or (lambda line: None)
    if batch < 1:
        raise InputError(f"batch size: expected at least 1, found {batch}")
    if train is not None and os.fspath(model) != "auto":
        raise InputError(f"training here is for --model auto, which then chooses; found {os.fspath(model)!r}")
    _check_output(out, force)
    models = choice.find_models(model)
    hint = "--skip-bad (skip_bad=True) leaves it out and does the rest"
    found = find_segments(data, grid, skip_bad=skip_bad, keep_all=keep_all, hint=hint)
    sources = {s.source for s in found.segments if isinstance(s.source, Path)} | {f.path for f in found.files}
    if out.exists() and any(out.samefile(source) for source in sources):
        raise InputError(f"{out}: the output would replace the input; choose another name")
    _check_disk(out, found.segments)
    try:
        by_spec = _sort(found, [*(m.spec for m in models), COMMAVQ], progress)
        for line in found.omissions():
            report(line)
        if os.fspath(model) == "auto":
            chosen = _choose(models, by_spec, train, out.parent, adapt, device, threads, progress, report)
        else:
            chosen = models[0] if models else None
            if chosen:
                choice.require_fit(chosen, by_spec)
        report(f"model: {chosen.name if chosen else 'none'}")
        with replacing(out) as temporary:
            codecs = {
                spec: make_codec(
                    spec,
                    chosen.data if chosen and chosen.spec == spec else None,
                    adapt=adapt,
                    device=device,
                    threads=threads,
                    jobs=jobs,
                )
                for spec in by_spec
            }
            try:
                _write(temporary, by_spec, found.files, codecs, chosen.data if chosen else None, batch, jobs, progress)
            finally:
                for codec in codecs.values():
                    codec.close()
            if verify:
                _verify(temporary, by_spec, found.files, batch, progress, device, threads, jobs)
            _check_output(out, force)
    finally:
        progress.end()
    with Archive(out) as archive:
        summary = summarize(archive, time.monotonic() - start)
    return replace(summary, skipped=len(found.skipped), left_out=found.left_out_count)


def decompress(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] = "decompressed",
    only: Collection[str] | None = None,
    *,
    device: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    jobs: int = 1,
    force: bool = False,
    progress: Reporter | None = None,
) -> list[str]:
    """Restore the files, or those named in `only`, under the folder `out`; returns their names.

    Each is just what was compressed: arrays by name, dtype, shape and values, other files byte for byte. Raises
    InputError where a file exists already (unless force=True), and DamageError that names what was lost, after
    everything else has been written.
    """
    only = {only} if isinstance(only, str) else only
    with Archive(path, device=device, threads=threads, jobs=jobs) as archive:
        lost = restore(archive, Path(out), only, force=force, batch_size=batch_size or BATCH_SIZE, progress=progress)
        names = archive.outputs(only)
    if lost:
        raise DamageError(f"{path}: {report_loss(lost, len(names))}")
    return names


def check(
    path: str | os.PathLike[str],
    *,
    device: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    jobs: int = 1,
    progress: Reporter | None = None,
) -> Summary:
    """Decode everything and check every checksum, writing nothing. Raises DamageError that names what is lost."""
    start = time.monotonic()
    with Archive(path, device=device, threads=threads, jobs=jobs) as archive:
        lost: dict[str, str] = {}
        for _ in _decoded(archive, batch_size or BATCH_SIZE, progress or Progress(quiet=True), "testing", lost):
            pass
        for file in archive.kept:
            try:
                deque(archive.contents(file), 0)
            except DamageError as error:
                lost[file.name] = str(error)
        if lost:
            raise DamageError(f"{path}: {report_loss(lost, len(archive) + len(archive.kept))}")
        archive.check_entries()
        return summarize(archive, time.monotonic() - start)


def evaluate(
    path: str | os.PathLike[str],
    data: Data,
    *,
    device: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    jobs: int = 1,
    grid: Grid | None = None,
    progress: Reporter | None = None,
) -> Summary:
    """Decode and compare with `data` token by token, and other files byte by byte. jobs: as of `compress`.

    Raises InputError where they differ, DamageError on damage.
    """
    start = time.monotonic()
    progress = progress or Progress(quiet=True)
    with Archive(path, device=device, threads=threads, jobs=jobs) as archive:
        kept_names = {f.name for f in archive.kept}
        found = find_segments(data, grid, keep_all=bool(kept_names))
        segments = {s.name: s for s in found.segments}
        # Files that are no tokens were kept on request: only those of 1X's folders have to be in the archive.
        files = {f.name: f for f in found.files if f.beside or f.name in kept_names}
        for here, there, what, names in (
            ("the archive", "the data", "segments", archive.keys() - segments.keys()),
            ("the data", "the archive", "segments", segments.keys() - archive.keys()),
            ("the archive", "the data", "files", kept_names - files.keys()),
            ("the data", "the archive", "files", files.keys() - kept_names),
        ):
            if names:
                raise InputError(
                    f"{path}: {len(names)} {what} of {here} are not in {there}, the first is {min(names)!r}"
                )
        for kept in archive.kept:
            if not _same(archive.contents(kept), files[kept.name].pieces()):
                raise InputError(f"{path}: {kept.name!r} is not what {files[kept.name].label} holds")
        lost: dict[str, str] = {}
        for name, array in _decoded(archive, batch_size or BATCH_SIZE, progress, "evaluating", lost):
            if difference := _difference(array, segments[name].array()):
                raise InputError(f"{path}: segment {name!r} is not what {segments[name].label} holds: {difference}")
        if lost:
            raise DamageError(f"{path}: {report_loss(lost, len(archive))}")
        return summarize(archive, time.monotonic() - start)


def evaluate_1x(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    batch_size: int | None = None,
    max_windows: int | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> dict[str, protocol.Score | None]:
    """Score a model (a shipped one's name, or a .vqm) by 1X's metric on one of 1X's folders; see protocol.py.

    Scores by setting; None where a setting does not apply. Raises InputError, ModelError.
    """
    (place,) = places(folder)
    candidates = choice.find_models(model)
    if len(candidates) != 1:
        raise InputError(f"expected one model, found --model {os.fspath(model)}; give a name or a .vqm file")
    return protocol.evaluate(
        candidates[0].data, place, batch_size=batch_size or 4, max_windows=max_windows, device=device, threads=threads
    )


def train(
    data: Data,
    out: str | os.PathLike[str],
    settings: Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    init: str | os.PathLike[str] | None = None,
    resume: bool = False,
    device: str = "auto",
    threads: int | None = None,
    grid: Grid | None = None,
    force: bool = False,
    command: str = "",
    report: Callable[[str], None] | None = None,
    watch: Callable[[Moment], None] | None = None,
) -> Trained:
    """Train a FrameGPT on `data`, whose segments must share a grid, and write it as a .vqm file.

    Beside it come to lie a card (.md, which quotes `command`), a log (.csv) and a checkpoint (.ckpt), from which
    resume=True goes on. `settings` are fields of train.TrainConfig; preset: see presets.PRESETS, by default "mini" or
    what `init`, a shipped model or a .vqm to start from, is. `report` gets lines, `watch` the state after each step.
    Raises InputError, ModelError, DependencyError (no torch).
    """
    out = Path(out)
    _check_output(out, force)
    if out.suffix in (".ckpt", ".csv", ".md"):
        raise InputError(f"{out}: expected the name of a .vqm, its card and log get names like this")
    for suffix, what in ((".ckpt", "a training was begun; --resume goes on with it"), (".csv", ""), (".md", "")):
        if (beside := out.with_suffix(suffix)).exists() and not (force or resume):
            raise InputError(f"{beside}: {what or 'exists already'}; -f overwrites it")
    fit = _training(threads)
    starts = choice.find_models(init) if init is not None else []
    if len(starts) != (init is not None):
        raise InputError(f"expected one model to start from, found {init}; give a name or a .vqm file")
    by_spec = _sort(find_segments(data, grid), [*(m.spec for m in starts), COMMAVQ], Progress(quiet=True))
    if len(by_spec) > 1:
        raise InputError(f"{label(data)}: expected segments of one grid and vocabulary, found {list(by_spec)}")
    ((spec, segments),) = by_spec.items()
    return fit.fit(
        segments, spec, out, settings or {}, preset=preset, init=fit.Start(starts[0].name, starts[0].data) if starts
        else None, resume=resume, device=device, command=command, report=report, watch=watch,
    )  # fmt: skip


def _choose(
    models: Sequence[choice.Model],
    by_spec: Mapping[TokenSpec, Sequence[SegmentSource]],
    train: float | None,
    folder: Path,
    adapt: bool,
    device: str,
    threads: int | None,
    progress: Reporter,
    report: Callable[[str], None],
) -> choice.Model | None:
    """The model for "auto", or None for no network.

    One that was trained on the data for `train` seconds is weighed, too. It starts from the shipped model with the
    smallest estimate, unless the data pay for a much larger network.
    """
    weigh = partial(choice.choose, segments=by_spec, adapt=adapt, device=device, threads=threads, progress=progress)
    chosen, estimates = weigh(models)
    weighed = list(models)
    if train is not None:
        tokens = {spec: sum(s.tokens for s in segments) for spec, segments in by_spec.items()}
        spec = chosen.spec if chosen else max(tokens, key=lambda spec: tokens[spec])
        totals = {e.model: e.total for e in estimates}
        fitting = [m for m in models if m.spec == spec and m.name in totals]
        start = min(fitting, key=lambda m: totals[m.name], default=None)
        own = _train_own(by_spec[spec], spec, train, start, folder, device, threads, progress, report)
        mine, more = weigh(own)
        estimates += [e for e in more if e.model not in totals]
        weighed += own
        if mine and (not chosen or more[-1].total < totals[chosen.name]):
            chosen = mine
    for line in _table(estimates):
        report(line)
    for name in sorted({m.name for m in weighed if m.spec in by_spec} - {e.model for e in estimates}):
        report(f"{name} was not weighed: its weights alone take more than the raw tokens")
    if models and not any(m.spec in by_spec for m in models):
        report("no shipped model fits these tokens")
    return chosen


def _train_own(
    segments: Sequence[SegmentSource],
    spec: TokenSpec,
    seconds: float,
    start: choice.Model | None,
    folder: Path,
    device: str,
    threads: int | None,
    progress: Reporter,
    report: Callable[[str], None],
) -> list[choice.Model]:
    """A network that was trained on the data; none if that fails, which is no reason not to compress them."""
    fit = _training(threads)
    tokens, done = sum(s.tokens for s in segments), 0

    def watch(moment: Moment) -> None:
        nonlocal done
        progress.advance(0, int(moment.done * tokens) - done)
        done = int(moment.done * tokens)

    progress.begin("training", len(segments), tokens)
    try:
        data = fit.fit_to(
            segments, spec, seconds, start and fit.Start(start.name, start.data), folder,
            device="cpu" if device == "numpy" else device, report=report, watch=watch,
        )  # fmt: skip
    except (InputError, ModelError) as error:
        report(f"no network was trained on the data: {error}")
        return []
    finally:
        progress.end()
    return [choice.Model("trained on the data", data, spec)]


def _training(threads: int | None) -> ModuleType:
    """The module that trains; it imports torch. Raises DependencyError."""
    try:
        torch = load_torch()
    except DependencyError as error:
        raise DependencyError(f"training needs torch: {error}") from error
    from .training import fit

    if threads:
        torch.set_num_threads(threads)
    return fit


def _check_output(out: Path, force: bool) -> None:
    if out.is_dir():
        raise InputError(f"{out}: expected the name of a zip to write, found a folder")
    if out.exists() and not force:
        raise InputError(f"{out}: exists already; -f overwrites it")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: no such folder; make it first")


def _check_disk(out: Path, segments: Sequence[SegmentSource]) -> None:
    """Stop early where it cannot work out: 10 bits of a token hardly ever become fewer than 2."""
    least, free = sum(s.tokens for s in segments) // 4, shutil.disk_usage(out.parent).free
    if free < least:
        raise InputError(f"{out}: too little disk: at least {least:,} bytes are needed, {free:,} are free")


def _sort(found: Found, known: Sequence[TokenSpec], progress: Reporter) -> dict[TokenSpec, list[SegmentSource]]:
    """Look through all values once, and sort segments by spec (in the order of their first segments)."""
    progress.begin("reading", len(found.segments), sum(s.tokens for s in found.segments))
    maxima = found.maxima(lambda segment: progress.advance(1, segment.tokens))
    progress.end()
    by_spec: dict[TokenSpec, list[SegmentSource]] = {}
    for segment, spec in zip(found.segments, find_specs(found.segments, maxima, known)):
        by_spec.setdefault(spec, []).append(segment)
    return by_spec


def _write(
    path: Path,
    by_spec: dict[TokenSpec, list[SegmentSource]],
    files: Sequence[File],
    codecs: dict[TokenSpec, Codec],
    model: bytes | None,
    batch_size: int,
    jobs: int,
    progress: Reporter,
) -> None:
    everything = [s for segments in by_spec.values() for s in segments]
    progress.begin("compressing", len(everything), sum(s.tokens for s in everything))
    specs = [container.CodedSpec(spec, codecs[spec].name) for spec in by_spec]
    bound = sum(s.tokens * len(spec.factors) for spec, segments in by_spec.items() for s in segments)
    raw, first = [], 0
    for name, parts in groupby(everything, lambda s: s.file):
        count = sum(1 for _ in parts)
        if name is not None:
            raw.append((name, first, count))
        first += count
    learn = [(codecs[spec], len(segments)) for spec, segments in by_spec.items() if codecs[spec].name != "gpt"]
    workers = any(count > codec.group_size for codec, count in learn)
    with container.Writer(path, specs, model, bound, __version__, raw, files, workers) as writer:
        for index, (spec, segments) in enumerate(by_spec.items()):
            codec, size, factors = codecs[spec], codecs[spec].group_size, len(spec.factors)
            groups = [segments[i : i + size] for i in range(0, len(segments), size)]
            step = max(jobs, batch_size // size)
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
    by_spec: dict[TokenSpec, list[SegmentSource]],
    files: Sequence[File],
    batch_size: int,
    progress: Reporter,
    device: str,
    threads: int | None,
    jobs: int,
) -> None:
    """Decode what was just written and compare all of it with its sources. Raises DamageError."""
    sources = {s.name: s for segments in by_spec.values() for s in segments}
    with Archive(path, device=device, threads=threads, jobs=jobs) as archive:
        if list(archive) != list(sources):
            raise DamageError("verification failed: the archive's names are not those of the data; please report this")
        for name, array in _decoded(archive, batch_size, progress, "verifying", None):
            if difference := _difference(array, sources[name].array()):
                raise DamageError(
                    f"verification failed: {sources[name].label} does not come back: {difference}; "
                    "either the file changed meanwhile, or this is a bug: please report it"
                )
        for kept, file in zip(archive.kept, files):
            if not _same(archive.contents(kept), file.pieces()):
                raise DamageError(
                    f"verification failed: {file.label} does not come back; "
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


def _same(found: Iterable[bytes], expected: Iterable[bytes]) -> bool:
    """Whether two files, each in pieces of any size, are equal."""
    digests = []
    for pieces in (found, expected):
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        digests.append(digest.digest())
    return digests[0] == digests[1]


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
