"""Compression rates of vqcomp and of general-purpose compressors, on the real segment or on synthetic ones.

    python benchmarks/compression_rate.py [--json] [--record]

Exits with 1 if a rate falls below the one in recorded.json; --record writes it anew. Raw is 10 bits a token.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from data import example, synthetic

from vqcomp import bench
from vqcomp.bench import Row, Tokens
from vqcomp.data.specs import COMMAVQ
from vqcomp.model_files import shipped_models
from vqcomp.runtime.kinds import make_codec

RECORDED = Path(__file__).with_name("recorded.json")
TRAINED_FRAMES = 900
UNSEEN = ("none", "commavq-nano")
"""commavq-nano was trained on the first 900 frames of the example, so what follows is new to it; the other models were
trained on all: their rates are no measure of what they do elsewhere, and are here to notice a change for the worse."""


def whole_zips(tokens: Tokens) -> Iterator[Row]:
    """The zip with its decoder, weights and manifest, written, decoded and compared."""
    for model in ("none", "auto"):
        yield from bench.vqcomp_rows(tokens, model)


def last_frames(tokens: np.ndarray, first: int) -> Iterator[Row]:
    """Frames from `first` on: given those before (the difference of two streams' lengths), and as a segment, cold."""
    segment = tokens.reshape(len(tokens), -1, 1).astype(np.int32)

    def row(method: str, size: int) -> Row:
        count = segment[first:].size
        return Row(method, count, count * COMMAVQ.bits // 8, size)

    models = {"none": None, **{m.name: m.data for m in shipped_models().values() if m.spec == COMMAVQ}}
    for name, data in models.items():
        codec = make_codec(COMMAVQ, data)
        whole, start = (len(codec.encode([[x]])[0]) for x in (segment, segment[:first]))
        option = " --no-adapt" if data else ""
        yield row(f"vqcomp --model {name}{option}, frames {first}..", whole - start)
    for name, data in models.items():
        cold = make_codec(COMMAVQ, data, adapt=True).encode([[segment[first:]]])[0]
        yield row(f"vqcomp --model {name}, frames {first}.., cold", len(cold))


def counted(row: Row) -> str:
    """What `row.bytes` counts."""
    if row.zip_bytes is not None:
        return "the whole zip"
    shipped = row.method.startswith("vqcomp") and not any(f"--model {name}" in row.method for name in UNSEEN)
    return "coded tokens, trained on" if shipped else "coded tokens"


def measure() -> Iterator[Row]:
    real = example()
    if real is None:
        print("no real segment in $VQCOMP_DATA or ../shared: synthetic tokens only", file=sys.stderr)
    else:
        tokens = bench.load({"example.npy": real}, everything=True)
        yield from bench.general_purpose(tokens, level=22, report=lambda line: print(line, file=sys.stderr))
        yield from whole_zips(tokens)
        yield from last_frames(real, TRAINED_FRAMES)
    for row in whole_zips(bench.load({"synthetic.npy": synthetic(300, 0)}, everything=True)):
        yield replace(row, method=f"{row.method}, synthetic")


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
            f"{row.method:56} {row.bytes:9,} {row.rate:7.4f} {row.bits_per_token:11.4f}  {counted(row)}{note}",
            file=sys.stderr,
        )
    if "--json" in arguments:
        print(json.dumps([{**r.as_table(), "counted": counted(r)} for r in rows]))
    if "--record" in arguments:
        # Rounded down: another zlib may take some bytes more for the decoder.
        rates = {r.method: int(r.rate * 100) / 100 for r in rows if r.method.startswith("vqcomp")}
        RECORDED.write_text(json.dumps({**recorded, **rates}, indent=1) + "\n")
    print(f"{len(rows) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
