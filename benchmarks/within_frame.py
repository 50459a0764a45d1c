"""What it is worth to a network to know some tokens of the frame that it predicts: bits/token when coded in steps.

    python benchmarks/within_frame.py MODEL.vqm SEGMENT.npy [--first N] [--steps 1,2,4,...]

Frames from N on, each coded in so many groups of tokens, a group predicted at once from the past and the groups before.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vqcomp.model_files import read_model_file
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.loading import load_engine
from vqcomp.world.segment import read_segment
from vqcomp.world.within_frame import bits_by_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("segment")
    parser.add_argument("--first", type=int, default=900)
    parser.add_argument("--steps", default="1")
    arguments = parser.parse_args()
    model = read_model_file(arguments.model)
    engine = load_engine(model.spec, model.data, Compute())
    tokens = read_segment(arguments.segment, known=model.spec).tokens
    for steps in map(int, arguments.steps.split(",")):
        bits = bits_by_steps(engine, tokens, arguments.first, steps)
        print(f"{steps:4} steps: {bits:.4f} bits/token", flush=True)


if __name__ == "__main__":
    main()
