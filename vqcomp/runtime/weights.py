"""The model file (.vqm): a ModelConfig and its integer weights, range coded.

    magic "VQM\\x01" | u32 length of config | config, JSON, deflated | u32 self-test | streams words | u32 CRC-32

All integers are little-endian. The CRC covers everything before it. FORMAT.md is normative.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from .coder import Decoder, Encoder, partition
from .config import WEIGHT_MAX, ModelConfig
from .engine import Tensors
from .errors import DamageError, ModelError

MAGIC = b"VQM\x01"
CONFIG_LIMIT = 1 << 20
WEIGHTS_LIMIT = 1 << 30
"""Readers refuse larger configs (bytes) and models (weights)."""


class Histogram:
    """Adaptive frequencies of a run of symbols; both sides update it alike after each block."""

    def __init__(self, size: int) -> None:
        self.counts = np.ones(size, np.int64)

    def bounds(self, rows: int) -> np.ndarray:
        """(rows, size + 1), the same table for each."""
        return np.broadcast_to(partition(self.counts[None]), (rows, len(self.counts) + 1))

    def update(self, symbols: np.ndarray) -> None:
        self.counts += 16 * np.bincount(symbols, minlength=len(self.counts))


def _blocks(count: int) -> Iterator[slice]:
    """Short blocks first, while there is much to learn, then blocks of 1024."""
    start, size = 0, 16
    while start < count:
        yield slice(start, min(start + size, count))
        start, size = start + size, min(2 * size, 1024)


class _Histograms:
    """One histogram for each kind of tensor, whichever block it belongs to; scale codes are coded as differences."""

    def __init__(self) -> None:
        self.of: dict[str, Histogram] = {}

    def get(self, name: str, size: int) -> Histogram:
        kind = ".".join(part for part in name.split(".") if not part.isdigit())
        return self.of.setdefault(kind, Histogram(size))


def write_model(config: ModelConfig, tensors: Tensors, check: int) -> bytes:
    """The .vqm bytes; `check` is the result of `gpt.self_test`. Raises ModelError if the tensors are not config's."""
    config.check()
    shapes = config.tensor_shapes()
    if set(shapes) != set(tensors):
        raise ModelError(f"expected the tensors {sorted(shapes)}, found {sorted(tensors)}")
    encoder, histograms = Encoder(), _Histograms()

    def put(symbols: np.ndarray, histogram: Histogram) -> None:
        for block in _blocks(len(symbols)):
            encoder.put_symbols(symbols[block], histogram.bounds(len(symbols[block])))
            histogram.update(symbols[block])

    for name, (shape, rows) in shapes.items():
        codes, scales = (np.asarray(a).astype(np.int64) for a in tensors[name])
        if codes.shape != shape or scales.shape != (rows,) or abs(codes).max() > WEIGHT_MAX or abs(scales).max() > 127:
            raise ModelError(f"tensor {name}: expected codes {shape} in -63..63 and {rows} scales in -127..127")
        put(np.diff(scales, prepend=0) & 255, histograms.get(f"{name}.scales", 256))
        put(codes.reshape(-1) + WEIGHT_MAX, histograms.get(name, 2 * WEIGHT_MAX + 1))
    header = zlib.compress(json.dumps(config.to_dict(), separators=(",", ":")).encode(), 9)
    body = MAGIC + struct.pack("<I", len(header)) + header + struct.pack("<I", check) + encoder.finish()
    return body + struct.pack("<I", zlib.crc32(body))


def read_config(data: bytes) -> tuple[ModelConfig, int, int]:
    """(config, self-test, where the stream starts). Raises ModelError or DamageError."""
    if data[:3] != MAGIC[:3]:
        raise ModelError("not a vqcomp model: the file does not start with 'VQM'")
    if data[:4] != MAGIC:
        raise ModelError(f"model format {data[3:4].hex()} is not known; this version reads 01: upgrade vqcomp")
    if len(data) < 20 or struct.unpack("<I", data[-4:])[0] != zlib.crc32(data[:-4]):
        raise DamageError("the model's checksum does not match: the file is damaged or cut short")
    (length,) = struct.unpack_from("<I", data, 4)
    if length > CONFIG_LIMIT or 12 + length > len(data) - 4:
        raise ModelError(f"model: a config of {length} bytes does not fit")
    try:
        inflate = zlib.decompressobj()
        values = json.loads(inflate.decompress(data[8 : 8 + length], CONFIG_LIMIT))
        config = ModelConfig.from_dict(values)
    except (zlib.error, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"model: the config cannot be read: {error}") from error
    return config, struct.unpack_from("<I", data, 8 + length)[0], 12 + length


def read_model(data: bytes) -> tuple[ModelConfig, dict[str, tuple[np.ndarray, np.ndarray]], int]:
    """.vqm bytes -> (config, tensors, self-test). Raises ModelError or DamageError."""
    config, check, start = read_config(data)
    if config.parameters() > WEIGHTS_LIMIT:
        raise ModelError(f"model: {config.parameters()} weights are more than the limit of {WEIGHTS_LIMIT}")
    decoder, histograms = Decoder(data[start:-4]), _Histograms()

    def get(count: int, histogram: Histogram) -> np.ndarray:
        symbols = np.empty(count, np.int64)
        for block in _blocks(count):
            symbols[block] = decoder.get_symbols(histogram.bounds(len(symbols[block])))
            histogram.update(symbols[block])
        return symbols

    tensors = {}
    for name, (shape, rows) in config.tensor_shapes().items():
        steps = get(rows, histograms.get(f"{name}.scales", 256))
        scales = (np.cumsum(steps) & 255).astype(np.uint8).view(np.int8)
        codes = get(shape[0] * shape[1], histograms.get(name, 2 * WEIGHT_MAX + 1)) - WEIGHT_MAX
        tensors[name] = codes.astype(np.int8).reshape(shape), scales
    return config, tensors, check
