"""The adaptive codec: exact round trips, damage, and what it must never do."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqcomp.model_files import shipped_models
from vqcomp.runtime import mixed, mixing, online, opinions
from vqcomp.runtime.adapt import AdaptiveCodec
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.contexts import Past
from vqcomp.runtime.errors import DamageError, InputError
from vqcomp.runtime.kinds import make_codec
from vqcomp.runtime.spec import TokenSpec

COMMA = TokenSpec(8, 16, (1024,))


def segment(spec: TokenSpec, frames: int, seed: int, stay: float = 0.6) -> np.ndarray:
    """Tokens that mostly stay as they are, int32 (T, S, F). Integers alone, so the same with every NumPy."""
    state = seed * 2654435761 % 2**32 or 1
    tokens = np.zeros((frames, spec.positions, len(spec.factors)), np.int32)
    for place in np.ndindex(tokens.shape):
        state = (state * 1664525 + 1013904223) % 2**32
        time, position, factor = place
        if time and state >> 8 & 0xFF < stay * 256:
            tokens[place] = tokens[time - 1, position, factor]
        else:
            tokens[place] = (state >> 16) % spec.factors[factor]
    return tokens


def round_trip(codec: AdaptiveCodec, groups: list[list[np.ndarray]]) -> list[bytes]:
    streams = codec.encode(groups)
    decoded = codec.decode(streams, [[len(s) for s in group] for group in groups])
    for group, again in zip(groups, decoded, strict=True):
        for one, other in zip(group, again, strict=True):
            assert other.dtype == np.int32
            np.testing.assert_array_equal(one, other)
    return streams


specs = st.builds(
    TokenSpec,
    st.integers(1, 5),
    st.integers(1, 5),
    st.lists(st.sampled_from([2, 3, 7, 16, 1000, 1024, 65536]), min_size=1, max_size=3).map(tuple),
)


@settings(max_examples=25, deadline=None)
@given(
    specs, st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 10**6), st.sampled_from([0.0, 0.7, 1.0])
)
def test_any_grid_vocabulary_and_lengths_round_trip(spec, lengths, seed, stay):
    round_trip(AdaptiveCodec(spec), [[segment(spec, n, seed + i, stay) for i, n in enumerate(lengths)]])


def test_streams_do_not_depend_on_the_other_groups_of_a_call():
    spec = TokenSpec(3, 4, (300, 5))
    groups = [[segment(spec, 12, 1), segment(spec, 7, 2)], [segment(spec, 9, 3)], [segment(spec, 12, 1)]]
    codec = AdaptiveCodec(spec)
    together = round_trip(codec, groups)
    assert together == [codec.encode([group])[0] for group in groups]


def test_progress_counts_every_token_once():
    codec = AdaptiveCodec(TokenSpec(2, 3, (9,)))
    segments = [segment(codec.spec, n, n) for n in (40, 16, 5)]
    done: list[int] = []
    streams = codec.encode([segments], done.append)
    assert sum(done) == (40 + 16 + 5) * 6
    done.clear()
    codec.decode(streams, [[40, 16, 5]], done.append)
    assert sum(done) == (40 + 16 + 5) * 6


@pytest.mark.parametrize("size", [2, 1000, 1024])
def test_random_tokens_take_no_more_than_uniform(size):
    spec = TokenSpec(8, 16, (size,))
    tokens = np.random.default_rng(size).integers(0, size, (40, 128, 1)).astype(np.int32)
    (stream,) = round_trip(AdaptiveCodec(spec), [[tokens]])
    assert len(stream) <= tokens.size * np.log2(size) / 8 * 1.0001 + 8


@pytest.mark.parametrize("tokens", ["random", "constant", "staying"])
def test_learning_on_top_of_a_network_is_never_worse(tokens):
    model = shipped_models()["commavq-nano"].data
    given = {
        "random": np.random.default_rng(0).integers(0, 1024, (20, 128, 1)).astype(np.int32),
        "constant": np.full((20, 128, 1), 7, np.int32),
        "staying": segment(COMMA, 20, 5),
    }[tokens]
    alone, mixed = (
        make_codec(COMMA, model, adapt=adapt, compute=Compute("numpy")).encode([[given]])[0] for adapt in (False, True)
    )
    assert len(mixed) <= len(alone) * 1.001 + 8


def test_constant_tokens_take_almost_nothing_after_the_first_frame():
    tokens = np.full((100, 128, 1), 777, np.int32)
    (stream,) = round_trip(AdaptiveCodec(COMMA), [[tokens]])
    first_frame = 128 * 10 / 8  # every position of it is predicted from the same ignorance
    assert len(stream) < first_frame + 100


def test_real_tokens_reach_their_rate():
    folder = Path(os.environ.get("VQCOMP_DATA", Path(__file__).parents[1] / "../shared"))
    path = folder / "data/commavq/example.npy"
    if not path.exists():
        pytest.skip(f"{path} is missing; set VQCOMP_DATA")
    tokens = np.load(path)[:150].reshape(150, 128, 1).astype(np.int32)
    (stream,) = round_trip(AdaptiveCodec(COMMA), [[tokens]])
    assert len(stream) * 8 / tokens.size < 5.2


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 30))
def test_damaged_streams_give_tokens_in_range_or_a_damage_error(data, frames):
    spec = TokenSpec(2, 3, (5, 1000))
    try:
        ((tokens,),) = AdaptiveCodec(spec).decode([data], [[frames]])
    except DamageError:
        return
    assert tokens.shape == (frames, 6, 2) and tokens.dtype == np.int32
    assert tokens.min() >= 0 and (tokens < np.array(spec.factors)).all()


@settings(max_examples=5, deadline=None)
@given(st.data())
def test_one_wrong_byte_never_crashes(data):
    codec = AdaptiveCodec(TokenSpec(2, 2, (300,)))
    stream = bytearray(codec.encode([[segment(codec.spec, 30, 8)]])[0])
    stream[data.draw(st.integers(0, len(stream) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        ((tokens,),) = codec.decode([bytes(stream)], [[30]])
    except DamageError:
        return
    assert tokens.shape == (30, 4, 1) and tokens.min() >= 0 and tokens.max() < 300


@pytest.mark.parametrize("shape, value", [((0, 4, 1), 0), ((3, 5, 1), 0), ((3, 4), 0), ((3, 4, 1), 9), ((3, 4, 1), -1)])
def test_segments_that_do_not_fit_are_refused(shape, value):
    with pytest.raises(InputError):
        AdaptiveCodec(TokenSpec(2, 2, (9,))).encode([[np.full(shape, value, np.int32)]])


@pytest.mark.parametrize("threads", ["1", "2"])
def test_threads_do_not_change_a_stream(threads):
    code = (
        "import hashlib; from tests.test_adapt import *;"
        "print(hashlib.sha256(AdaptiveCodec(COMMA).encode([[segment(COMMA, 12, 3)]])[0]).hexdigest())"
    )
    env = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    found = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    here = hashlib.sha256(AdaptiveCodec(COMMA).encode([[segment(COMMA, 12, 3)]])[0]).hexdigest()
    assert found.stdout.strip() == here


def test_learning_does_not_depend_on_the_order_of_decisions():
    rng = np.random.default_rng(0)
    state, slot = rng.integers(0, 5, 400), rng.integers(0, 9, 400)  # many share one, so that counts are scaled down
    bits, order = rng.integers(0, 2, 400), rng.permutation(400)
    results = []
    for pick in (np.arange(400), order):
        maps, counts = opinions.Maps(np.full(5, 1 << 15)), opinions.Counts(9)
        for _ in range(3):
            maps.learn(state[pick], bits[pick])
            counts.learn(slot[pick], bits[pick])
        results.append((maps.probability, maps.count, maps.logit, counts.words, counts.states))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_network_weights_stay_whole_and_bounded():
    spec = TokenSpec(2, 3, (5, 9))
    net, past = online.OnlineNetwork(spec, 1), Past(spec, 1, 2)
    tokens = net.masses.place[net.masses.size :][:9] // opinions.BLOCK
    rng = np.random.default_rng(0)
    for _ in range(200):
        coded = rng.integers(0, 5, (2, 6, 1))
        past.begin(coded)
        net.begin(past, coded)
        weights = net.masses.tree[0, tokens, :12].copy()  # (V, P)
        assert weights.shape == (9, 12) and (weights >= 2.0**-22).all() and (weights.max(0) == 1).all()
        net.update(np.full(12, 3))
        past.push(rng.integers(0, 9, (2, 6)))
    assert (weights[3] > weights.sum(0) * 0.9).all()
    assert (net.value == np.rint(net.value)).all() and np.abs(net.value).max() <= online.BOUND


def test_products_of_the_largest_codes_are_exact():
    """What FORMAT.md's bounds promise: every sum of a matrix product in float32 stays below 2^24."""
    embedding, matrix, hidden = online.CODE_MAX, online.MATRIX_MAX, online.HIDDEN_MAX
    width, block = online.WIDTH, opinions.BLOCK
    sums = [width * embedding * matrix, width * embedding * hidden, width * hidden * matrix, block * embedding * hidden]
    sums += [block * online.ERROR * online.COARSE_MAX, width * online.GRADIENT_MAX]
    sums += [(2 * online.ERROR + online.VOCABULARY_MAX / 2 + 1) * embedding]
    assert max(sums) < 1 << 24


def test_a_network_that_knows_is_believed():
    spec = TokenSpec(4, 4, (64,))
    rng = np.random.default_rng(0)
    mixer = mixed.GivenMixer(spec, 0, 1, np.zeros((64, 2)))
    level = np.arange(6)[:, None]
    for _ in range(60):
        tokens = rng.integers(0, 64, 16)
        weights = np.ones((16, 64))
        weights[np.arange(16), tokens] = 1000
        mixer.begin(np.zeros((1, 16, 0), np.int64), lambda weights=weights: weights[None])
        bits = tokens >> (5 - level) & 1
        p = mixer.predict(0, 1 << level | tokens >> (6 - level)) / 65536
        mixer.update(bits, tokens[None])
    assert -np.log2(np.where(bits == 1, p, 1 - p)).sum() / 16 < 1  # of 6 bits


@pytest.mark.parametrize("factors", [(1024,), (512, 512), (65536,), (7, 300, 4096, 2, 2)])
def test_tables_stay_below_256_mib(factors):
    spec = TokenSpec(16, 16, factors)
    total = 0
    for f in range(len(factors)):
        mixer = mixing.TreeMixer(spec, f, 8)
        total += mixer.counts.words.nbytes + mixer.counts.states.nbytes
    assert total <= 256 << 20


@given(st.integers(1, 600), st.integers(1, 600), st.integers(2, 65536))
def test_what_learns_together_takes_bounded_memory(height, width, vocabulary):
    codec = AdaptiveCodec(TokenSpec(height, width, (vocabulary,)))
    assert 1 <= codec.group_size <= codec.group_limit <= 64
    ids = min(vocabulary, online.VOCABULARY_MAX)
    assert codec.group_limit == 1 or codec.group_limit * height * width * ids <= 1 << 24


def test_commavq_and_1x_may_learn_together_in_groups_of_64():
    for spec in (COMMA, TokenSpec(16, 16, (512, 512))):
        assert AdaptiveCodec(spec).group_limit == 64


def test_groups_are_smaller_for_larger_grids():
    sizes = [AdaptiveCodec(TokenSpec(side, side, (1024,))).group_size for side in (4, 11, 16, 64)]
    assert sizes == [8, 8, 4, 1]


def test_frames_too_large_for_the_proof_of_exactness_are_coded_uniformly():
    spec = TokenSpec(513, 512, (3,))
    segment = np.random.default_rng(0).integers(0, 3, (1, spec.positions, 1)).astype(np.int32)
    codec = AdaptiveCodec(spec)
    assert codec.group_size == 1
    (stream,) = codec.encode([[segment]])
    assert abs(8 * len(stream) - segment.size * np.log2(3)) < 128
    np.testing.assert_array_equal(codec.decode([stream], [[1]])[0][0], segment)
