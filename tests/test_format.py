"""FORMAT.md against the code: its worked examples, read by the decoder that was written from its text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_decoder import RangeDecoder, alphabet

import vqcomp
from vqcomp.runtime.coder import Encoder, Tables, partition
from vqcomp.runtime.exact import NumpyOps

FORMAT = (Path(vqcomp.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")
EXAMPLES = {e["title"]: e for e in map(json.loads, re.findall(r"```json\n(.*?)```", FORMAT, re.DOTALL))}


def words(stream: bytes) -> list[int]:
    return np.frombuffer(stream, "<u4").tolist()


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3).filter(any), min_size=1, max_size=200), st.data())
def test_a_range_decoder_written_from_the_text_reads_the_streams(tables, data):
    symbols = [data.draw(st.integers(0, 2)) for _ in tables]
    encoder = Encoder()
    encoder.put_symbols(np.array(symbols), partition(np.array(tables)))
    decoder = RangeDecoder(words(encoder.finish()))
    assert [decoder.symbol(alphabet(table)) for table in tables] == symbols


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
