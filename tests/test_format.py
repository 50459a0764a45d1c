"""FORMAT.md against the code: its worked examples, and a range decoder written from its text alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import vqcomp
from vqcomp.runtime.coder import Encoder, Tables, partition
from vqcomp.runtime.exact import NumpyOps

FORMAT = (Path(vqcomp.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")
EXAMPLES = {e["title"]: e for e in map(json.loads, re.findall(r"```json\n(.*?)```", FORMAT, re.DOTALL))}


def bounds_of(weights: list[int]) -> list[int]:
    """Section 4's alphabet table in Python's floats, which are float64."""
    n = len(weights)
    free = 2**24 - n - 2
    factor = free / sum(weights)
    return [int(sum(weights[:i]) * factor) + i + 1 for i in range(n)] + [free + n + 1]


class RangeDecoder:
    """Section 4 in Python's integers."""

    def __init__(self, words: list[int]) -> None:
        self.words = iter(words)
        self.lower, self.range = 0, 2**64 - 1
        self.point = next(self.words, 0) << 32 | next(self.words, 0)

    def get(self, bounds: list[int]) -> int:
        scale = self.range >> 24
        q = (self.point - self.lower) % 2**64 // scale
        symbol = next(i for i in range(len(bounds) - 1) if bounds[i] <= q < bounds[i + 1])
        self.lower = (self.lower + scale * bounds[symbol]) % 2**64
        self.range = scale * (bounds[symbol + 1] - bounds[symbol])
        if self.range < 2**32:
            self.lower = (self.lower << 32) % 2**64
            self.range <<= 32
            self.point = (self.point << 32) % 2**64 | next(self.words, 0)
        return symbol


def words(stream: bytes) -> list[int]:
    return np.frombuffer(stream, "<u4").tolist()


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3).filter(any), min_size=1, max_size=200), st.data())
def test_a_range_decoder_written_from_the_text_reads_the_streams(tables, data):
    symbols = [data.draw(st.integers(0, 2)) for _ in tables]
    encoder = Encoder()
    encoder.put_symbols(np.array(symbols), partition(np.array(tables)))
    decoder = RangeDecoder(words(encoder.finish()))
    assert [decoder.get(bounds_of(table)) for table in tables] == symbols


def test_example_of_an_alphabet_table():
    example = EXAMPLES["alphabet table"]
    assert partition(np.array([example["weights"]]))[0].tolist() == example["bounds"] == bounds_of(example["weights"])
    decoder = RangeDecoder(example["words"])
    assert [decoder.get(example["bounds"]) for _ in example["symbols"]] == example["symbols"]


def test_example_of_a_token():
    example = EXAMPLES["token of a vocabulary of 40"]
    x = np.array([example["logits"] + [example["all other logits"]] * (40 - len(example["logits"]))], np.float32)
    tables = Tables(x, NumpyOps())
    assert tables.w.reshape(-1)[: len(example["weights"])].astype(int).tolist() == example["weights"]
    (group,), (member,) = ([b.astype(int).tolist() for b in level] for level in (tables.coarse(), tables.fine([0])))
    assert group == example["bounds of the groups"]
    decoder = RangeDecoder(example["words"])
    assert decoder.get(group) * 32 + decoder.get(member) == example["token"]
