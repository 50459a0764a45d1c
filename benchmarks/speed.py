"""Speed of the networks: encoding, decoding and training, and their share of what the machine's matrix products allow.

    python benchmarks/speed.py [--model NAME,NAME] [--device cpu|cuda|numpy] [--batches 1,8] [--frames N]
                               [--threads N] [--cpu-time] [--train base,large] [--learning] [--memory]
                               [--json FILE] [--plot FILE]

A model is one that ships, or a preset, with random weights and tokens drawn from it. Speeds are medians of five, of
coding B segments together. The limit is the time that the network's matrix products alone take: on the very shapes, in
the kind that was chosen and in float32. --train: presets, a few steps each; the share is that of the rate at which this
machine multiplies bfloat16. --learning: what learns while it codes, alone and on top. --memory: the peak of a process
that compresses 200 short segments, over that for 20. --json adds what was measured to a file, --plot draws such a file.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import example, synthetic

from vqcomp.model_files import shipped_models
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.config import ModelConfig
from vqcomp.runtime.engine import Engine
from vqcomp.runtime.exact import NumpyOps, TorchOps, make_ops
from vqcomp.runtime.gpt import ROWS, GPTCodec
from vqcomp.runtime.kinds import make_codec
from vqcomp.runtime.loading import self_test
from vqcomp.runtime.products import shapes_of
from vqcomp.runtime.spec import TokenSpec
from vqcomp.runtime.weights import read_config, write_model
from vqcomp.training.config import TrainConfig
from vqcomp.training.model import FrameGPT
from vqcomp.training.presets import PRESETS
from vqcomp.training.record import Moment
from vqcomp.training.trainer import train
from vqcomp.world.draw import draw

SPEC = TokenSpec(8, 16, (1024,))
RIVALS = {"zpaq -m5, no network": (None, 230_000), "a rival's network of 4.5 M": (4_500_000, 1_540)}
"""Weights and tokens/s that others report: predicting only, where there is a network."""
STEPS = 4
"""Of a training that is timed; the first one, in which memory is found, is not."""
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


CLOCKS = [time.perf_counter]
"""The last one is what times are taken by."""


def median(action: Callable[[], object], repeats: int = 5) -> float:
    """Seconds."""
    action()
    times = []
    for _ in range(repeats):
        start = CLOCKS[-1]()
        action()
        times.append(CLOCKS[-1]() - start)
    return statistics.median(times)


def products(ops: NumpyOps | TorchOps, config: ModelConfig, rows: int) -> float:
    """Seconds of all of a network's matrix products of so many rows, on inputs of the type that they like best."""
    total, random = 0.0, np.random.RandomState(0)
    for (n, k), count in shapes_of(config).items():
        weight = ops.weight(random.randint(-63, 64, (n, k)).astype(np.int8))
        x = ops.empty_codes(rows, k)
        x[:] = ops.load(random.randint(-127, 128, (rows, k)))
        total += count * median(lambda x=x, weight=weight: ops.host(ops.linear(x, weight)[:1]))
    return total


def random_model(preset: str) -> bytes:
    """A .vqm of a preset's network, its weights off their start, where gates and biases are zero."""
    torch.manual_seed(0)
    model = FrameGPT(PRESETS[preset].network(SPEC)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * max(0.05, float(p.std(correction=0))))
    network, tensors = model.export()
    return write_model(network, tensors, self_test(Engine(network, tensors, make_ops("cpu"))))


def tokens_for(codec: GPTCodec, shipped: bool, segments: int, frames: int) -> list[list[np.ndarray]]:
    """Segments that the network predicts: pieces of the example, or else drawn from it."""
    real, spec = example() if shipped else None, codec.engine.config.spec
    if real is None or segments > len(real) - frames:
        drawn = draw(codec.engine, frames, 0, range(min(segments, 8)))
        pieces = [spec.split(ids.reshape(frames, -1)).astype(np.int32) for ids, _ in drawn]
    else:
        starts = np.linspace(0, len(real) - frames, segments).astype(int)
        pieces = [real[i : i + frames].reshape(frames, -1, 1).astype(np.int32) for i in starts]
    return [[pieces[i % len(pieces)]] for i in range(segments)]


def coding(name: str, batches: Sequence[int], frames: int, compute: Compute, repeats: int) -> list[dict[str, Any]]:
    """Encode and decode batches of segments by a network."""
    models = shipped_models()
    data = models[name].data if name in models else random_model(name)
    config, _, _ = read_config(data)
    codec = make_codec(config.spec, data, compute=compute)
    assert isinstance(codec, GPTCodec)
    ops, found = codec.engine.ops, []
    kind = ops.gemm if isinstance(ops, TorchOps) else "float32"
    plain = TorchOps(str(ops.device), threads=ops.threads) if kind != "float32" else None
    print(f"{name}, {config.parameters():,} weights, products in {kind}")
    with ops.settings():
        for count in batches:
            groups = tokens_for(codec, name in models, count, frames)
            step = count * config.positions
            chunk = max(step, ROWS["cpu" if ops.on_host else "cuda"] // step * step)
            limits = {rows: [products(o, config, rows) for o in (ops, plain) if o] for rows in {step, chunk}}
            lengths, tokens = [[frames]] * count, count * frames * config.positions
            streams = codec.encode(groups)
            for way, rows, action in (
                ("encode", chunk, lambda g=groups: codec.encode(g)),
                ("decode", step, lambda s=streams, n=lengths: codec.decode(s, n)),
            ):
                speed = tokens / median(action, repeats)
                shares = [speed * seconds / rows for seconds in limits[rows]]
                found.append({
                    "what": way, "model": name, "weights": config.parameters(), "segments": count, "device": ops.name,
                    "products": kind, "tokens/s": round(speed), "share": round(shares[0], 3),
                    "share of float32": round(shares[-1], 3),
                })  # fmt: skip
                print(
                    f"{count:5} segments: {way} {speed:11,.0f} tokens/s, {shares[0]:.2f} of the limit, "
                    f"{shares[-1]:.2f} of that in float32", flush=True,
                )  # fmt: skip
    return found


def multiply_rate(device: str) -> float:
    """FLOP/s of a large product in bfloat16, which trainings are measured against."""
    size = 8192 if device.startswith("cuda") else 1024
    a, b = (torch.ones(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    return 2 * size**3 / median(lambda: torch.mm(a, b)[0, 0].item())


def training(preset: str, device: str, small: bool) -> dict[str, Any]:
    """A few steps of a preset's training, on synthetic tokens."""
    settings = {**PRESETS[preset].settings, "steps": STEPS, "held_out": 0, "held_out_share": 0.0, "patience": 0}
    if small:
        settings |= {"batch": 1, "accumulate": 1, "frames": 4}
    config, network = TrainConfig(**settings), PRESETS[preset].network(SPEC)
    frames = [synthetic(64, i).reshape(64, -1, 1).astype(np.int32) for i in range(4)]
    seen: list[tuple[int, float]] = []

    def watch(moment: Moment) -> None:
        seen.append((moment.step, CLOCKS[-1]()))

    train(frames, network, config, device=device, watch=watch)
    (first, start), (last, end) = seen[0], seen[-1]
    speed = (last - first) * config.windows * config.frames * SPEC.positions / (end - start)
    weights = sum(n * k * count for (n, k), count in shapes_of(network).items())
    peak = multiply_rate(device)
    share = 6 * weights * speed / peak  # two FLOP of a weight forward, four backward
    print(
        f"training {preset}: {speed:,.0f} tokens/s, {share:.3f} of {peak / 1e12:,.2f} TFLOP/s in bfloat16", flush=True
    )
    return {"what": "train", "model": preset, "weights": network.parameters(), "device": device,
            "tokens/s": round(speed), "share": round(share, 4), "peak": round(peak)}  # fmt: skip


def learning(name: str, frames: int, compute: Compute) -> None:
    """What learns while it codes, alone and on top of a network, on the example."""
    real, model = example(), shipped_models()[name]
    source = synthetic(1200, 0) if real is None else real
    source = source.reshape(len(source), -1, 1).astype(np.int32)
    for kind, data in (("adaptive", None), ("mixed", model.data)):
        codec = make_codec(model.spec, data, adapt=True, compute=compute)
        for count in (1, 8):
            length = frames // count
            groups = [[source[i * length : (i + 1) * length] for i in range(count)]]
            lengths, tokens = [[length] * count], count * length * source.shape[1]
            streams = codec.encode(groups)
            encode = tokens / median(lambda g=groups, c=codec: c.encode(g), 3)
            decode = tokens / median(lambda s=streams, n=lengths, c=codec: c.decode(s, n), 3)
            print(f"{kind}, {count} segments: encode {encode:9,.0f} tokens/s, decode {decode:9,.0f}", flush=True)


def memory(name: str) -> None:
    """Print the peaks of two processes that compress."""
    peaks = {}
    for segments in (20, 200):
        script = MEMORY.format(benchmarks=os.path.dirname(__file__), segments=segments, model=name)
        run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
        peaks[segments] = int(run.stdout) / 1024
    print(f"peak memory: {peaks[20]:.0f} MiB for 20 segments, {peaks[200]:.0f} MiB for 200")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """tokens/s against weights, for encoding and decoding, each with the share of its limit; rivals' points."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "vqcomp", "svg.fonttype": "none"}
    from matplotlib import pyplot as plt

    figure, (speeds, shares) = plt.subplots(2, 1, figsize=(7, 7), sharex=True, height_ratios=(2, 1))
    coded = [row for row in rows if row["what"] != "train"]
    kinds = dict.fromkeys((row["what"], row["segments"]) for row in coded)
    for number, (way, count) in enumerate(kinds):
        points = sorted((r["weights"], r["tokens/s"], r["share"]) for r in coded
                        if (r["what"], r["segments"]) == (way, count))  # fmt: skip
        style = {
            "marker": "o^sv"[number % 4],
            "color": f"C{number}",
            "label": f"{way}, {count} segment{'s' * (count > 1)}",
        }
        speeds.loglog([p[0] for p in points], [p[1] for p in points], **style)
        shares.semilogx([p[0] for p in points], [p[2] for p in points], **style)
    for name, (weights, speed) in RIVALS.items():
        if weights:
            speeds.plot(weights, speed, "kx", label=name)
        else:
            speeds.axhline(speed, color="k", linestyle=":", label=name)
    speeds.set_ylabel("tokens/s")
    speeds.legend(fontsize=8)
    shares.set(xlabel="weights", ylabel="share of the limit", ylim=(0, 1))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="commavq-small", metavar="NAME,NAME")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", default=None, metavar="N,N", help="[default: 1,8; on a GPU 8,64,512,4096]")
    parser.add_argument("--frames", type=int, default=25, help="of each segment")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--cpu-time", action="store_true", help="measure the process's CPU time: for one thread, where others work, too"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--train", default="", metavar="PRESET,PRESET")
    parser.add_argument("--tiny-steps", action="store_true", help="train on one short window a step, as CPUs can")
    parser.add_argument("--learning", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    if chosen.cpu_time:
        CLOCKS.append(time.process_time)
    compute = Compute(chosen.device, chosen.threads, jobs=1)
    cuda = chosen.device.startswith("cuda")
    batches = [int(n) for n in (chosen.batches or ("8,64,512,4096" if cuda else "1,8")).split(",")]
    machine = torch.cuda.get_device_name() if cuda else platform.machine()
    print(f"{machine}, {chosen.threads} threads, torch {torch.__version__}")
    names = [name for name in chosen.model.split(",") if name]
    found = []
    for name in names:
        found += coding(name, batches, chosen.frames, compute, chosen.repeats)
    found += [training(preset, chosen.device, chosen.tiny_steps) for preset in chosen.train.split(",") if preset]
    if chosen.learning:
        learning(names[0], 8 * chosen.frames, compute)
    if chosen.memory:
        memory(names[0])
    if chosen.json:
        known = json.loads(chosen.json.read_text()) if chosen.json.exists() else []
        # One row of a line each, so that a change of the file can be read.
        rows = [{"machine": machine, "threads": chosen.threads, **row} for row in found]
        found = known + rows
        chosen.json.write_text("[\n" + ",\n".join(json.dumps(row) for row in found) + "\n]\n")
    if chosen.plot:
        plot(found, chosen.plot)


if __name__ == "__main__":
    main()
