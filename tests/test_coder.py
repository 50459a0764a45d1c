"""Frequency tables partition the coder's range, and what is encoded by them is decoded."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vqcomp.runtime import coder
from vqcomp.runtime.coder import PRECISION, Decoder, Encoder
from vqcomp.runtime.errors import DamageError
from vqcomp.runtime.exact import NumpyOps
from vqcomp.runtime.tables import Tables, get_symbols, partition, put_symbols

ALL = 1 << PRECISION
WEIGHTS = hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1 << 40))


@pytest.fixture(scope="module")
def constriction():
    if not coder.constriction:
        pytest.skip(f"constriction {coder.CONSTRICTION} is not here")
    return coder.constriction


@contextmanager
def using(range_coder):
    """coder.py with constriction, or None."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coder, "constriction", range_coder)
        yield


@given(WEIGHTS)
def test_intervals_partition_the_range_between_the_guards(weights):
    weights[:, 0] += 1  # at least one weight is positive
    bounds = partition(weights)
    assert (bounds[:, 0] == 1).all() and (bounds[:, -1] == ALL - 1).all()
    assert (np.diff(bounds) >= 1).all()
    assert (bounds == np.rint(bounds)).all()


@given(WEIGHTS)
def test_frequencies_are_proportional_to_weights(weights):
    weights[:, 0] += 1
    n = weights.shape[1]
    frequencies = np.diff(partition(weights))
    exact = weights / weights.sum(1, keepdims=True) * (ALL - n - 2) + 1
    assert (np.abs(frequencies - exact) <= 1 + n * 1e-3).all()


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 20), st.integers(2, 200)), elements=st.integers(-4000, 4000)),
    st.data(),
)
def test_symbols_come_back(logits, data):
    rows, size = logits.shape
    symbols = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=rows, max_size=rows)))
    encoder = Encoder()
    for low, high in Tables(logits.copy(), NumpyOps()).intervals(symbols):
        encoder.put(low, high)
    found = Tables(logits.copy(), NumpyOps()).read([Decoder(encoder.finish())])
    np.testing.assert_array_equal(found, symbols)


@given(WEIGHTS, st.data())
def test_three_entry_tables_give_the_bytes_of_whole_tables(constriction, weights, data):
    """What the encoder does in place of handing the range coder every entry."""
    weights[:, 0] += 1
    rows, n = weights.shape
    bounds = partition(weights)
    symbols = data.draw(hnp.arrays(np.int32, rows, elements=st.integers(0, n - 1)))
    short, whole = Encoder(), coder.constriction.queue.RangeEncoder()
    put_symbols(short, symbols, bounds)
    table = np.diff(np.concatenate([np.zeros((rows, 1)), bounds, np.full((rows, 1), ALL)], 1)) - 1
    categorical = coder.constriction.model.Categorical(perfect=False)
    whole.encode(symbols + np.int32(1), categorical, table.astype(np.float32))
    assert short.finish() == whole.get_compressed().astype("<u4").tobytes()


def test_code_length_is_that_of_the_frequencies():
    random = np.random.RandomState(0)
    bounds = partition(random.randint(1, 1000, (5000, 32)))
    symbols = random.randint(0, 32, 5000)
    encoder = Encoder()
    put_symbols(encoder, symbols, bounds)
    rows = np.arange(5000)
    ideal = -np.log2((bounds[rows, symbols + 1] - bounds[rows, symbols]) / ALL).sum()
    assert ideal <= 8 * len(encoder.finish()) <= ideal + 64


@given(st.binary(max_size=64))
@settings(deadline=None)
def test_any_bytes_decode_to_symbols_in_range_or_are_reported(stream):
    logits = np.random.RandomState(1).randint(-500, 500, (64, 70)).astype(np.float32)
    try:
        symbols = Tables(logits, NumpyOps()).read([Decoder(stream)])
    except DamageError:
        return
    assert symbols.min() >= 0 and symbols.max() < 70


def test_a_stream_of_odd_length_is_damage():
    with pytest.raises(DamageError, match="32-bit words, found 5 bytes"):
        Decoder(b"12345")


# ---- the range coder in Python, against constriction


EXTREMES = st.sampled_from([1, 2, 255, 1 << 15, 65534, 65535]) | st.integers(1, 65535)


@st.composite
def calls(draw):
    """What to code: a list of (kind, symbols, what tells their probabilities)."""
    result = []
    for kind in draw(st.lists(st.sampled_from(["bits", "runs", "uniform", "symbols"]), max_size=8)):
        random, n = np.random.RandomState(draw(st.integers(0, 1 << 31))), draw(st.integers(0, 300))
        if kind == "bits":  # any bit at any probability: mostly improbable ones
            ones = np.resize(draw(st.lists(EXTREMES, min_size=1, max_size=8)), n)
            result.append(("bits", random.randint(0, 2, n), ones))
        elif kind == "runs":  # one bit many times, which leaves the interval at an edge: carries, words of all ones
            result.append(("bits", np.full(n, draw(st.integers(0, 1))), np.full(n, draw(EXTREMES))))
        elif kind == "uniform":
            size = draw(st.integers(2, 1 << 16))
            result.append(("uniform", random.randint(0, size, n), size))
        else:
            size = draw(st.integers(2, 40))
            weights = random.randint(0, 1 << draw(st.integers(1, 40)), (n, size)) * (random.rand(n, size) < 0.3)
            weights[:, draw(st.integers(0, size - 1))] += 1
            result.append(("symbols", random.randint(0, size, n), partition(weights)))
    return result


def encode(items):
    encoder = Encoder()
    for kind, symbols, chances in items:
        if kind == "symbols":
            put_symbols(encoder, symbols, chances)
        else:
            getattr(encoder, f"put_{kind}")(symbols, chances)
    return encoder.finish()


def decode(stream, items):
    decoder = Decoder(stream)
    for kind, symbols, chances in items:
        if kind == "symbols":
            yield get_symbols([decoder], chances)
        else:
            arguments = (chances, len(symbols)) if kind == "uniform" else (chances,)
            yield getattr(decoder, f"get_{kind}")(*arguments)


@settings(deadline=None, max_examples=300)
@given(calls())
def test_the_range_coder_in_python_writes_constrictions_bytes_and_reads_them(constriction, items):
    with using(constriction):
        expected = encode(items)
    with using(None):
        assert encode(items) == expected
        for found, (_, symbols, _) in zip(decode(expected, items), items, strict=True):
            assert found.dtype == np.int64
            np.testing.assert_array_equal(found, symbols)


@settings(deadline=None, max_examples=300)
@given(calls(), st.binary(max_size=64) | st.lists(st.sampled_from([b"\0", b"\xff"]), max_size=64).map(b"".join))
def test_on_any_bytes_the_range_coder_in_python_finds_what_constriction_finds(constriction, items, stream):
    stream = stream[: len(stream) // 4 * 4]
    results = []
    for range_coder in (constriction, None):
        with using(range_coder):
            try:
                results.append([found.tolist() for found in decode(stream, items)])
            except DamageError:
                results.append("damage")
    assert results[0] == results[1]


@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 50, 1001])
def test_a_carry_runs_back_through_any_number_of_words(constriction, length, above):
    """Each interval but the last one holds the middle of the range, so no word is settled before the last symbol."""
    width, middle, lows, highs = (1 << 64) - 1, 1 << 63, [], []
    for i in range(length):
        scale = width >> 24
        q = middle // scale
        low, high = (q + 1, ALL - 1) if above else (1, q)
        if i < length - 1:
            low, high = q - 1, q + 2
        lows.append(low)
        highs.append(high)
        middle, width = middle - scale * low, scale * (high - low)
        if width < 1 << 32:
            middle, width = middle << 32, width << 32
    streams = []
    for range_coder in (constriction, None):
        with using(range_coder):
            encoder = Encoder()
            encoder.put(np.array(lows), np.array(highs))
            streams.append(encoder.finish())
    assert streams[0] == streams[1]
    words = np.frombuffer(streams[1], "<u4").tolist()
    assert words[0] >> 31 == above
    if length > 2:
        assert len(words) >= length // 2
        assert set(words[1 : length // 2 - 1]) <= {0 if above else (1 << 32) - 1}


def test_damage_does_not_let_the_decoders_numbers_grow():
    """A stream that is all damage is given up at once: not after as many words as there are symbols."""
    with using(None):
        decoder = Decoder(b"\xff" * 400_000)
        with pytest.raises(DamageError):
            decoder.get_uniform(3, 1 << 20)
        assert decoder._coder._offset < 1 << 64
