"""A change of arithmetic or format cannot pass unnoticed: `python tests/golden.py` writes the pinned values anew."""

import json

import golden
import pytest

PINNED = json.loads(golden.FILE.read_text())


@pytest.mark.parametrize("name", PINNED)
def test_bytes_are_the_pinned_ones(name):
    assert golden.compute()[name] == PINNED[name]
