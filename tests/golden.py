"""Pinned bytes of a tiny model and tiny tokens. After a wanted change of arithmetic or format, write them anew:

python tests/golden.py
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from networks import random_segment, random_tensors, tiny_config

from vqcomp.runtime.coder import Encoder
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.engine import Engine
from vqcomp.runtime.exact import NumpyOps
from vqcomp.runtime.kinds import make_codec
from vqcomp.runtime.loading import self_test
from vqcomp.runtime.spec import TokenSpec
from vqcomp.runtime.tables import partition, put_symbols
from vqcomp.runtime.weights import read_config, write_model

FILE = Path(__file__).with_name("golden.json")
CONFIG = tiny_config()


def model() -> bytes:
    tensors = random_tensors(CONFIG)
    return write_model(CONFIG, tensors, self_test(Engine(CONFIG, tensors, NumpyOps())))


def logits() -> np.ndarray:
    """Of the last of three frames, (S, V)."""
    engine = Engine(CONFIG, random_tensors(CONFIG), NumpyOps())
    tokens = random_segment(CONFIG.spec, 3)[None]
    previous = np.concatenate([np.full_like(tokens[:, :1], -1), tokens[:, :2]], 1)
    return engine.forward(engine.start(1), previous)[0].reshape(3, CONFIG.positions, -1)[2]


def predicted() -> np.ndarray:
    """A segment (5, S, F) of tokens that the network foresees: what a stream of random words decodes to."""
    stream = np.random.RandomState(0).bytes(4000)
    ((segment,),) = make_codec(CONFIG.spec, model(), compute=Compute("numpy")).decode([stream], [[5]])
    return segment


def words() -> list[int]:
    encoder = Encoder()
    put_symbols(encoder, np.arange(8), partition(np.add.outer(np.arange(8), np.arange(8)) ** 3))
    return np.frombuffer(encoder.finish(), "<u4").tolist()


def compute() -> dict[str, Any]:
    """Everything that is pinned, as JSON would hold it."""
    segment = predicted()
    small, factored = TokenSpec(2, 3, (20,)), TokenSpec(3, 4, (300, 5))
    mixed = make_codec(CONFIG.spec, model(), adapt=True, compute=Compute("numpy"))
    adaptive = make_codec(small, None).encode([[random_segment(small, 6, n) for n in range(2)]])[0]
    two = make_codec(factored, None).encode([[random_segment(factored, 30), random_segment(factored, 20, 1)]])[0]
    return {
        "range coder words": words(),
        "logits of the last frame, first position": logits()[0].astype(int).tolist(),
        # The config before it is deflated, which zlib's versions do differently.
        "weights stream sha256": hashlib.sha256(model()[read_config(model())[2] : -4]).hexdigest(),
        "self-test": self_test(Engine(CONFIG, random_tensors(CONFIG), NumpyOps())),
        "gpt stream": make_codec(CONFIG.spec, model(), compute=Compute("numpy")).encode([[segment]])[0].hex(),
        "adaptive stream": adaptive.hex(),
        "adaptive stream of two factors, sha256": hashlib.sha256(two).hexdigest(),
        "mixed stream": mixed.encode([[segment]])[0].hex(),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(compute(), indent=1) + "\n")
