"""compress, decompress, check, evaluate, open, train: what the commands do, as functions."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .archive.as_data import find_segments
from .archive.compare import decoded, differences
from .archive.journal import appearing
from .archive.reader import Archive
from .archive.summary import Summary, summarize
from .choice import LEVEL, LEVELS, Chooser
from .cluster.archive import opened
from .cluster.codec import connect
from .data.outputs import require_free, require_writable
from .data.segments import Grid, SegmentSource
from .data.sources import Data, Found, label, places
from .data.specs import COMMAVQ, find_specs
from .encoding import GroupCoding, about_run, choose_once, kept_journal, verify_written, write
from .external_models import TokenOptions, find_external, is_external
from .model_files import ModelFile, find_model, find_models
from .runtime.adapt import GROUP_LIMIT
from .runtime.compute import Compute
from .runtime.disk import replacing
from .runtime.errors import DamageError, InputError
from .runtime.progress import Progress
from .runtime.restore import report_loss, restore
from .runtime.spec import TokenSpec
from .training import torch_ready
from .training.outputs import check_outputs
from .world import generated, protocol
from .world.imagine import make_imaginer
from .world.sampling import Sampling
from .world.segment import read_segment

if TYPE_CHECKING:
    from .training.fit import Trained
    from .training.record import Moment


NPY_HEADER = 128
"""Bytes before the values in most .npy files."""
SKIP_HINT = "--skip-bad (skip_bad=True) leaves it out and does the rest"


def open_archive(path: str | os.PathLike[str], compute: Compute | None = None) -> Archive:
    """Open a zip, or the folder it was unpacked into: a mapping from segment names to arrays.

    Arrays are decoded when they are asked for; `Archive.decode` yields many, computed in batches. Use it in a `with`.
    Raises FormatError, DamageError, UnsafeNameError or InputError.
    """
    return Archive(path, compute)


def compress(
    data: Data,
    out: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] = "auto",
    train: float | None = None,
    adapt: bool = True,
    level: int = LEVEL,
    group_size: int | None = None,
    decoder: bool = True,
    grid: Grid | None = None,
    force: bool = False,
    verify: bool = True,
    skip_bad: bool = False,
    keep_all: bool = False,
    resume: bool = False,
    cluster: str | None = None,
    token_options: TokenOptions | None = None,
    compute: Compute | None = None,
    progress: Progress | None = None,
    report: Callable[[str], None] | None = None,
) -> Summary:
    """Write `data` as one self-contained zip, and decode and compare what was written (unless verify=False).

    data: see `sources.find_segments`: a .npy file, a shard, a folder of them at any depth, a folder of 1X's, an
    archive, several of these, or a mapping from names to arrays; arrays of integers (T, H, W) or (T, H * W), ids in
    0..65535. `grid` is (H, W) for the latter; (8, 16) is known for 128 tokens. skip_bad leaves out, and reports, what
    cannot be used.
    keep_all keeps byte for byte what holds no tokens: other files, and other members of shards.
    model: "auto" (whatever makes the zip smallest), "none" (a model that learns as it codes), the name of a shipped
    model, or the path of a .vqm file; segments that it does not fit are coded as with "none". A folder with a network
    of the GPT-2 family, or hf://OWNER/NAME, is an external network: the zip names it and does not carry it, and whoever
    decodes needs the same file. token_options are for such a network.
    train: with "auto", seconds in which a network is trained on these very data; it is one more to choose from.
    adapt: whether to learn while coding on top of a model, too; smaller, but slower than the model alone.
    level: from 1, fast, to 9, small: what "auto" weighs, and how many segments learn together; see choice.LEVELS.
    group_size: segments that learn together, 1 to 64, instead of the level's. More make the zip smaller, but to read
    one segment takes decoding all of its group. decoder: whether the zip carries its own.
    resume: go on from the journal (NAME.partial, see archive/journal.py) that an earlier run left beside `out`, to the
    same bytes; or begin. Without it a journal is kept, too, of more segments than are computed together, and when
    training; unless one lies there, which is left alone.
    cluster: code on a cluster, Ray's: auto, local, HOST:PORT or ray://HOST:PORT. The model is chosen and trained here.
    `report` is called with lines about choices made; those about the journal begin with "note".
    `out` appears at the end, whole, or not at all. Raises InputError, ModelError, PlatformError, DependencyError; and
    DamageError if what was written does not decode to `data`.
    """
    start, out = time.monotonic(), Path(out)
    compute = (compute or Compute()).checked()
    progress, report = progress or Progress(), report or (lambda line: None)
    if level not in LEVELS:
        raise InputError(f"level: expected 1 (fast) to {len(LEVELS)} (small), found {level}")
    group_size = LEVELS[level].group_size if group_size is None else group_size
    if not 1 <= group_size <= GROUP_LIMIT:
        raise InputError(f"group size: expected 1 to {GROUP_LIMIT}, found {group_size}")
    if train is not None and os.fspath(model) != "auto":
        raise InputError(f"training here is for --model auto, which then chooses; found {os.fspath(model)}")
    if train is not None:
        with torch_ready():  # found missing before the work
            pass
    require_writable(out, "a zip", force=force)
    external = is_external(model, token_options)
    if external and cluster:
        raise InputError("--cluster: an external network codes on this machine alone; leave --cluster out")
    models = [] if external else find_models(model)
    found = find_segments(data, grid, compute=compute, skip_bad=skip_bad, keep_all=keep_all, hint=SKIP_HINT)
    wanted_model: str | os.PathLike[str] | ModelFile = model
    if external:
        grids = dict.fromkeys(segment.grid for segment in found.segments)
        wanted_model, weights = find_external(model, grids, token_options or TokenOptions(), compute)
        models, compute = [wanted_model], compute._replace(model=str(weights))
    sources = {s.source for s in found.segments if isinstance(s.source, Path)} | {f.path for f in found.files}
    if out.exists() and any(out.samefile(source) for source in sources):
        raise InputError(f"{out}: the output would replace the input; choose another name")
    # 10 bits of a token hardly ever become fewer than half a bit: stop early where it cannot work out.
    require_free(out.parent, sum(s.tokens for s in found.segments) // 16)
    try:
        by_spec = _sort(found, [*(m.spec for m in models), COMMAVQ], progress)
        for line in found.omissions():
            report(line)
        options = {"adapt": adapt, "group size": group_size, "decoder": decoder, "level": level, "train": train}
        about = partial(about_run, found, by_spec, os.fspath(model), models, options)
        wanted = len(found.segments) > compute.batch_size or train is not None
        with (
            connect(cluster, compute) as spread,
            kept_journal(out, about, wanted=wanted, resume=resume, report=report) as journal,
        ):
            # A cluster's devices are not those of this machine.
            here = compute._replace(device="auto") if spread else compute
            chooser = Chooser(by_spec, adapt, group_size, here, progress, report)
            chosen = choose_once(chooser, wanted_model, level, train, out.parent, journal)
            coding = GroupCoding(chosen, adapt, group_size, decoder)
            with appearing(out) as temporary:
                ready = chooser.ready(chosen)
                write(temporary, by_spec, found.files, coding, ready, journal, spread, compute, progress)
                if verify:
                    verify_written(temporary, by_spec, found.files, journal, spread, compute, progress)
                require_writable(out, "a zip", force=force)
            if journal:
                journal.remove()
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
    force: bool = False,
    cluster: str | None = None,
    compute: Compute | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Restore the files, or those named in `only`, under the folder `out`; returns their names.

    Each is just what was compressed: arrays by name, dtype, shape and values, other files byte for byte. Raises
    InputError where a file exists already (unless force=True), and DamageError that names what was lost, after
    everything else has been written.
    """
    restored, lost = restore_files(path, out, only, force=force, cluster=cluster, compute=compute, progress=progress)
    if lost:
        raise DamageError(f"{path}: {report_loss(lost, len(restored) + len(lost))}")
    return restored


def restore_files(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    only: Collection[str] | None = None,
    *,
    force: bool = False,
    cluster: str | None = None,
    compute: Compute | None = None,
    progress: Progress | None = None,
) -> tuple[list[str], dict[str, str]]:
    """As `decompress`, but it returns what was lost: (names of restored files, lost name -> reason)."""
    only, out = {only} if isinstance(only, str) else only, Path(out)
    with connect(cluster, compute or Compute()) as spread, opened(path, compute, spread) as archive:
        chosen = archive.manifest.select(only)
        if not force:
            for name in chosen.outputs:
                if os.path.lexists(out / name):
                    raise InputError(f"{out / name}: exists already; -f overwrites it")
            arrays = (s.tokens * s.dtype.itemsize + NPY_HEADER for s in chosen.segments)
            require_free(out, sum(arrays) + sum(f.size for f in chosen.kept))
        lost = restore(archive, out, only, progress)
        return [name for name in chosen.outputs if name not in lost], lost


def check(
    path: str | os.PathLike[str],
    *,
    cluster: str | None = None,
    compute: Compute | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Decode everything and check every checksum, writing nothing. Raises DamageError that names what is lost."""
    start = time.monotonic()
    with connect(cluster, compute or Compute()) as spread, opened(path, compute, spread) as archive:
        lost: dict[str, str] = {}
        deque(decoded(archive, "testing", progress or Progress(), lost), 0)
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
    grid: Grid | None = None,
    skip_bad: bool = False,
    cluster: str | None = None,
    compute: Compute | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Decode and compare with `data` token by token, and other files byte by byte; skip_bad as of `compress`.

    Raises InputError where they differ, DamageError on damage.
    """
    start = time.monotonic()
    with connect(cluster, compute or Compute()) as spread, opened(path, compute, spread) as archive:
        kept = {f.name for f in archive.kept}
        found = find_segments(data, grid, compute=compute, skip_bad=skip_bad, keep_all=bool(kept), hint=SKIP_HINT)
        segments = {s.name: s for s in found.segments}
        # Files that are no tokens were kept on request: only those of 1X's folders have to be in the archive.
        files = {f.name: f for f in found.files if f.beside or f.name in kept}
        for here, there, what, names in (
            ("the archive", "the data", "segments", archive.keys() - segments.keys()),
            ("the data", "the archive", "segments", segments.keys() - archive.keys()),
            ("the archive", "the data", "files", kept - files.keys()),
            ("the data", "the archive", "files", files.keys() - kept),
        ):
            if names:
                raise InputError(f"{path}: {len(names)} {what} of {here} are not in {there}, the first is {min(names)}")
        lost: dict[str, str] = {}
        for name, how in differences(archive, segments, files, "evaluating", progress or Progress(), lost):
            raise InputError(f"{path}: the archive does not hold what {name} does: {how}")
        if lost:
            raise DamageError(f"{path}: {report_loss(lost, len(archive))}")
        return replace(summarize(archive, time.monotonic() - start), skipped=len(found.skipped))


def evaluate_1x(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    max_windows: int | None = None,
    steps: int = 1,
    decode: protocol.Decode | None = None,
    compute: Compute | None = None,
) -> dict[str, protocol.Score | None]:
    """Score a model (a shipped one's name, or a .vqm) by 1X's metric on one of 1X's folders, or an archive of one.

    See protocol.py.

    steps: MaskGIT steps in which frames are generated, by a model trained with within_frame. decode: renders ids
    (T, height, width) as uint8 (T, h, w, 3), so that LPIPS is measured, too.
    Scores by setting; None where a setting does not apply. Raises InputError, ModelError.
    """
    (place,) = places(folder)
    data = find_model(model, "--model").data
    return protocol.evaluate(
        data, place, max_windows=max_windows, steps=steps, decode=decode, compute=(compute or Compute()).checked()
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

    A card (.md, which quotes `command`), a log (.csv) and a checkpoint (.ckpt), from which resume=True goes on, are
    written beside it. settings: fields of training.config.TrainConfig. preset: one of training.presets.PRESETS, by
    default "mini" or that of `init`, a shipped model or a .vqm to start from. report is called with lines, watch with
    the state after each step and within evaluations. Raises InputError, ModelError, DependencyError (no torch).
    """
    out = Path(out)
    check_outputs(out, force=force, resume=resume)
    with torch_ready(threads):
        from .training.fit import Start, fit

        start = find_model(init, "--init") if init is not None else None
        found = find_segments(data, grid, compute=Compute(threads=threads))
        by_spec = _sort(found, [*([start.spec] if start else []), COMMAVQ], Progress())
        if len(by_spec) > 1:
            raise InputError(f"{label(data)}: expected one grid and vocabulary, found {_describe(by_spec)}")
        ((spec, segments),) = by_spec.items()
        return fit(
            segments,
            spec,
            out,
            settings or {},
            preset=preset,
            init=Start(start.name, start.data) if start else None,
            resume=resume,
            device=device,
            command=command,
            report=report,
            watch=watch,
        )


def imagine(
    place: str,
    out: str | os.PathLike[str],
    *,
    frames: int | None = None,
    prompt: int | None = None,
    start: int = 0,
    every: int | None = None,
    model: str | os.PathLike[str] = "auto",
    learn: bool = False,
    sampling: Sampling | None = None,
    samples: int = 1,
    steps: int = 1,
    order: str = "random",
    layout: str = "npy",
    grid: Grid | None = None,
    force: bool = False,
    token_options: TokenOptions | None = None,
    compute: Compute | None = None,
    progress: Progress | None = None,
    report: Callable[[str], None] | None = None,
) -> list[Path]:
    """Continue a segment as a predictor expects it to go on; returns the paths of what was written, one per sample.

    place: PATH, or PATH:NAME where there are several segments in PATH (data, or an archive). The first `prompt` of its
    frames start, start + every, ... are true (all there are, unless given), `frames` (100) more are imagined.
    layout: "npy" writes (prompt + frames, H, W) in the segment's dtype; "1x" reads one of 1X's folders and writes one
    that their visualize.py reads: 8 true frames, 8 imagined, 8 true ones instead, every 15th. Several samples are
    written to out-0, out-1, ..., before the suffix if there is one.
    model: "auto" (the archive's own network, or the largest shipped one for these tokens), "none", a name or a path;
    or an external network, which draws token by token (a folder, or hf://OWNER/NAME), with its token_options.
    learn: draw with what learns while it codes, too, after it has learned from the prompt; with "none", by it alone.
    sampling, steps, order: see Sampling and NetworkImaginer. Raises InputError, ModelError, DamageError,
    PlatformError, DependencyError.
    """
    compute, progress, sampling = (compute or Compute()).checked(), progress or Progress(), sampling or Sampling()
    paths = generated.outputs(Path(out), samples, force=force, folders=layout == "1x")
    external = is_external(model, token_options)
    given = find_model(model, "--model") if os.fspath(model) not in ("auto", "none") and not external else None
    if external:  # the segment may lie in an archive that names this network
        compute = compute._replace(model=os.fspath(model))
    window = generated.WINDOW if layout == "1x" else None
    for name, value, least in (
        ("frames", frames, 1),
        ("prompt", prompt, 0),
        ("every", every, 1),
        ("samples", samples, 1),
    ):
        if value is not None and value < least:
            raise InputError(f"{name}: expected at least {least}, found {value}")
    if window:
        video = generated.open_window(place)
        prompt, frames = generated.PROMPT if prompt is None else prompt, frames or window - generated.PROMPT
        name, dtype, spec, own, every = str(video.folder), video.dtype, video.spec, None, every or generated.STRIDE
        tokens = generated.window(video, start, prompt + frames, every)
    else:
        segment = read_segment(place, grid, given.spec if given else None, compute)
        name, dtype, spec, own, every = segment.name, segment.dtype, segment.spec, segment.model, every or 1
        tokens, frames = segment.tokens[start::every], frames or 100
        prompt = len(tokens) if prompt is None else prompt
        if prompt > len(tokens) or not len(tokens):
            raise InputError(f"{name}: expected {prompt} frames for the prompt, found {len(tokens)} from {start} on")
    if external:
        given, weights = find_external(model, [(spec.height, spec.width)], token_options or TokenOptions(), compute)
        compute = compute._replace(model=str(weights))
        if len(spec.factors) > 1 or tokens.max(initial=0) >= given.spec.vocabulary:
            raise InputError(
                f"{name}: expected ids below {given.spec.vocabulary}, which {given.name} predicts, found "
                f"{spec.join(tokens).max(initial=0)}"
            )
        spec = given.spec
    data = given.data if given else own if os.fspath(model) == "auto" else None
    if os.fspath(model) == "auto" and data is None:
        fitting = [m for m in find_models("auto") if m.spec == spec]
        given = max(fitting, key=lambda m: len(m.data), default=None)
        data = given.data if given else None
    if report:
        what = given.name if given else "the archive's own" if data else "none"
        report(f"model: {what}{', learning from the prompt' if learn else ''}")
    imaginer = make_imaginer(spec, data, learn=learn, steps=steps, order=order, compute=compute)
    progress.begin("imagining", samples, samples * frames * spec.positions)
    try:
        drawn = imaginer.imagine(
            tokens[:prompt], frames, samples, sampling, compute.batch_size, lambda n: progress.advance(0, n)
        )
    finally:
        progress.end()
    for path, imagined in zip(paths, drawn, strict=True):
        ids = spec.join(np.concatenate([tokens[:prompt], imagined])).reshape(-1, spec.height, spec.width)
        if window:
            truth = spec.join(tokens[prompt:]).reshape(-1, spec.height, spec.width)
            generated.write_window(path, video, ids, truth, prompt)
        else:
            with replacing(path) as temporary, open(temporary, "xb") as handle:
                np.save(handle, generated.as_dtype(ids, dtype, name))
    return paths


def _describe(specs: Collection[TokenSpec]) -> str:
    return ", ".join(f"{s.height}x{s.width} of {s.vocabulary} ids" for s in specs)


def _sort(found: Found, known: Sequence[TokenSpec], progress: Progress) -> dict[TokenSpec, list[SegmentSource]]:
    """Look through all values once, and sort segments by spec (in the order of their first segments)."""
    progress.begin("reading", len(found.segments), sum(s.tokens for s in found.segments))
    maxima = found.maxima(lambda segment: progress.advance(1, segment.tokens))
    progress.end()
    by_spec: dict[TokenSpec, list[SegmentSource]] = {}
    for segment, spec in zip(found.segments, find_specs(found.segments, maxima, known)):
        by_spec.setdefault(spec, []).append(segment)
    return by_spec
