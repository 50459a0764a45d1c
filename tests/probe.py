"""Run by test_exactness.py in many environments: writes an archive, prints its hash, and reads that of the first run,
by the package and by the decoder in the zip.

python tests/probe.py FOLDER
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
from networks import random_tensors, tiny_config
from shipped import imported

import vqcomp
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.engine import Engine
from vqcomp.runtime.exact import NumpyOps
from vqcomp.runtime.kinds import make_codec
from vqcomp.runtime.layout import STREAMS
from vqcomp.runtime.loading import self_test
from vqcomp.runtime.weights import write_model


def main(folder: Path) -> None:
    device = os.environ.get("VQCOMP_PROBE_DEVICE", "cpu")
    # Wide enough that BLAS libraries choose their blocked and vectorised kernels.
    config = tiny_config(height=4, width=8, factors=(300,), dim=128, head_dim=32, hidden=256, rank=32, window=4)
    tensors = random_tensors(config)
    model = folder / "model.vqm"
    if not model.exists():
        model.write_bytes(write_model(config, tensors, self_test(Engine(config, tensors, NumpyOps()))))
    # What random words decode to is as the network predicts it: other tokens would be coded uniformly.
    random, lengths = np.random.RandomState(0), (12, 7, 20)
    codec = make_codec(config.spec, model.read_bytes(), compute=Compute("numpy"))
    drawn = codec.decode([random.bytes(8 * n * config.positions) for n in lengths], [[n] for n in lengths])
    segments = {f"segment-{i}.npy": x.reshape(-1, 4, 8).astype(np.int16) for i, (x,) in enumerate(drawn)}
    archive = folder / f"{os.getpid()}.zip"
    vqcomp.compress(segments, archive, model=str(model), compute=Compute(device), verify=False)
    first = folder / "first.zip"
    if not first.exists():
        first.write_bytes(archive.read_bytes())
    with vqcomp.open(first, compute=Compute(device)) as reader:
        payload = zipfile.ZipFile(first).getinfo(STREAMS).file_size
        assert 8 * payload < reader.tokens * np.log2(300), "coded uniformly"
        found = {name: reader[name] for name in segments}
    unpacked = folder / f"unpacked-{os.getpid()}"
    zipfile.ZipFile(first).extractall(unpacked)
    with imported(unpacked) as module, module("reader").Reader(unpacked, module("compute").Compute(device)) as reader:
        shipped = dict(reader.decode_segments(segments, {}))
    for name, tokens in segments.items():
        np.testing.assert_array_equal(found[name], tokens)
        np.testing.assert_array_equal(shipped[name], tokens)
    print(json.dumps({"archive": hashlib.sha256(archive.read_bytes()).hexdigest()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
