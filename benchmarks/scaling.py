"""Projects the size of network that makes a whole zip smallest, and the rate it would give. docs/scaling.md explains.

    python benchmarks/scaling.py [--bits-per-weight 4.3] [--tokens-per-segment 153600]

    zip(N, n) = n T b(N) / 8 + N w / 8 + r        b(N) = b1 N^-a

N weights, n segments of T tokens; b bits/token, a power law through published results; w coded bits a weight and r
bytes of decoder, both measured on what ships.
"""

from __future__ import annotations

import argparse
import zlib

import numpy as np

from vqcomp.archive.packing import bootstrap, roots, runtime_archive
from vqcomp.model_files import shipped_models
from vqcomp.runtime.kinds import MIXED
from vqcomp.runtime.weights import read_model

PUBLISHED = {4.0e6: 3.36, 9.4e6: 3.18, 33e6: 2.94}
"""Bits/token by parameters, on the whole of commaVQ after some 14 billion tokens of training; by others (README)."""
SEGMENTS = (20, 100, 1_000, 5_000, 100_000)


def power_law() -> tuple[float, float]:
    """(b at one weight, exponent a), by least squares of the logarithms."""
    slope, start = np.polyfit(np.log(list(PUBLISHED)), np.log(list(PUBLISHED.values())), 1)
    return float(np.exp(start)), float(-slope)


def bits_per_weight() -> float:
    """Of all shipped models together, headers and scales counted."""
    models = shipped_models().values()
    return 8 * sum(len(m.data) for m in models) / sum(read_model(m.data)[0].parameters() for m in models)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits-per-weight", type=float, default=bits_per_weight())
    parser.add_argument("--tokens-per-segment", type=int, default=1200 * 128)
    arguments = parser.parse_args()
    w, tokens = arguments.bits_per_weight, arguments.tokens_per_segment
    start, exponent = power_law()
    runtime = runtime_archive(roots([MIXED], files=False, workers=True))
    decoder = len(runtime) + len(zlib.compress(bootstrap(runtime), 9))
    print(f"b(N) = {start:.2f} N^-{exponent:.4f} bits/token, w = {w:.2f} bits/weight, decoder {decoder:,} bytes\n")
    print(f"{'segments':>9} {'weights':>14} {'bits/token':>11} {'payload':>15} {'model':>13} {'share':>6} {'rate':>6}")
    sizes = np.geomspace(1e5, 1e10, 5001)
    bits = start * sizes**-exponent
    for n in SEGMENTS:
        totals = n * tokens * bits / 8 + sizes * w / 8 + decoder
        i = int(totals.argmin())
        payload, model = n * tokens * bits[i] / 8, sizes[i] * w / 8
        print(
            f"{n:9,} {sizes[i]:14,.0f} {bits[i]:11.3f} {payload:15,.0f} {model:13,.0f} {model / totals[i]:6.1%} "
            f"{n * tokens * 10 / 8 / totals[i]:6.3f}"
        )


if __name__ == "__main__":
    main()
