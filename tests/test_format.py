"""FORMAT.md against the code: its worked examples, read by the decoder that was written from its text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_decoder import RangeDecoder, alphabet, decode_uniform

import vqcomp
from vqcomp.runtime import coder
from vqcomp.runtime.coder import Encoder
from vqcomp.runtime.exact import NumpyOps
from vqcomp.runtime.tables import Tables, partition, put_symbols
from vqcomp.runtime.uniform import encode_uniform

FORMAT = (Path(vqcomp.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")
EXAMPLES = {e["title"]: e for e in map(json.loads, re.findall(r"```json\n(.*?)```", FORMAT, re.DOTALL))}


def words(stream: bytes) -> list[int]:
    return np.frombuffer(stream, "<u4").tolist()


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3).filter(any), min_size=1, max_size=200), st.data())
def test_a_range_decoder_written_from_the_text_reads_the_streams(tables, data):
    symbols = [data.draw(st.integers(0, 2)) for _ in tables]
    encoder = Encoder()
    put_symbols(encoder, np.array(symbols), partition(np.array(tables)))
    decoder = RangeDecoder(words(encoder.finish()))
    assert [decoder.symbol(alphabet(table)) for table in tables] == symbols


def encode_as_the_text_says(intervals: list[tuple[int, int]]) -> list[int]:
    """Section 4: the words of these intervals (l, h)."""
    lower, width, refills = 0, 2**64 - 1, 0
    for low, high in intervals:
        scale = width // 2**24
        lower, width = lower + scale * low, scale * (high - low)
        if width < 2**32:
            lower, width, refills = lower * 2**32, width * 2**32, refills + 1
    p = -(-lower // 2**32)
    found = [p // 2 ** (32 * i) % 2**32 for i in reversed(range(refills + 1))]
    return (found + [0] * ((lower + width) // 2**32 == p)) if intervals else []


@pytest.mark.parametrize("range_coder", ["constriction", "in Python"])
@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 2**24 - 1), st.integers(1, 2**24 - 1)).filter(lambda i: i[0] < i[1])))
def test_an_encoder_written_from_the_text_writes_the_streams(range_coder, intervals):
    with pytest.MonkeyPatch.context() as patch:
        if range_coder == "in Python":
            patch.setattr(coder, "constriction", None)
        elif not coder.constriction:
            pytest.skip("constriction is not here")
        encoder = Encoder()
        low, high = np.array(intervals, np.int64).reshape(-1, 2).T
        encoder.put(low, high)
        assert words(encoder.finish()) == encode_as_the_text_says(intervals)


def test_example_of_an_alphabet_table():
    example = EXAMPLES["alphabet table"]
    assert partition(np.array([example["weights"]]))[0].tolist() == example["bounds"] == alphabet(example["weights"])
    decoder = RangeDecoder(example["words"])
    assert [decoder.symbol(example["bounds"]) for _ in example["symbols"]] == example["symbols"]


def test_example_of_a_token():
    example = EXAMPLES["token of a vocabulary of 40"]
    x = np.array([example["logits"] + [example["all other logits"]] * (40 - len(example["logits"]))], np.float32)
    tables = Tables(x, NumpyOps())
    assert tables.w.reshape(-1)[: len(example["weights"])].astype(int).tolist() == example["weights"]
    (group,), (member,) = ([b.astype(int).tolist() for b in level] for level in (tables.coarse(), tables.fine([0])))
    assert group == example["bounds of the groups"]
    decoder = RangeDecoder(example["words"])
    assert decoder.symbol(group) * 32 + decoder.symbol(member) == example["token"]


def test_example_of_a_uniform_stream():
    example = EXAMPLES["uniform stream"]
    assert words(encode_uniform([np.array(example["tokens"])], example["factors"])) == example["words"]
    decoder = RangeDecoder(example["words"])
    assert decoder.bit(1) == example["first decision"] == 1
    (frames,) = decode_uniform(decoder, {"height": 1, "width": 1, "factors": example["factors"]}, [2])
    assert frames == example["tokens"]
