"""Rates and speeds on one's own tokens: general-purpose compressors, and vqcomp with and without networks.

Everything is decoded again and compared. Raw is ceil(log2 vocabulary) bits a token, 10 for commaVQ.
"""

from __future__ import annotations

import lzma
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from . import api
from .archive.as_data import find_segments
from .archive.reader import Archive
from .archive.summary import summarize
from .data.segments import Grid, SegmentSource
from .data.sources import Data
from .data.specs import COMMAVQ, find_specs
from .model_files import ModelFile, find_model, shipped_models
from .runtime.compute import Compute
from .runtime.errors import DamageError, DependencyError, InputError
from .runtime.progress import Progress
from .runtime.spec import TokenSpec

SAMPLE_TOKENS = 1 << 16
SAMPLE_SEGMENTS = 8
"""A sample has about so many tokens, out of so many segments at the most: what learns codes eight together."""
BLOCK = 1 << 26
"""Bytes that a general-purpose compressor gets at a time: what zpaq -m5 takes for a block."""
ZSTD_LEVEL = 19


@dataclass(frozen=True)
class Row:
    """What a method made of some tokens. Sizes in bytes; seconds of the whole way from arrays to a file, and back."""

    method: str
    tokens: int
    raw_bytes: int
    payload_bytes: int
    """The coded tokens alone."""
    zip_bytes: int | None = None
    """All of a zip: decoder, weights and manifest too. None for methods whose decoder is not counted."""
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def bytes(self) -> int:
        """What the method's rate counts: the whole zip where there is one."""
        return self.payload_bytes if self.zip_bytes is None else self.zip_bytes

    @property
    def rate(self) -> float:
        """raw / bytes."""
        return self.raw_bytes / self.bytes

    @property
    def bits_per_token(self) -> float:
        """Of the payload."""
        return 8 * self.payload_bytes / self.tokens

    def rate_of(self, share: float) -> float:
        """The rate of data of which these tokens are a `share`, were they all alike: decoder and weights come once."""
        overhead = self.bytes - self.payload_bytes
        return self.raw_bytes / (self.payload_bytes + share * overhead)

    def as_table(self, share: float = 1.0) -> dict[str, Any]:
        """All fields, and what follows from them; for JSON."""
        speeds = {
            f"{way}_tokens_per_second": self.tokens / seconds if seconds else None
            for way, seconds in (("encode", self.encode_seconds), ("decode", self.decode_seconds))
        }
        rates = {"rate": self.rate, "rate_of_all": self.rate_of(share), "bits_per_token": self.bits_per_token}
        return {**asdict(self), **rates, **speeds}


@dataclass(frozen=True)
class Tokens:
    """What is measured on: segments, a sample of some data or all of them."""

    segments: Sequence[SegmentSource]
    specs: Sequence[TokenSpec]
    """Of each segment."""
    all_segments: int
    all_tokens: int

    @property
    def count(self) -> int:
        return sum(s.tokens for s in self.segments)

    @property
    def share(self) -> float:
        """How much of the data this is."""
        return self.count / self.all_tokens

    @property
    def raw_bytes(self) -> int:
        return -(-sum(s.tokens * spec.bits for s, spec in zip(self.segments, self.specs)) // 8)

    def transposed(self) -> Iterator[bytes]:
        """The ids of each segment, position by position and not frame by frame, as comma's own example has them."""
        for segment, spec in zip(self.segments, self.specs):
            dtype = next(d for d, limit in (("u1", 1 << 8), ("<u2", 1 << 16), ("<u4", 1 << 32))
                         if spec.vocabulary <= limit)  # fmt: skip
            yield segment.array().reshape(segment.frames, -1).T.astype(dtype).tobytes()


def load(
    data: Data,
    grid: Grid | None = None,
    *,
    everything: bool = False,
    models: Sequence[ModelFile] = (),
    compute: Compute | None = None,
) -> Tokens:
    """The tokens of `data` (as `api.compress` takes them) to measure on.

    Without `everything` a sample: the first frames of up to SAMPLE_SEGMENTS segments from all over the data, in memory.
    A vocabulary that no model and no data set names is that of the sample. Raises InputError.
    """
    found = find_segments(data, grid, compute=compute).segments
    # Parts of 1X's videos are arrays here like any other.
    chosen = [replace(s, file=None) for s in found]
    if not everything:
        count = min(len(found), SAMPLE_SEGMENTS)
        spread = [found[i * len(found) // count] for i in range(count)]
        chosen = [_first_frames(s, SAMPLE_TOKENS // count) for s in spread]
    maxima = [s.maximum() for s in chosen]
    known = [m.spec for m in (*models, *shipped_models().values())]
    specs = find_specs(chosen, maxima, [*known, COMMAVQ])
    return Tokens(chosen, specs, len(found), sum(s.tokens for s in found))


def _first_frames(segment: SegmentSource, tokens: int) -> SegmentSource:
    """As many of its first frames as have so many tokens, at least one."""
    per_frame = segment.tokens // segment.frames
    array = segment.array()[: max(1, tokens // per_frame)].copy()
    return SegmentSource(segment.name, array.dtype, array.shape, segment.grid, array, spec=segment.spec)


def measure(
    tokens: Tokens,
    models: Sequence[ModelFile] = (),
    *,
    compute: Compute | None = None,
    progress: Progress | None = None,
    report: Callable[[str], None] | None = None,
) -> Iterator[Row]:
    """Yield a row for each method; `report` is called with what is left out, and why.

    vqcomp codes without a network, and with each shipped one and each of `models` that fits: alone, and with learning
    on top.
    """
    report = report or (lambda line: None)
    yield from general_purpose(tokens, report=report)
    yield from vqcomp_rows(tokens, "none", compute, progress)
    for model in [*shipped_models().values(), *models]:
        if model.spec in tokens.specs:
            for adapt in (False, True):
                yield from vqcomp_rows(tokens, model.name, compute, progress, adapt=adapt, model=model)
        else:
            report(f"{model.name} does not fit these tokens: left out")


def general_purpose(
    tokens: Tokens, *, level: int = ZSTD_LEVEL, report: Callable[[str], None] = lambda line: None
) -> Iterator[Row]:
    """zstd, lzma and, where it is there, zpaq. lzma codes each segment by itself, as comma's example does."""
    compress = zstandard.ZstdCompressor(level=level).compress
    yield _coded(f"zstd -{level}", tokens, _blocks(tokens), compress, zstandard.ZstdDecompressor().decompress)
    yield _coded("lzma (comma's example)", tokens, tokens.transposed(), lzma.compress, lzma.decompress)
    if found := _find_zpaq():
        yield _coded("zpaq -m5", tokens, _blocks(tokens), *found)
    else:
        report("zpaq is not here (pip install 'vqcomp[zpaq]', or Debian's package zpaq): left out")


def _blocks(tokens: Tokens) -> Iterator[bytes]:
    """All segments one after another, cut into blocks of whole segments and about BLOCK bytes."""
    block: list[bytes] = []
    for data in tokens.transposed():
        if block and sum(map(len, block)) + len(data) > BLOCK:
            yield b"".join(block)
            block = []
        block.append(data)
    yield b"".join(block)


Function = Callable[[bytes], bytes]


def _coded(method: str, tokens: Tokens, blocks: Iterable[bytes], encode: Function, decode: Function) -> Row:
    size, times = 0, [0.0, 0.0]
    for block in blocks:
        start = time.perf_counter()
        coded = encode(block)
        middle = time.perf_counter()
        decoded = decode(coded)
        times = [times[0] + middle - start, times[1] + time.perf_counter() - middle]
        size += len(coded)
        if decoded != block:
            raise DamageError(f"{method}: other tokens came back")
    return Row(method, tokens.count, tokens.raw_bytes, size, None, *times)


def _find_zpaq() -> tuple[Function, Function] | None:
    """Compressing and decompressing by the package zpaq, else by the program; None where there is neither."""
    try:
        import zpaq

        return lambda data: zpaq.compress(data, level=5), zpaq.decompress
    except ImportError:
        return (_zpaq_program, _zpaq_program_back) if shutil.which("zpaq") else None


def _zpaq_program(data: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokens").write_bytes(data)
        _run_zpaq(folder, "a", "out.zpaq", "tokens", "-m5")
        return (Path(folder) / "out.zpaq").read_bytes()


def _zpaq_program_back(coded: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "out.zpaq").write_bytes(coded)
        _run_zpaq(folder, "x", "out.zpaq")
        return (Path(folder) / "tokens").read_bytes()


def _run_zpaq(folder: str, *arguments: str) -> None:
    try:
        subprocess.run(["zpaq", *arguments], cwd=folder, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DependencyError("the program zpaq fails here; remove it, or mend it") from error


def vqcomp_rows(
    tokens: Tokens,
    name: str,
    compute: Compute | None = None,
    progress: Progress | None = None,
    *,
    adapt: bool = True,
    model: ModelFile | None = None,
) -> Iterator[Row]:
    """The row of a zip by one model, written, decoded and compared; name: as `api.compress` takes it, or of `model`."""
    progress = progress or Progress()
    # The order in which they lie in their files is that in which to read them; sorting by these keys keeps it.
    data: Mapping[str, SegmentSource] = {f"{i:08}": s for i, s in enumerate(tokens.segments)}
    with tempfile.TemporaryDirectory() as folder:
        out, choice = Path(folder) / "out.zip", name
        if model and shipped_models().get(name) is not model:
            choice = str(Path(folder) / f"{Path(name).name}.vqm")
            Path(choice).write_bytes(model.data)
        start = time.perf_counter()
        api.compress(data, out, model=choice, adapt=adapt, verify=False, compute=compute, progress=progress)
        encoding, decoding = time.perf_counter() - start, 0.0
        sources = {s.name: s for s in tokens.segments}
        start = time.perf_counter()
        with Archive(out, compute) as archive:
            progress.begin("decoding", len(archive), archive.tokens)
            for segment, array in archive.decode(advance=lambda n: progress.advance(0, n)):
                decoding += time.perf_counter() - start
                if not np.array_equal(array, sources[segment].array()):
                    raise DamageError(f"{segment}: other tokens came back; please report this")
                progress.advance(1, 0)
                start = time.perf_counter()
            progress.end()
            summary = summarize(archive, encoding)
    options = "" if adapt else " --no-adapt"
    yield Row(
        f"vqcomp --model {name}{options}", tokens.count, summary.raw_bytes, summary.payload_bytes, summary.zip_bytes,
        encoding, decoding,
    )  # fmt: skip


def models_of(choices: Iterable[str]) -> list[ModelFile]:
    """Models besides those that ship, as `--model` names them. Raises ModelError."""
    return [find_model(choice, "--model") for choice in choices if choice not in shipped_models()]


def require_matplotlib() -> None:
    """Raise DependencyError where there is none."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise DependencyError("--plot needs matplotlib: pip install 'vqcomp[plot]'") from error


def plot(rows: Sequence[Row], share: float, path: Path) -> None:
    """Draw the rate of all data against tokens/s, of encoding (filled) and decoding (hollow); the suffix is the format.

    Raises DependencyError (no matplotlib) or InputError.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for i, row in enumerate(rows):
        color, marker, rate = f"C{i % 10}", "osD^v"[i // 10 % 5], row.rate_of(share)  # there are ten colours
        speeds = [row.tokens / max(seconds, 1e-9) for seconds in (row.encode_seconds, row.decode_seconds)]
        axes.plot(speeds, [rate, rate], color=color, linewidth=0.8)
        axes.scatter(speeds[:1], [rate], color=color, marker=marker, label=row.method)
        axes.scatter(speeds[1:], [rate], edgecolors=color, facecolors="none", marker=marker)
    axes.set(xscale="log", xlabel="tokens/s: encoding filled, decoding hollow", ylabel="rate")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the plot cannot be written: {error}") from error
