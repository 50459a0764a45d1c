"""Compression rates of vqcomp and of general-purpose compressors, on the real segment or on synthetic ones.

    python benchmarks/compression_rate.py [--json] [--record]

Exits with 1 if a rate falls below the one in recorded.json; --record writes it anew. Raw is 10 bits a token.
"""

from __future__ import annotations

import json
import lzma
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import zstandard
from data import example, synthetic

import vqcomp
from vqcomp.model_files import shipped_models
from vqcomp.runtime.kinds import make_codec
from vqcomp.runtime.spec import TokenSpec

RECORDED = Path(__file__).with_name("recorded.json")
COMMAVQ = TokenSpec(8, 16, (1024,))
TRAINED_FRAMES = 900
UNSEEN = ("none", "commavq-nano")
"""commavq-nano was trained on the first 900 frames of the example, so what follows is new to it; the other models were
trained on all: their rates are no measure of what they do elsewhere, and are here to notice a change for the worse."""


@dataclass(frozen=True)
class Row:
    method: str
    tokens: int
    bytes: int
    counted: str
    """What `bytes` counts: all of a zip, or the coded tokens alone."""

    @property
    def rate(self) -> float:
        return self.tokens * 10 / 8 / self.bytes

    @property
    def bits_per_token(self) -> float:
        return 8 * self.bytes / self.tokens


def general_purpose(tokens: np.ndarray) -> Iterator[Row]:
    """Tokens position by position, as comma's own example arranges them."""
    data = np.ascontiguousarray(tokens.reshape(len(tokens), -1).T).tobytes()
    yield Row("zstd -22", tokens.size, len(zstandard.ZstdCompressor(22).compress(data)), "coded tokens")
    yield Row("lzma (comma's example)", tokens.size, len(lzma.compress(data)), "coded tokens")
    if shutil.which("zpaq"):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "tokens").write_bytes(data)
            subprocess.run(["zpaq", "a", "out.zpaq", "tokens", "-m5"], cwd=folder, check=True, capture_output=True)
            yield Row("zpaq -m5", tokens.size, (Path(folder) / "out.zpaq").stat().st_size, "coded tokens")
    else:
        print("zpaq is not installed (Debian: apt-get install zpaq): left out", file=sys.stderr)


def whole_zips(name: str, tokens: np.ndarray) -> Iterator[Row]:
    """The zip with its decoder, weights and manifest, written, decoded and compared."""
    for model in ("none", "auto"):
        with tempfile.TemporaryDirectory() as folder:
            summary = vqcomp.compress({f"{name}.npy": tokens}, Path(folder) / "out.zip", model=model)
        yield Row(f"vqcomp --model {model}", tokens.size, summary.zip_bytes, "the whole zip")


def last_frames(tokens: np.ndarray, first: int) -> Iterator[Row]:
    """Frames from `first` on: given those before (the difference of two streams' lengths), and as a segment, cold."""
    segment = tokens.reshape(len(tokens), -1, 1).astype(np.int32)
    models = {"none": None, **{m.name: m.data for m in shipped_models().values() if m.spec == COMMAVQ}}
    for name, data in models.items():
        codec = make_codec(COMMAVQ, data)
        whole, start = (len(codec.encode([[x]])[0]) for x in (segment, segment[:first]))
        option = " --no-adapt" if data else ""
        yield Row(
            f"vqcomp --model {name}{option}, frames {first}..", segment[first:].size, whole - start, counted(name)
        )
    for name, data in models.items():
        cold = make_codec(COMMAVQ, data, adapt=True).encode([[segment[first:]]])[0]
        yield Row(f"vqcomp --model {name}, frames {first}.., cold", segment[first:].size, len(cold), counted(name))


def counted(model: str) -> str:
    return "coded tokens" if model in UNSEEN else "coded tokens, trained on"


def measure() -> Iterator[Row]:
    real = example()
    if real is None:
        print("no real segment in $VQCOMP_DATA or ../shared: synthetic tokens only", file=sys.stderr)
    else:
        yield from general_purpose(real)
        yield from whole_zips("example", real)
        yield from last_frames(real, TRAINED_FRAMES)
    for row in whole_zips("synthetic", synthetic(300, 0)):
        yield Row(f"{row.method}, synthetic", row.tokens, row.bytes, row.counted)


def main(arguments: list[str]) -> int:
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    rows, failed = [], []
    print(f"{'method':56} {'bytes':>9} {'rate':>7} {'bits/token':>11}  counted", file=sys.stderr)
    for row in measure():
        rows.append(row)
        low = row.method.startswith("vqcomp") and row.rate < recorded.get(row.method, 0)
        failed += [row] if low else []
        note = f"  BELOW THE RECORDED {recorded[row.method]}" if low else ""
        print(
            f"{row.method:56} {row.bytes:9,} {row.rate:7.4f} {row.bits_per_token:11.4f}  {row.counted}{note}",
            file=sys.stderr,
        )
    if "--json" in arguments:
        print(json.dumps([{**asdict(r), "rate": r.rate, "bits_per_token": r.bits_per_token} for r in rows]))
    if "--record" in arguments:
        # Rounded down: another zlib may take some bytes more for the decoder.
        rates = {r.method: int(r.rate * 100) / 100 for r in rows if r.method.startswith("vqcomp")}
        RECORDED.write_text(json.dumps({**recorded, **rates}, indent=1) + "\n")
    print(f"{len(rows) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
