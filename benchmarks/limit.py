"""How far from the limit: tokens drawn from a network, whose information content is known, coded by what learned them.

    python benchmarks/limit.py [--from commavq-nano] [--segments 1,8,64,512] [--frames 32] [--presets pico,nano]

The limit is what the tokens take under the network that they were drawn from. Measured against it, in bits/token: that
network itself; the learner, which starts from nothing, on N segments; and networks of several sizes, each trained from
nothing for so many steps on N segments, alone and with learning on top, on EIGHT others. docs/scaling.md has the table.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from vqcomp import api
from vqcomp.model_files import find_model
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.kinds import make_codec
from vqcomp.runtime.spec import TokenSpec
from vqcomp.runtime.weights import read_config
from vqcomp.world.draw import COSTS, write_drawn

EIGHT = 8
"""Segments that are held back: they are what the trained networks are measured on."""
STOPPING = {"evaluate_every": 100, "patience": 3}
"""A network that learns one segment by heart is best long before its last step."""
ONE = Compute(threads=1, jobs=1)


def bits_per_token(segments: list[np.ndarray], spec: TokenSpec, model: bytes | None, *, adapt: bool) -> float:
    """Of the coded tokens (no weights, no decoder) of segments (T, S, F), coded as `compress` groups them."""
    codec = make_codec(spec, model, adapt=adapt, compute=ONE)
    groups = [segments[i : i + codec.group_size] for i in range(0, len(segments), codec.group_size)]
    streams = [len(stream) for i in range(0, len(groups), 16) for stream in codec.encode(groups[i : i + 16])]
    return 8 * sum(streams) / sum(s.shape[0] * s.shape[1] for s in segments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", default="commavq-nano")
    parser.add_argument("--segments", default="1,8,64,512")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--presets", default="pico,nano")
    parser.add_argument("--steps", type=int, default=800, metavar="N", help="of each training, at most")
    parser.add_argument("--held-out", type=int, default=8, metavar="N", help="frames that choose the trained weights")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts, model = [int(n) for n in arguments.segments.split(",")], find_model(arguments.source, "--from")
    spec = model.spec
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_drawn(folder / "all", model, EIGHT + max(counts), arguments.frames, arguments.seed, compute=ONE)
        costs = json.loads((folder / "all" / COSTS).read_text())["segments"]
        names = sorted(costs)
        per_segment = arguments.frames * spec.positions

        def tokens(chosen: list[str]) -> list[np.ndarray]:
            arrays = (np.load(folder / "all" / name) for name in chosen)
            return [spec.split(a.reshape(len(a), -1).astype(np.int32)) for a in arrays]

        def limit(chosen: list[str]) -> float:
            return sum(costs[name] for name in chosen) / (len(chosen) * per_segment)

        others, after = names[:EIGHT], names[EIGHT:]
        floor = limit(others)
        own = bits_per_token(tokens(others), spec, model.data, adapt=False)
        print(
            f"{model.name} itself: the limit {floor:.4f} bits/token, coded {own:.4f}, {own / floor - 1:+.4%}",
            flush=True,
        )
        print(
            f"{'segments':>8} {'learned by':>10} {'weights':>9} {'alone':>9} {'over':>8} {'+ learner':>9} {'over':>8}"
        )
        for count in counts:
            chosen = after[:count]
            learner = bits_per_token(tokens(chosen), spec, None, adapt=True)
            print(f"{count:8} {'learner':>10} {'':37} {learner:9.4f} {learner - limit(chosen):+8.4f}", flush=True)
            data = [folder / "all" / name for name in chosen]
            for preset in arguments.presets.split(","):
                trained = folder / f"{preset}-{count}.vqm"
                settings = {"steps": arguments.steps, "held_out": arguments.held_out, "seed": 0, **STOPPING}
                api.train(data, trained, settings, preset=preset, device="cpu", threads=1)
                weights = trained.read_bytes()
                alone, mixed = (bits_per_token(tokens(others), spec, weights, adapt=a) for a in (False, True))
                print(
                    f"{count:8} {preset:>10} {read_config(weights)[0].parameters():9,} {alone:9.4f} "
                    f"{alone - floor:+8.4f} {mixed:9.4f} {mixed - floor:+8.4f}", flush=True,
                )  # fmt: skip


if __name__ == "__main__":
    main()
