"""From a model file to an engine that has proven itself on this machine."""

from __future__ import annotations

import zlib

import numpy as np

from .compute import Compute
from .engine import Engine
from .errors import ModelError, PlatformError
from .exact import make_ops
from .layout import LARGE_MODEL
from .spec import TokenSpec
from .tables import Tables
from .weights import read_model


def load_engine(spec: TokenSpec, model: bytes, compute: Compute) -> Engine:
    """The engine of a .vqm, after its self-test, for tokens of `spec`.

    Raises ModelError if the tokens are not what the model predicts, PlatformError if this machine's arithmetic does
    not give the self-test's result; DamageError, InputError, DependencyError.
    """
    config, tensors, check = read_model(model)
    if spec != config.spec:
        raise ModelError(f"the model predicts {config.spec}, the tokens are {spec}")
    ops = make_ops(compute.device, compute.threads)
    if len(model) >= LARGE_MODEL:
        from .products import fastest

        ops = fastest(ops, config)
    engine = Engine(config, tensors, ops)
    if self_test(engine) != check:
        raise PlatformError(
            f"{ops.name}: the self-test's arithmetic is not exact on this machine; "
            "try another device (--device cpu, --device numpy)"
        )
    return engine


def self_test(engine: Engine) -> int:
    """CRC-32 of the frequency tables of three frames of fixed tokens, two predicted at once and one alone."""
    spec = engine.config.spec
    state, tokens, x = engine.start(1), np.full((1, 3, spec.positions, len(spec.factors)), -1, np.int64), 1
    for t in (1, 2):
        for s in range(spec.positions):
            x = (1103515245 * x + 12345) & 0x7FFFFFFF
            # Half of the second frame repeats the first, so that flags and copies are at work.
            tokens[0, t, s] = tokens[0, 1, s] if t == 2 and s % 2 else [(x >> 8) % v for v in spec.factors]
    crc = 0
    with engine.ops.settings():
        for previous in (tokens[:, :2], tokens[:, 2:]):
            for logits in engine.forward(state, previous):
                tables = Tables(logits, engine.ops)
                crc = zlib.crc32(engine.ops.host(tables.w).astype("<i4").tobytes(), crc)
    return crc
