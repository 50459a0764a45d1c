"""Speed of the shipped model: encoding, decoding, and their share of what this machine's matrix products allow.

    python benchmarks/speed.py [--model NAME] [--frames N] [--threads N]

Medians of five. The limit is the time that torch takes for the network's matrix products alone, at the very shapes and
on the very weights. Memory: the peak of a process that compresses 200 short segments, over that for 20.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from data import example, synthetic

from vqcomp.model_files import shipped_models
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.gpt import GPTCodec
from vqcomp.runtime.kinds import make_codec

MEMORY = """
import resource, sys, tempfile
from pathlib import Path
sys.path.insert(0, {benchmarks!r})
from data import synthetic
import vqcomp
tokens = {{f"{{i:03}}.npy": synthetic(16, i) for i in range({segments})}}
with tempfile.TemporaryDirectory() as folder:
    vqcomp.compress(tokens, Path(folder) / "out.zip", model={model!r}, verify=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def median(action: Callable[[], object], repeats: int = 5) -> float:
    """Seconds."""
    action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def products(codec: GPTCodec, rows: int) -> tuple[float, float]:
    """(seconds, GFLOP) of all weight matrix products of one forward pass of `rows` rows."""
    engine = codec.engine
    matrices = [w for block in engine.blocks for w, _ in block.values()] + [w for w, _ in engine.head + engine.output]
    matrices += [engine.flags[0]] if engine.flags else []
    inputs = [torch.randint(-127, 128, (rows, len(w))).float() for w in matrices]
    flop = sum(2 * rows * w.shape[0] * w.shape[1] for w in matrices)

    def run() -> None:
        for x, w in zip(inputs, matrices, strict=True):
            torch.mm(x, w)

    return median(run, 25), flop / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    compute = Compute("cpu", arguments.threads, jobs=1)
    models = shipped_models()
    model = models[arguments.model] if arguments.model else max(models.values(), key=lambda m: len(m.data))
    codec = make_codec(model.spec, model.data, compute=compute)
    assert isinstance(codec, GPTCodec)
    real = example()
    source = synthetic(1200, 0) if real is None else real
    source = source.reshape(len(source), -1, 1).astype(np.int32)
    print(f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}, model {model.name}, "
          f"{'synthetic tokens' if real is None else 'the example'}")  # fmt: skip

    limits = {rows: products(codec, rows) for rows in (1024, 128)}
    for rows, (seconds, gflop) in limits.items():
        print(f"matrix products of {rows:5} rows: {gflop / seconds:6.1f} GFLOP/s, {rows / seconds:9,.0f} tokens/s")
    speeds: dict[str, tuple[float, float]] = {}
    for count in (1, 8):
        frames = arguments.frames // count
        groups = [[source[i * frames : (i + 1) * frames]] for i in range(count)]
        lengths, tokens = [[frames]] * count, count * frames * source.shape[1]
        streams = codec.encode(groups)
        encode = tokens / median(lambda groups=groups: codec.encode(groups))
        decode = tokens / median(lambda s=streams, n=lengths: codec.decode(s, n))
        speeds[f"gpt {count}"] = encode, decode
        limit_in = 1024 / limits[1024][0]
        limit_out = 1024 / limits[1024][0] if count > 1 else 128 / limits[128][0]
        coded = f"encode {encode:9,.0f} tokens/s ({encode / limit_in:.2f} of the limit)"
        print(
            f"{count} segments: {coded}, decode {decode:9,.0f} ({decode / limit_out:.2f}), ratio {decode / encode:.2f}"
        )

    for name, data in (("adaptive", None), ("mixed", model.data)):
        learning = make_codec(model.spec, data, adapt=True, compute=compute)
        for count in (1, 8):
            frames = arguments.frames // count
            groups = [[source[i * frames : (i + 1) * frames] for i in range(count)]]
            lengths, tokens = [[frames] * count], count * frames * source.shape[1]
            streams = learning.encode(groups)
            encode = tokens / median(lambda g=groups, c=learning: c.encode(g), 3)
            decode = tokens / median(lambda s=streams, n=lengths, c=learning: c.decode(s, n), 3)
            print(f"{name}, {count} segments: encode {encode:9,.0f} tokens/s, decode {decode:9,.0f}")
            speeds[f"{name} {count}"] = encode, decode

    peaks = {}
    for segments in (20, 200):
        script = MEMORY.format(benchmarks=os.path.dirname(__file__), segments=segments, model=model.name)
        run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
        peaks[segments] = int(run.stdout) / 1024
    print(f"peak memory: {peaks[20]:.0f} MiB for 20 segments, {peaks[200]:.0f} MiB for 200")
    print(json.dumps({"speeds": speeds, "peaks": peaks}), file=sys.stderr)


if __name__ == "__main__":
    main()
