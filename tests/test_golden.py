"""A change of arithmetic or format cannot pass unnoticed: `python tests/golden.py` writes the pinned values anew."""

import json

import golden
import numpy as np
import pytest
from networks import random_segment
from shipped import imported, write_decoder

PINNED = json.loads(golden.FILE.read_text())


@pytest.mark.parametrize("name", PINNED)
def test_bytes_are_the_pinned_ones(name):
    assert golden.compute()[name] == PINNED[name]


@pytest.mark.parametrize("codec", ["gpt", "mixed", "adaptive"])
def test_the_decoder_that_zips_carry_decodes_the_pinned_streams(codec, tmp_path):
    stream = bytes.fromhex(PINNED[f"{codec} stream"])
    with imported(write_decoder(tmp_path)) as module:
        kinds, compute = module("kinds"), module("compute").Compute("numpy")
        kind = next(kind for kind in vars(kinds).values() if getattr(kind, "name", "") == codec)
        if codec == "adaptive":
            spec = module("spec").TokenSpec(2, 3, (20,))
            segments = [random_segment(spec, 6, n) for n in range(2)]
            decoder = kinds.codec_of(kind, spec, None, compute)
        else:
            config, _, check = module("weights").read_model(golden.model())
            assert check == PINNED["self-test"]
            segments = [golden.predicted()]
            decoder = kinds.codec_of(kind, config.spec, golden.model(), compute)
        (found,) = decoder.decode([stream], [[len(segment) for segment in segments]])
        for a, b in zip(found, segments, strict=True):
            np.testing.assert_array_equal(a, b)
