"""Checkpoints of the GPT-2 family: read, checked, and quantised the same way on every machine."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DependencyError, ModelError
from .exact import load_torch
from .token_config import TokenConfig, shown

NAMES = ("model.safetensors", "pytorch_model.bin")
"""Files of weights, in the order in which they are looked for."""
CONFIG = "config.json"
_CONFIG_LIMIT, _HEADER_LIMIT = 1 << 20, 1 << 24
_NUMBER_LIMIT = 1 << 62
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
    path = next((folder / name for name in NAMES if os.path.isfile(folder / name)), None)
    if path is None:
        raise ModelError(f"{folder}: expected a folder with {' or '.join(NAMES)}, found neither")
    return path


def open_weights(path: Path, config: TokenConfig, kind: str = "") -> Load:
    """Open model.safetensors or pytorch_model.bin, or a file of that `kind`: what loads a tensor by its name.

    Nothing in the file is run. Raises ModelError, which names what is missing or of another shape; DependencyError
    where pytorch_model.bin needs torch and there is none.
    """
    tensors = _safetensors(path) if (kind or path.name).endswith(".safetensors") else _torch(path)
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
    if not os.path.lexists(path):
        return TokenConfig()
    try:
        # Not one that has no end, or waits for another to write.
        if not os.path.isfile(path) or path.stat().st_size > _CONFIG_LIMIT:
            raise ModelError(f"{path}: expected a regular file of at most {_CONFIG_LIMIT:,} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: expected JSON, found {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: expected a JSON object")
    try:
        return TokenConfig.from_dict(values)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


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
        raise ModelError(f"{path}: expected no tensor {shown(extra[0])}; is this another kind of network?")


def _safetensors(path: Path) -> _Tensors:
    """The tensors of a .safetensors file: u64 n | n bytes of JSON | data; mapped, not read."""
    try:
        with open(path, "rb") as handle:
            size, length = os.path.getsize(path), int.from_bytes(handle.read(8), "little")
            if not 0 < length <= min(_HEADER_LIMIT, size - 9):
                raise ValueError(f"{size:,} bytes with a header of {length:,}")
            try:
                header = json.loads(handle.read(length), object_pairs_hook=_unique)
            except (UnicodeDecodeError, RecursionError) as error:
                raise ValueError("a header that is not JSON") from error
        if not isinstance(header, dict):
            raise ValueError("a header that is no JSON object")
        header.pop("__metadata__", None)
        data = np.memmap(path, np.uint8, "r", 8 + length)
        tensors: _Tensors = {}
        starts, ends = [], []
        for name, entry in header.items():
            dtype, shape, start, end = _place(name, entry)
            starts.append(start)
            ends.append(end)
            if dtype not in _DTYPES:
                tensors[name] = shape, _refuser(path, name, dtype)  # boolean masks are never asked for
                continue
            kind = np.dtype(_DTYPES[dtype])
            if end - start != math.prod(shape) * kind.itemsize:
                raise ValueError(f"a tensor {shown(name)} of another size than its shape says")
            tensors[name] = shape, _reader(data[start:end], kind, shape, dtype == "BF16")
        # Each byte is of one tensor: ends and beginnings are the same but for the first and the last.
        if sorted([0, *ends]) != sorted([*starts, len(data)]):
            raise ValueError("tensors that overlap, or bytes that are of none")
        return tensors
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelError(f"{path}: expected a file of safetensors, found {error}: fetch it again") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError for one that readers may take to mean different things."""
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a header that has a name twice")
    return table


def _place(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """(type, shape, first byte, end) that a header says of a tensor. Raises ValueError."""
    with suppress(TypeError, KeyError, ValueError):
        dtype, shape, (start, end) = (entry[field] for field in ("dtype", "shape", "data_offsets"))
        # Few numbers and none too large, for their product takes time.
        whole = len(shape) < 9 and all(type(n) is int and 0 <= n < _NUMBER_LIMIT for n in (start, end, *shape))
        if whole and start <= end:
            return str(dtype), tuple(shape), start, end
    raise ValueError(f"no type, shape and place of the tensor {shown(name)}")


def _refuser(path: Path, name: str, dtype: str) -> Callable[[], np.ndarray]:
    def refuse() -> np.ndarray:
        raise ModelError(f"{path}: {name}: expected numbers of a type among {', '.join(_DTYPES)}, found {shown(dtype)}")

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
        if not all(isinstance(x, torch.Tensor) for x in state.values()):
            raise ValueError
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged zip or pickle gives; torch's advice is to run what is in it
        raise ModelError(
            f"{path}: expected a dictionary of tensors, as torch.save(model.state_dict(), ...) writes it, found other "
            f"values, damage, or code, which is not run: fetch it again, or {NAMES[0]}"
        ) from error
    tensors: _Tensors = {}
    for name, x in state.items():
        found = f"{x.dtype}, {x.layout}, {x.device}"
        tensors[str(name)] = tuple(x.shape), _refuser(path, str(name), found)
        if x.is_floating_point() and x.layout == torch.strided and x.device.type == "cpu":
            tensors[str(name)] = tuple(x.shape), lambda x=x: x.detach().float().numpy()  # type: ignore[misc]
    return tensors


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
