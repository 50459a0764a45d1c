"""render, tokenize, report: looking at tokens, as functions."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from . import api
from .archive.reader import Archive
from .data.segments import Grid
from .data.sources import Place
from .model_files import find_model, shipped_models
from .runtime.compute import Compute
from .runtime.disk import replacing
from .runtime.errors import InputError
from .runtime.progress import Progress
from .runtime.spec import TokenSpec
from .world import video
from .world.decoders import Decoder, load_decoder, load_encoder
from .world.page import write_page
from .world.palette import Palette
from .world.pictures import Painter, beside, overlay, sheet
from .world.report import Report, measure
from .world.segment import NamedTokens, is_archive, read_model, read_segment
from .world.surprise import costs

Note = Callable[[str], None]
KINDS = ("mp4", "gif", "png")
SHEET_FRAMES = 48
"""Frames on a contact sheet, where nobody says how many."""


def render(
    tokens: Place,
    out: str | os.PathLike[str],
    *,
    compare: Place | None = None,
    surprise: bool = False,
    model: str | os.PathLike[str] = "auto",
    decoder: str | os.PathLike[str] | None = None,
    start: int = 0,
    frames: int | None = None,
    every: int | None = None,
    fps: float = video.FPS,
    grid: Grid | None = None,
    force: bool = False,
    compute: Compute | None = None,
    progress: Progress | None = None,
    report: Note | None = None,
) -> int:
    """Draw a segment as a film (.mp4, .gif) or a contact sheet (.png); returns the number of frames.

    tokens: PATH or PATH:NAME, see `world.segment`. compare: another one, drawn to the right. surprise: what
    each token costs, in bits, as heat. model: whose embedding gives the colours, and whose predictions the costs:
    "auto" (the archive's own, else the largest that ships for such tokens), a shipped one's name, a .vqm, or "none"
    (what is learned on the way). decoder: a checkpoint that draws pictures, see `world.decoders`. start, frames, every:
    which frames; of all, a sheet shows 48. Raises InputError, ModelError, DependencyError.
    """
    compute, progress, report = compute or Compute(), progress or Progress(), report or (lambda line: None)
    out = Path(out)
    kind = out.suffix.lower().lstrip(".")
    if kind not in KINDS:
        raise InputError(f"{out}: expected a name that ends in .mp4, .gif or .png")
    check_output(out, force)
    named = find_model(model, "--model") if os.fspath(model) not in ("auto", "none") else None
    first = read_segment(os.fspath(tokens), grid, named.spec if named else None, compute)
    shown = [first]
    if compare is not None:
        shown.append(read_segment(os.fspath(compare), grid, first.spec, compute))
    if any((t.spec.height, t.spec.width) != (first.spec.height, first.spec.width) for t in shown):
        found = " and ".join(f"{t.spec.height}x{t.spec.width}" for t in shown)
        raise InputError(f"--compare: expected frames of one grid, found {found}")
    length = min(len(t.tokens) for t in shown)
    chosen = choose_frames(length, start, frames, every, SHEET_FRAMES if kind == "png" else None)
    machine = load_decoder(decoder, compute) if decoder is not None else None
    all_ids, painters, bits = [t.ids for t in shown], [], []
    for t in shown:
        # Colours and costs are to be compared, so they are by one model.
        name, data, adapt = pick_model(first if t.spec == first.spec else t, model)
        painters.append(Painter(palette_for(t.spec, data), machine))
        if machine is None and not painters[-1].palette.by_model:
            report(f"{t.name}: no model is for such tokens, so colours only tell ids apart")
        if surprise:
            report(f"{t.name}: costs by {name}{' with learning on top' if data and adapt else ''}")
            bits.append(_measure(t, chosen[-1] + 1, data, adapt, compute, progress))

    def film() -> Iterator[np.ndarray]:
        """Frames of all that is shown, side by side; a batch is in memory at a time."""
        progress.begin("drawing", len(chosen), len(chosen) * first.spec.positions)
        for i in range(0, len(chosen), compute.batch_size):
            batch = chosen[i : i + compute.batch_size]
            parts = [painter.film(ids[batch]) for painter, ids in zip(painters, all_ids)]
            if surprise:
                parts = [overlay(part, cost[batch]) for part, cost in zip(parts, bits)]
            yield from beside(parts)
            progress.advance(len(batch), len(batch) * first.spec.positions)

    try:
        with replacing(out) as temporary:
            if kind == "png":
                temporary.write_bytes(video.png(sheet(np.stack(list(film())), chosen)))
            else:
                video.write_film(temporary, film(), fps, kind)
    finally:
        progress.end()
    return len(chosen)


def _measure(
    tokens: NamedTokens, frames: int, model: bytes | None, adapt: bool, compute: Compute, progress: Progress
) -> np.ndarray:
    """Bits of each token of the first frames, (frames, H, W)."""
    spec, segment = tokens.spec, tokens.tokens[:frames]
    progress.begin("measuring", 1, frames * spec.positions)
    try:
        ((bits,),) = costs(
            spec, model, [[segment]], adapt=adapt, compute=compute, advance=lambda n: progress.advance(0, n)
        )
    finally:
        progress.end()
    return bits.reshape(frames, spec.height, spec.width)


def palette_for(spec: TokenSpec, model: bytes | None) -> Palette:
    """Colours by the embedding of `model`, else by that of the largest shipped one for such tokens, if there is one."""
    return Palette(
        spec, model or max((m.data for m in shipped_models().values() if m.spec == spec), key=len, default=None)
    )


def choose_frames(length: int, start: int, count: int | None, every: int | None, most: int | None) -> list[int]:
    """Which frames to draw; `most` of them, spread evenly, where neither count nor every is given.

    Raises InputError where none is left.
    """
    if start >= length:
        raise InputError(f"--start {start}: there are {length} frames, from 0 on")
    chosen = list(range(start, length, every or 1))
    if most and count is None and every is None and len(chosen) > most:
        return [start + round(i * (length - 1 - start) / (most - 1)) for i in range(most)]
    return chosen[:count]


def pick_model(tokens: NamedTokens, model: str | os.PathLike[str]) -> tuple[str, bytes | None, bool]:
    """(name, .vqm or None, whether to learn on top) of what `model` means for these tokens. Raises ModelError."""
    if os.fspath(model) == "auto":
        if tokens.kind is not None:
            return "the archive's own codec", tokens.model, tokens.kind.learns
        fitting = [m for m in shipped_models().values() if m.spec == tokens.spec]
        if not fitting:
            return "learning alone", None, True
        largest = max(fitting, key=lambda m: len(m.data))
        return largest.name, largest.data, True
    if os.fspath(model) == "none":
        return "learning alone", None, True
    found = find_model(model, "--model")
    if found.spec != tokens.spec:
        have, want = (f"{s.height}x{s.width} of {s.vocabulary} ids" for s in (tokens.spec, found.spec))
        raise InputError(f"--model {found.name}: it predicts frames of {want}, {tokens.name} has {have}")
    return found.name, found.data, True


def check_output(out: Path, force: bool) -> None:
    """Raise InputError, before any work, where `out` could not be written."""
    if out.is_dir():
        raise InputError(f"{out}: expected the name of a file to write, found a folder")
    if out.exists() and not force:
        raise InputError(f"{out}: exists already; -f overwrites it")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: no such folder; make it first")


def tokenize(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    encoder: str | os.PathLike[str],
    *,
    crop: str = "comma",
    fps: float | None = None,
    force: bool = False,
    compute: Compute | None = None,
    progress: Progress | None = None,
) -> tuple[int, ...]:
    """Turn a video into tokens and write them as .npy; returns their shape (T, 8, 16).

    encoder: comma's, see `world.decoders`. crop: "comma" (the piece that comma cuts out of its camera's 1928 x 1208) or
    "centre" (the largest piece of the right shape). fps: so many frames a second, by the video's own times; by default
    all. Ids are int16, as comma's. Raises InputError, ModelError, DependencyError.
    """
    compute, progress, out = compute or Compute(), progress or Progress(), Path(out)
    if crop not in video.CROPS:
        raise InputError(f"crop: expected {' or '.join(video.CROPS)}, found {crop}")
    check_output(out, force)
    with video.Video(source) as film:
        machine = load_encoder(encoder, compute)
        length = film.length
        if fps and film.fps:
            length = int(length * min(1.0, fps / float(film.fps)))
        per_frame = video.PICTURE[0] * video.PICTURE[1] // 256
        progress.begin("tokenizing", length, length * per_frame)
        parts = []
        try:
            for batch in _batches(film.frames(fps), video.CROPS[crop], compute.batch_size):
                parts.append(machine.encode(batch).astype(np.int16))
                progress.advance(len(batch), parts[-1].size)
        finally:
            progress.end()
    ids = np.concatenate(parts)
    with replacing(out) as temporary, open(temporary, "xb") as handle:
        np.save(handle, ids)
    return ids.shape


def _batches(frames: Iterator[np.ndarray], crop: Callable[[np.ndarray], np.ndarray], size: int) -> Iterator[np.ndarray]:
    """(B, 128, 256, 3) of frames as the encoder takes them."""
    batch: list[np.ndarray] = []
    for frame in frames:
        batch.append(video.resize(crop(frame), *video.PICTURE))
        if len(batch) == size:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def report(
    data: Place | Sequence[Place],
    out: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] = "auto",
    adapt: bool = True,
    decoder: str | os.PathLike[str] | None = None,
    segments: int = 16,
    grid: Grid | None = None,
    force: bool = False,
    compute: Compute | None = None,
    progress: Progress | None = None,
    note: Note | None = None,
) -> Report:
    """Write a page about an archive, or about what `data` would be as one, and return what it tells.

    model, adapt: as of `compress`, where data are no archive. decoder: draws the frames. segments: so many, or a few
    more, are looked at token by token, spread over the archive; sizes are told of all. Raises what `compress` and
    opening archives raise.
    """
    compute, progress, note = compute or Compute(), progress or Progress(), note or (lambda line: None)
    out = Path(out)
    check_output(out, force)
    machine = load_decoder(decoder, compute) if decoder is not None else None
    places = [data] if isinstance(data, str | os.PathLike) else list(data)
    if len(places) == 1 and is_archive(Path(places[0])):
        with Archive(places[0], compute) as archive:
            return _report(archive, Path(places[0]).name, out, machine, segments, progress)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.zip"
        api.compress(
            places, path, model=model, adapt=adapt, grid=grid, verify=False, compute=compute, progress=progress,
            report=note,
        )  # fmt: skip
        title = Path(places[0]).name + (f" and {len(places) - 1} more" if len(places) > 1 else "")
        with Archive(path, compute) as archive:
            return _report(archive, title, out, machine, segments, progress)


def _report(
    archive: Archive, title: str, out: Path, decoder: Decoder | None, segments: int, progress: Progress
) -> Report:
    told = measure(archive, title, segments, progress)
    model = read_model(archive)
    painters = {}
    for spec in {part.spec for part in told.measured}:
        by_network = any(c.spec == spec and c.kind.has_network for c in archive.manifest.codings)
        painters[spec] = Painter(palette_for(spec, model if by_network else None), decoder)
    with replacing(out) as temporary:
        temporary.write_text(write_page(told, painters), encoding="utf-8")
    return told
