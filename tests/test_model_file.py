"""The .vqm file: weights come back, and damage is found."""

from __future__ import annotations

import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import random_tensors, tiny_config

from vqcomp.runtime.config import ModelConfig
from vqcomp.runtime.errors import ModelError, VqcompError
from vqcomp.runtime.weights import read_config, read_model, write_model

CONFIG = tiny_config()
MODEL = write_model(CONFIG, random_tensors(CONFIG), 1234)


@pytest.mark.parametrize("spread", [0, 1, 63])
@pytest.mark.parametrize("changes", [{}, {"factors": (40, 33), "flags": ()}, {"spatial_heads": 0, "copies": ()}])
def test_config_weights_and_self_test_come_back(changes, spread):
    config = tiny_config(**changes)
    tensors = random_tensors(config, spread=spread)
    found, back, check = read_model(write_model(config, tensors, 99))
    assert (found, check) == (config, 99)
    assert list(back) == list(config.tensor_shapes())
    for name, (codes, scales) in tensors.items():
        np.testing.assert_array_equal(back[name][0], codes)
        np.testing.assert_array_equal(back[name][1], scales)


def test_size_follows_the_entropy_of_the_codes():
    config = tiny_config(dim=64, hidden=256)
    narrow, wide = (len(write_model(config, random_tensors(config, spread=s), 0)) for s in (2, 31))
    weights = config.parameters()
    assert np.log2(5) < 8 * narrow / weights < np.log2(5) + 0.6
    assert np.log2(63) < 8 * wide / weights < np.log2(63) + 0.6


def test_rows_of_zeros_cost_next_to_nothing():
    config = tiny_config(dim=64, hidden=256)
    tensors = dict(random_tensors(config))
    whole = len(write_model(config, tensors, 0))
    codes, scales = tensors["blocks.0.up"]
    codes, scales = codes.copy(), scales.copy()
    codes[100:] = 0
    scales[100:] = scales[99]
    tensors["blocks.0.up"] = codes, scales
    saved = whole - len(write_model(config, tensors, 0))
    assert saved > 0.99 * 156 * 64 * np.log2(49) / 8


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_and_columns_of_small_codes_take_fewer_bits(axis):
    config = tiny_config(dim=64, hidden=256)
    even, uneven = (dict(random_tensors(config, spread=s)) for s in (24, 24))
    for name, (codes, scales) in uneven.items():
        codes = codes.copy()
        small = codes.swapaxes(0, axis)[::2]
        small //= 16  # -2..1
        uneven[name] = codes, scales
    saved = len(write_model(config, even, 0)) - len(write_model(config, uneven, 0))
    assert saved > 0.9 * np.log2(49 / 4) / 2 * config.parameters() / 8


@given(st.integers(0, 8 * len(MODEL) - 1))
@settings(deadline=None)
def test_any_flipped_bit_is_found(bit):
    damaged = bytearray(MODEL)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(VqcompError, match=r"damaged|not a vqcomp model|not known"):
        read_model(bytes(damaged))


@given(st.integers(0, len(MODEL) - 1))
@settings(deadline=None)
def test_any_truncation_is_found(length):
    with pytest.raises(VqcompError, match=r"cut short|not a vqcomp model|not known"):
        read_config(MODEL[:length])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "dim must be in"),
        ({"hidden": 5000}, "too large for exact sums"),
        ({"height": 1 << 40}, "height must be in"),
        ({"copies": [[0, 0, 0]]}, "outside the past"),
        ({"copies": [[1, 99, 0]]}, "outside the past"),
        ({"factors": []}, "factors"),
        ({"factors": "ab"}, "model config"),
        ({"surprise": 1}, "expected the fields"),
    ],
)
def test_impossible_configs_are_refused(change, message):
    header = zlib.compress(json.dumps({**CONFIG.to_dict(), **change}).encode())
    body = b"VQM\x02" + struct.pack("<I", len(header)) + header + bytes(8)
    with pytest.raises(ModelError, match=message):
        read_config(body + struct.pack("<I", zlib.crc32(body)))


def test_writing_refuses_what_cannot_be_read_back():
    tensors = dict(random_tensors(CONFIG))
    with pytest.raises(ModelError, match=r"tensor position: expected codes \(16, 12\)"):
        write_model(CONFIG, {**tensors, "position": (tensors["position"][0] * 0 + 64, tensors["position"][1])}, 0)
    del tensors["position"]
    with pytest.raises(ModelError, match="expected the tensors"):
        write_model(CONFIG, tensors, 0)


def test_config_survives_json():
    assert ModelConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG
