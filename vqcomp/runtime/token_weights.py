"""Checkpoints of the GPT-2 family: read, checked, and quantised the same way on every machine."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DependencyError, ModelError
from .exact import load_torch
from .token_config import TokenConfig

NAMES = ("model.safetensors", "pytorch_model.bin")
"""Files of weights, in the order in which they are looked for."""
CONFIG = "config.json"
_CONFIG_LIMIT, _HEADER_LIMIT = 1 << 20, 1 << 26
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}

PART = 128
"""What the higher of two parts counts in."""
WEIGHT_TOP = (None, 63, 63 * PART + 63)
"""Largest code of a weight of one and of two parts."""


_Tensors = dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]
Load = Callable[[str], np.ndarray]
"""Name of a tensor -> float32 array of the shape that the config says."""


def find_weights(folder: Path) -> Path:
    """The file of weights in a checkpoint's folder. Raises ModelError."""
    path = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if path is None:
        raise ModelError(f"{folder}: expected a folder with {' or '.join(NAMES)}, found neither")
    return path


def open_weights(path: Path, config: TokenConfig) -> Load:
    """Open model.safetensors or pytorch_model.bin: what loads a tensor by its name.

    Nothing in the file is run. Raises ModelError, which names what is missing or of another shape; DependencyError
    where pytorch_model.bin needs torch and there is none.
    """
    tensors = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    _check_shapes(path, config, {name: shape for name, (shape, _) in tensors.items()})

    def load(name: str) -> np.ndarray:
        array = tensors[name][1]()
        with np.errstate(over="ignore"):
            array = np.array(array, np.float32, order="C")  # a copy, which may be written to
        if not np.isfinite(array).all():
            raise ModelError(f"{path}: {name}: expected finite weights, found infinite ones or none that are numbers")
        return array

    return load


def read_config(folder: Path) -> TokenConfig:
    """The shape that config.json tells; gpt2m's where there is none. Raises ModelError."""
    path = folder / CONFIG
    try:
        data = path.read_bytes() if path.stat().st_size <= _CONFIG_LIMIT else b""
    except FileNotFoundError:
        return TokenConfig()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: expected JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: expected a JSON object")
    try:
        return TokenConfig.from_dict(values)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error


def _check_shapes(path: Path, config: TokenConfig, found: dict[str, tuple[int, ...]]) -> None:
    for name, shape in config.tensor_shapes().items():
        if name not in found:
            hint = "; an output head of its own is expected" if name == "lm_head.weight" else ""
            raise ModelError(f"{path}: there is no tensor {name}, expected one of shape {shape}{hint}")
        if found[name] != shape:
            raise ModelError(f"{path}: {name}: expected the shape {shape}, found {found[name]}; see {CONFIG}")
    # Masks that older versions of transformers stored with the weights.
    extra = sorted(n for n in found.keys() - config.tensor_shapes().keys() if not n.endswith((".bias", ".masked_bias")))
    if extra:
        raise ModelError(f"{path}: expected no tensor {extra[0]}; is this another kind of network?")


def _safetensors(path: Path) -> _Tensors:
    """The tensors of a .safetensors file: u64 n | n bytes of JSON | data; mapped, not read."""
    try:
        with open(path, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if length > _HEADER_LIMIT:
                raise ValueError(f"a header of {length:,} bytes")
            header = json.loads(handle.read(length))
        data = np.memmap(path, np.uint8, "r", 8 + length)
        tensors: _Tensors = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
            if entry["dtype"] not in _DTYPES:
                tensors[name] = shape, _refuser(path, name, entry["dtype"])  # boolean masks are never asked for
                continue
            dtype = np.dtype(_DTYPES[entry["dtype"]])
            if not all(type(n) is int and n >= 0 for n in (*shape, start, end)) or end > len(data):
                raise ValueError(f"a tensor {name} outside of the file")
            if end - start != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"a tensor {name} of another size than its shape says")
            tensors[name] = shape, _reader(data[start:end], dtype, shape, entry["dtype"] == "BF16")
        return tensors
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: expected a file of safetensors, found {error}") from error


def _refuser(path: Path, name: str, dtype: str) -> Callable[[], np.ndarray]:
    def refuse() -> np.ndarray:
        raise ModelError(f"{path}: {name}: expected numbers of a type among {', '.join(_DTYPES)}, found {dtype}")

    return refuse


def _reader(data: np.ndarray, dtype: np.dtype[Any], shape: tuple[int, ...], brain: bool) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        array = data.view(dtype).reshape(shape)
        # A bfloat16 is the upper half of a float32.
        return (array.astype(np.uint32) << 16).view(np.float32) if brain else array

    return read


def _torch(path: Path) -> _Tensors:
    try:
        torch = load_torch()
    except DependencyError as error:
        raise DependencyError(f"{path}: {error}; or convert it to {NAMES[0]}") from error
    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files of older versions of torch cannot be mapped
            state = torch.load(path, map_location="cpu", weights_only=True)
        return {str(name): (tuple(x.shape), lambda x=x: x.float().numpy()) for name, x in state.items()}  # type: ignore[misc]
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # whatever a damaged zip or pickle gives
        reason = str(error).split("\n")[0]
        raise ModelError(f"{path}: expected a dictionary of tensors, as torch.save writes it: {reason}") from error


def quantise(matrix: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 (N, K) -> codes int8 (parts * N, K) and each row's maximum float32 (N,), which WEIGHT_TOP stands for.

    A code is one float32 product, rounded: IEEE 754 says which. Of two parts the first N rows, within 63, count 128
    each, and the others are in -64..63.
    """
    top = WEIGHT_TOP[parts]
    assert top is not None
    largest = np.abs(matrix).max(1)
    # A row of denormal numbers would give an infinite factor; such weights are as good as none.
    with np.errstate(over="ignore"):
        factor = np.float32(top) / np.where(largest > 0, largest, np.float32(1))
    factor = np.where(np.isfinite(factor), factor, np.float32(0))
    codes = np.clip(np.rint(matrix * factor[:, None]), -top, top).astype(np.int16)
    if parts == 1:
        return codes.astype(np.int8), largest
    high = (codes + PART // 2) >> 7
    return np.concatenate([high, codes - high * PART]).astype(np.int8), largest
