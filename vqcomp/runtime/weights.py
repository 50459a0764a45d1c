"""The model file (.vqm): a ModelConfig and its integer weights, range coded.

    magic "VQM\\x02" | u32 length of config | config, JSON, deflated | u32 self-test | streams words | u32 CRC-32

All integers are little-endian. The CRC covers everything before it. FORMAT.md is normative.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable

import numpy as np

from .arithmetic import WEIGHT_MAX
from .coder import Decoder, Encoder
from .config import ModelConfig
from .engine import Tensors
from .errors import DamageError, ModelError
from .tables import get_symbols, partition, put_symbols

MAGIC = b"VQM\x02"
CONFIG_LIMIT = 1 << 20
WEIGHTS_LIMIT, FEW_WEIGHTS, WEIGHTS_PER_BYTE = 1 << 30, 1 << 20, 64
"""Readers refuse larger configs (bytes) and models (weights), and more weights than a file of its length may hold."""

SPREADS = 12
"""Contexts of codes, and values of what is told of a row."""
CODES_AT_ONCE = 512
"""Rows of about so many codes are coded by what the rows before say of their columns."""


def code_counts() -> np.ndarray:
    """Frequencies of codes to begin with, (SPREADS, 127): context q expects a mean magnitude of about 2^q / 16."""
    q, k = np.arange(SPREADS)[:, None], abs(np.arange(-WEIGHT_MAX, WEIGHT_MAX + 1))
    return 1 + (1 << (q + 13)) // ((1 << q) + 16 * k) ** 2


def spreads(codes: np.ndarray) -> np.ndarray:
    """What is told of each row: 0 if all its codes are 0, else r for a mean magnitude of about 2^r / 32."""
    total = abs(codes).sum(1)
    squares = 2048 * total**2 // codes.shape[1] ** 2
    return np.where(total > 0, ((np.frexp(squares)[1] - 1) // 2).clip(1, SPREADS - 1), 0).astype(np.int64)


def kind_of(name: str) -> str:
    """A tensor's name without the numbers: tensors of one kind share the tables of their scales and spreads."""
    return ".".join(part for part in name.split(".") if not part.isdigit())


class WeightCoder:
    """Codes or decodes tensors, one after another; `coder` does so with symbols (n,) by their bounds."""

    def __init__(self, coder: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        self.coder = coder
        self.counts = {"codes": code_counts()}

    def code(self, table: str, symbols: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        """By the table's adaptive frequencies (contexts, size); both sides update them alike after each block."""
        counts = self.counts[table]
        length = 16 if len(counts) == 1 else 128
        for i in range(0, len(symbols), length):
            block = slice(i, i + length)
            symbols[block] = self.coder(symbols[block], partition(counts)[contexts[block]])
            np.add.at(counts, (contexts[block], symbols[block]), 16)
        return symbols

    def tensor(self, name: str, codes: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 codes (rows, columns) and scale codes (scales,); in decoding their shapes alone are looked at."""
        kind = kind_of(name)
        for part, size in (("scales", 256), ("spreads", SPREADS)):
            self.counts.setdefault(f"{kind}.{part}", np.ones((1, size), np.int64))
        (rows, columns), alone = codes.shape, np.zeros(codes.size, np.int64)
        steps = self.code(f"{kind}.scales", np.diff(scales, prepend=0) & 255, alone[: len(scales)])
        told = self.code(f"{kind}.spreads", spreads(codes), alone[:rows])[:, None]
        # Magnitudes in a column so far, and what the spreads let expect of it, both in 1/16.
        found, expected = np.full(columns, 64), 64
        step = max(1, CODES_AT_ONCE // columns)
        for first in range(0, rows, step):
            block, r = codes[first : first + step], told[first : first + step]
            context = np.frexp((found << r) // (3 * expected))[1].clip(0, SPREADS - 1)
            live = r.repeat(columns, 1) > 0
            block[live] = self.code("codes", block[live] + WEIGHT_MAX, context[live]) - WEIGHT_MAX
            found += 16 * abs(block).sum(0)
            expected += (1 << r >> 1).sum()
        return codes, np.cumsum(steps)


def write_model(config: ModelConfig, tensors: Tensors, check: int) -> bytes:
    """The .vqm bytes; `check` is the result of `gpt.self_test`. Raises ModelError if the tensors are not config's."""
    config.check()
    shapes = config.tensor_shapes()
    if set(shapes) != set(tensors):
        raise ModelError(f"expected the tensors {sorted(shapes)}, found {sorted(tensors)}")
    encoder = Encoder()

    def put(symbols: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        put_symbols(encoder, symbols, bounds)
        return symbols

    coder = WeightCoder(put)
    for name, (shape, rows) in shapes.items():
        codes, scales = (np.array(a, np.int64) for a in tensors[name])
        if codes.shape != shape or scales.shape != (rows,) or abs(codes).max() > WEIGHT_MAX or abs(scales).max() > 127:
            raise ModelError(f"tensor {name}: expected codes {shape} in -63..63 and {rows} scales in -127..127")
        coder.tensor(name, codes, scales)
    header = zlib.compress(json.dumps(config.to_dict(), separators=(",", ":")).encode(), 9)
    body = MAGIC + struct.pack("<I", len(header)) + header + struct.pack("<I", check) + encoder.finish()
    return body + struct.pack("<I", zlib.crc32(body))


def read_config(data: bytes) -> tuple[ModelConfig, int, int]:
    """(config, self-test, where the stream starts). Raises ModelError or DamageError."""
    if data[:3] != MAGIC[:3]:
        raise ModelError("not a vqcomp model: the file does not start with 'VQM'")
    if data[:4] != MAGIC:
        raise ModelError(f"model format {data[3:4].hex()} is not known; this version reads 02: upgrade vqcomp")
    if len(data) < 20 or struct.unpack("<I", data[-4:])[0] != zlib.crc32(data[:-4]):
        raise DamageError("the model's checksum does not match: the file is damaged or cut short")
    (length,) = struct.unpack_from("<I", data, 4)
    if length > CONFIG_LIMIT or 12 + length > len(data) - 4:
        raise ModelError(f"model: a config of {length} bytes does not fit")
    try:
        inflate = zlib.decompressobj()
        values = json.loads(inflate.decompress(data[8 : 8 + length], CONFIG_LIMIT))
        config = ModelConfig.from_dict(values)
    except (zlib.error, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ModelError(f"model: the config cannot be read: {error}") from error
    return config, struct.unpack_from("<I", data, 8 + length)[0], 12 + length


def read_model(data: bytes) -> tuple[ModelConfig, dict[str, tuple[np.ndarray, np.ndarray]], int]:
    """.vqm bytes -> (config, tensors, self-test). Raises ModelError or DamageError."""
    config, check, start = read_config(data)
    limit = min(WEIGHTS_LIMIT, FEW_WEIGHTS + WEIGHTS_PER_BYTE * len(data))
    if config.parameters() > limit:
        raise ModelError(f"model: {config.parameters()} weights are over the limit of {limit} for {len(data)} bytes")
    decoder = Decoder(data[start:-4])
    coder = WeightCoder(lambda symbols, bounds: get_symbols([decoder], bounds))
    tensors = {}
    for name, (shape, rows) in config.tensor_shapes().items():
        codes, scales = coder.tensor(name, np.zeros(shape, np.int64), np.zeros(rows, np.int64))
        tensors[name] = codes.astype(np.int8), (scales & 255).astype(np.uint8).view(np.int8)
    return config, tensors, check
