"""FORMAT.md is complete: a decoder that was written from it alone reads what vqcomp writes."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from networks import random_segment, random_tensors, tiny_config
from reference_decoder import RangeDecoder, decode_archive, decode_group

import vqcomp
from vqcomp.runtime.adapt import AdaptiveCodec
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.config import ModelConfig
from vqcomp.runtime.engine import Engine
from vqcomp.runtime.exact import NumpyOps
from vqcomp.runtime.kinds import make_codec
from vqcomp.runtime.loading import self_test
from vqcomp.runtime.spec import TokenSpec
from vqcomp.runtime.weights import write_model

GRID = {"height": 2, "width": 3}
LENGTHS = (3, 5)
"""Of a group's segments: a short one first, so that sorting them matters."""


def arrays(spec: TokenSpec) -> dict[str, np.ndarray]:
    """Segments of (T, 2, 3) ids that mostly stay as they are."""
    found = {}
    for i, length in enumerate(LENGTHS):
        tokens = random_segment(spec, length, seed=i)
        tokens[:, ::2] = tokens[0, ::2]
        found[f"segment{i}.npy"] = spec.join(tokens).reshape(-1, 2, 3).astype(np.int32)
    return found


def model_file(folder: Path, config: ModelConfig) -> Path:
    tensors = random_tensors(config, seed=1, spread=63)
    path = folder / "tiny.vqm"
    path.write_bytes(write_model(config, tensors, self_test(Engine(config, tensors, NumpyOps()))))
    return path


def foreseen(spec: TokenSpec, model: Path) -> dict[str, np.ndarray]:
    """As `arrays`, but of tokens that the network finds likely: what random words decode to. Others go uniformly."""
    random = np.random.RandomState(0)
    codec = make_codec(spec, model.read_bytes(), compute=Compute("numpy"))
    segments = codec.decode([random.bytes(4000) for _ in LENGTHS], [[length] for length in LENGTHS])
    return {
        f"segment{i}.npy": spec.join(tokens).reshape(-1, 2, 3).astype(np.int32) for i, (tokens,) in enumerate(segments)
    }


def check(path: Path, data: dict[str, np.ndarray], codec: str, uniform: bool = False) -> None:
    """The archive is of this codec, all or none of its streams are uniform, and the reference decoder reads it."""
    with zipfile.ZipFile(path) as archive, vqcomp.open(path) as opened:
        assert [s["codec"] for s in json.loads(archive.read("vqcomp/manifest.json"))["specs"]] == [codec]
        streams = archive.read("vqcomp/streams.bin")
        for group in opened.manifest.groups:
            words = struct.unpack_from(f"<{group.size // 4}I", streams, group.offset)
            assert RangeDecoder(words).bit(1) == uniform
    found = decode_archive(path)
    assert found == {name: array.reshape(-1).tolist() for name, array in data.items()}


@pytest.mark.parametrize("factors", [(20,), (40, 3)], ids=str)
@pytest.mark.parametrize("adapt", [False, True], ids=["gpt", "mixed"])
def test_archives_with_a_network(tmp_path, factors, adapt):
    config = tiny_config(**GRID, factors=factors)
    model, out = model_file(tmp_path, config), tmp_path / "out.zip"
    data = foreseen(config.spec, model)
    vqcomp.compress(data, out, model=model, adapt=adapt, compute=Compute("numpy"), verify=False)
    check(out, data, "mixed" if adapt else "gpt")


@pytest.mark.parametrize("adapt", [False, True], ids=["gpt", "mixed"])
def test_archives_whose_network_does_not_foresee_the_tokens(tmp_path, adapt):
    config = tiny_config(**GRID, factors=(40, 3))
    data, out = arrays(config.spec), tmp_path / "out.zip"
    model = model_file(tmp_path, config)
    vqcomp.compress(data, out, model=model, adapt=adapt, compute=Compute("numpy"), verify=False)
    check(out, data, "mixed" if adapt else "gpt", uniform=True)


def test_archives_without_a_network(tmp_path):
    data = arrays(TokenSpec(2, 3, (20,)))
    vqcomp.compress(data, tmp_path / "out.zip", model="none", verify=False)
    check(tmp_path / "out.zip", data, "adaptive")


def adaptive(spec: TokenSpec, segments: list[np.ndarray]) -> int:
    """Code a group by vqcomp, decode it by the reference; return the stream's first decision."""
    (stream,) = AdaptiveCodec(spec).encode([segments])
    words = struct.unpack(f"<{len(stream) // 4}I", stream)
    table = {"height": spec.height, "width": spec.width, "factors": list(spec.factors), "codec": "adaptive"}
    found = decode_group(RangeDecoder(words), table, [len(s) for s in segments], None)
    assert found == [s.tolist() for s in segments]
    return RangeDecoder(words).bit(1)


def test_adaptive_streams_of_several_factors():
    """Of which the later ones see the earlier."""
    spec = TokenSpec(2, 2, (5, 4, 7))
    segments = [random_segment(spec, length, seed=length) for length in LENGTHS]
    for tokens in segments:
        tokens[:, :3] = tokens[0, :3]
    assert adaptive(spec, segments) == 0


def test_adaptive_streams_of_long_segments():
    """Long enough for runs and recalls to leave the ranges that are told apart, with a surprise after that."""
    spec = TokenSpec(1, 2, (3,))
    segments = [random_segment(spec, length, seed=length) for length in (2, 22)]
    for tokens in segments:
        tokens[:, 1] = 1
    segments[1][18:20, 1] = 2
    assert adaptive(spec, segments) == 0


def test_adaptive_streams_of_several_blocks():
    """More than 64 positions, whose gradients are summed in blocks."""
    tokens = random_segment(TokenSpec(6, 11, (3,)), 3, seed=0)
    tokens[:, ::2] = tokens[0, ::2]
    assert adaptive(TokenSpec(6, 11, (3,)), [tokens]) == 0


@pytest.mark.parametrize("factors, size", [((2**16,), 22), ((2**16, 2), 21)], ids=str)
def test_adaptive_streams_of_contexts_that_share_counts(factors, size):
    """Two tokens whose nodes on the way to small tokens, 2^i and 2^j, share counts in tables of this size only."""
    gaps = {2**i - 2**j for i in range(12) for j in range(12)} - {0}

    def shares(token: int, size: int) -> bool:
        distance = token * 0x9E3779B1 % 2**size
        return distance in gaps or distance - 2**size in gaps

    gap = next(token for token in range(1, 2**16) if shares(token, size) and not shares(token, size + 1))
    tokens = np.array([gap, 5, 0, 7, gap, 9] * 2, np.int32).reshape(-1, 1, 1)
    tokens = np.concatenate([tokens] + [tokens % size for size in factors[1:]], 2)
    assert adaptive(TokenSpec(1, 1, factors), [tokens]) == 0


def test_adaptive_streams_of_large_frames():
    """So many decisions in a frame that counts overflow, maps are full and the mixer averages; no online network."""
    spec = TokenSpec(15, 23, (4100,))
    segments = [random_segment(spec, length, seed=i) // 1024 * 1024 for i, length in enumerate((1, 1, 3))]
    assert adaptive(spec, segments) == 0


def test_uniform_streams():
    spec = TokenSpec(2, 3, (33000, 300))
    tokens = np.random.RandomState(0).randint(0, spec.factors, (4, 6, 2)).astype(np.int32)
    assert adaptive(spec, [tokens[:2], tokens]) == 1
