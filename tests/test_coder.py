"""Frequency tables partition the coder's range, and what is encoded by them is decoded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vqcomp.runtime.coder import PRECISION, Decoder, Encoder, Tables, partition
from vqcomp.runtime.errors import DamageError
from vqcomp.runtime.exact import NumpyOps

ALL = 1 << PRECISION
WEIGHTS = hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1 << 40))


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


def test_three_entry_tables_give_the_bytes_of_whole_tables():
    """What the encoder does in place of handing constriction every entry."""
    import constriction

    random = np.random.RandomState(0)
    bounds = partition(random.randint(0, 1000, (200, 50)))
    symbols = random.randint(0, 50, 200)
    short, whole = Encoder(), constriction.stream.queue.RangeEncoder()
    short.put_symbols(symbols, bounds)
    table = np.diff(np.concatenate([np.zeros((200, 1)), bounds, np.full((200, 1), ALL)], 1)) - 1
    categorical = constriction.stream.model.Categorical(perfect=False)
    whole.encode((symbols + 1).astype(np.int32), categorical, table.astype(np.float32))
    assert short.finish() == whole.get_compressed().astype("<u4").tobytes()


def test_code_length_is_that_of_the_frequencies():
    random = np.random.RandomState(0)
    bounds = partition(random.randint(1, 1000, (5000, 32)))
    symbols = random.randint(0, 32, 5000)
    encoder = Encoder()
    encoder.put_symbols(symbols, bounds)
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
