"""Tokens to pictures and pictures to tokens, by the checkpoints that the data sets' makers publish.

A checkpoint is ONNX (.onnx), run by onnxruntime, or tensors alone (.safetensors, or a PyTorch file), run by torch. What
it is, comma's decoder or encoder or 1X's MAGVIT2, is told by its names; nothing is unpickled but tensors.
"""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..data import hub
from ..data.messages import reason
from ..runtime.compute import Compute
from ..runtime.errors import InputError, ModelError
from .extras import need

if TYPE_CHECKING:
    from .autoencoders import Network

COMMA_VOCABULARY = 1024
"""Of comma's codebook. An ONNX file does not say its size."""
SCALE = 16
"""Pixels of a token's side, in comma's and in 1X's."""
_OTHER_PARTS = ("encoder.", "loss.", "quantize.", "model_ema.")
"""What else a checkpoint of MAGVIT2's training holds. 1X's visualize.py takes `decoder.`, not the average beside it."""


class Decoder(Protocol):
    """Tokens -> pictures."""

    vocabulary: int
    """Ids are below this."""

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """ids (T, H, W), integers -> RGB uint8 (T, h, w, 3). Raises InputError for ids or grids that it does not have.

        Frames are computed in batches of the `Compute` that the decoder was loaded with.
        """
        ...


class Encoder(Protocol):
    """Pictures -> tokens."""

    vocabulary: int
    """Ids are below this."""

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """RGB uint8 (T, h, w, 3) -> int64 ids (T, h / 16, w / 16), as one batch."""
        ...


def load_decoder(path: str | os.PathLike[str], compute: Compute | None = None) -> Decoder:
    """The decoder in a file, or at hf://OWNER/NAME/FILE. Raises InputError, ModelError, DependencyError."""
    found = _load(path, compute or Compute())
    if not hasattr(found, "decode"):
        raise ModelError(f"{os.fspath(path)}: expected a decoder, tokens to pictures; found an encoder")
    return found


def load_encoder(path: str | os.PathLike[str], compute: Compute | None = None) -> Encoder:
    """The encoder in a file, or at hf://OWNER/NAME/FILE. Raises InputError, ModelError, DependencyError."""
    found = _load(path, compute or Compute())
    if not hasattr(found, "encode"):
        raise ModelError(f"{os.fspath(path)}: expected an encoder, pictures to tokens; found a decoder")
    return found


def _load(place: str | os.PathLike[str], compute: Compute) -> Any:
    path = hub.local(place, "model")
    if not path.is_file():
        raise InputError(f"{path}: expected a checkpoint (.onnx, .safetensors, .bin, .ckpt), found no such file")
    try:
        return _load_onnx(path, compute) if path.suffix.lower() == ".onnx" else _load_tensors(path, compute)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


class _Base:
    """What decoders share: checks, batches, and the way to bytes."""

    def __init__(self, path: Path, vocabulary: int, batch_size: int) -> None:
        self.path, self.vocabulary, self.batch_size = path, vocabulary, batch_size

    def decode(self, ids: np.ndarray) -> np.ndarray:
        if ids.ndim != 3 or not ids.size:
            raise InputError(f"{self.path}: expected frames of ids (T, H, W), found the shape {ids.shape}")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.vocabulary:
            found = low if low < 0 else high
            raise InputError(f"{self.path}: the decoder knows ids in 0..{self.vocabulary - 1}, the tokens have {found}")
        batches = (ids[i : i + self.batch_size].astype(np.int64) for i in range(0, len(ids), self.batch_size))
        return np.concatenate([_pixels(self.run(batch)) for batch in batches])

    def run(self, ids: np.ndarray) -> np.ndarray:
        """ids int64 (B, H, W) -> RGB (B, 3, h, w), floats of about 0..255. Each kind of checkpoint has its own."""
        raise AssertionError


def _pixels(images: np.ndarray) -> np.ndarray:
    """(B, 3, h, w) floats -> uint8 (B, h, w, 3), cut off towards 0 as comma's and 1X's code do."""
    return np.clip(images, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


# --- ONNX


def _load_onnx(path: Path, compute: Compute) -> Any:
    runtime = need("onnxruntime", "a checkpoint in ONNX")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    if compute.threads:
        options.intra_op_num_threads = compute.threads
    try:
        session = runtime.InferenceSession(str(path), options, providers=_providers(runtime, compute.device))
    except Exception as error:  # onnxruntime has a class of its own for each failure
        raise ModelError(f"onnxruntime cannot load it: {reason(error)}") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) == 1:
        if inputs[0].name == "encoding_indices":
            _expect(inputs[0], ("tensor(int64)",), 3)
            output = _only(outputs, "big_decoded_img")
            _expect(output, ("tensor(float)", "tensor(float16)"), 4)
            return OnnxDecoder(path, session, inputs[0], compute.batch_size)
        if inputs[0].name == "big_img":
            _expect(inputs[0], ("tensor(float)", "tensor(float16)"), 4)
            _expect(_only(outputs, "encoding_indices"), ("tensor(int64)", "tensor(int32)"), 2, 3)
            return OnnxEncoder(path, session, inputs[0])
    names = ", ".join(x.name for x in inputs) or "none"
    raise ModelError(f"expected the one input encoding_indices (a decoder) or big_img (an encoder), found {names}")


def _providers(runtime: Any, device: str) -> list[Any]:
    """Where onnxruntime computes. Raises InputError for a GPU that it does not have."""
    has = "CUDAExecutionProvider" in runtime.get_available_providers()
    if device.startswith("cuda"):
        if not has:
            raise InputError("--device cuda: this onnxruntime computes on no GPU; install onnxruntime-gpu")
        index = int(device.partition(":")[2] or 0)
        return [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"]
    return (["CUDAExecutionProvider"] if has and device == "auto" else []) + ["CPUExecutionProvider"]


def _only(outputs: list[Any], name: str) -> Any:
    if [x.name for x in outputs] != [name]:
        raise ModelError(f"expected the one output {name}, found {', '.join(x.name for x in outputs)}")
    return outputs[0]


def _expect(tensor: Any, types: tuple[str, ...], *dimensions: int) -> None:
    shape = "known only when it runs" if tensor.shape is None else " x ".join(map(str, tensor.shape))
    if tensor.type not in types or (tensor.shape and len(tensor.shape) not in dimensions):
        expected = f"{' or '.join(types)} of {' or '.join(map(str, dimensions))} dimensions"
        raise ModelError(f"{tensor.name}: expected a {expected}, found a {tensor.type}, {shape}")


class _Fixed:
    """The shape that an ONNX input asks for; where a dimension has a name, any will do."""

    def __init__(self, path: Path, tensor: Any) -> None:
        self.path, self.name = path, tensor.name
        self.shape = [d if isinstance(d, int) and d > 0 else None for d in tensor.shape]

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise InputError unless (B, ...) fits but for B."""
        if any(d is not None and d != s for d, s in zip(self.shape[1:], shape[1:])):
            want = " x ".join(str(d or "any") for d in self.shape[1:])
            found = " x ".join(map(str, shape[1:]))
            raise InputError(f"{self.path}: {self.name} takes frames of {want}, these are {found}")

    def run(self, session: Any, x: np.ndarray) -> np.ndarray:
        """The output for x (B, ...), in pieces of the batch size that the file fixes, the last one filled up."""
        self.check(x.shape)
        size = self.shape[0] or len(x)
        parts = []
        for i in range(0, len(x), size):
            part = x[i : i + size]
            padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)])
            try:
                (y,) = session.run(None, {self.name: padded})
            except Exception as error:  # onnxruntime has a class of its own for each failure
                raise InputError(f"{self.path}: onnxruntime cannot run it: {reason(error)}") from error
            parts.append(y[: len(part)])
        return np.concatenate(parts)


class OnnxDecoder(_Base):
    """comma's decoder: encoding_indices int64 (B, 8, 16) -> big_decoded_img (B, 3, 128, 256)."""

    def __init__(self, path: Path, session: Any, tensor: Any, batch_size: int) -> None:
        super().__init__(path, COMMA_VOCABULARY, batch_size)
        self.session, self.input = session, _Fixed(path, tensor)

    def run(self, ids: np.ndarray) -> np.ndarray:
        try:
            return self.input.run(self.session, ids)
        except InputError as error:
            # A codebook smaller than comma's is found where it is looked up.
            if re.search(r"indices element out of data bounds|out of bounds|GatherND|Gather", str(error)):
                raise InputError(f"{self.path}: the tokens have ids beyond the decoder's codebook") from error
            raise


class OnnxEncoder:
    """comma's encoder: big_img (B, 3, 128, 256), RGB of 0..255 -> encoding_indices (B, 8, 16) or (B, 128)."""

    def __init__(self, path: Path, session: Any, tensor: Any) -> None:
        self.session, self.input, self.vocabulary = session, _Fixed(path, tensor), COMMA_VOCABULARY
        self.dtype = np.float16 if tensor.type == "tensor(float16)" else np.float32

    def encode(self, frames: np.ndarray) -> np.ndarray:
        x = np.ascontiguousarray(frames.transpose(0, 3, 1, 2).astype(self.dtype))
        ids = self.input.run(self.session, x).astype(np.int64)
        grid = len(frames), frames.shape[1] // SCALE, frames.shape[2] // SCALE
        if ids.size != np.prod(grid):
            raise ModelError(f"{self.input.path}: expected {grid[1]} x {grid[2]} ids a frame, found {ids.shape[1:]}")
        return ids.reshape(grid)


# --- torch


def _load_tensors(path: Path, compute: Compute) -> Any:
    torch = need("torch", "a checkpoint of PyTorch")
    from .autoencoders import CommaDecoder, CommaEncoder, Magvit2Decoder, build

    tensors = read_tensors(path)
    kind: type[Network]
    if "post_quant_conv.weight" in tensors:
        kind = CommaDecoder
    elif "quant_conv.weight" in tensors:
        kind = CommaEncoder
    elif any(name.startswith("decoder.") for name in tensors):
        kind, whole = Magvit2Decoder, tensors
        tensors = {n.removeprefix("decoder."): t for n, t in whole.items() if not n.startswith(_OTHER_PARTS)}
    else:
        some = ", ".join(list(tensors)[:3]) or "none"
        raise ModelError(f"expected comma's decoder or encoder, or 1X's MAGVIT2; found tensors such as {some}")
    network = build(kind, tensors)
    device = compute.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "numpy":
        device = "cpu"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {device}: this torch sees no GPU; try --device cpu")
    if compute.threads:
        torch.set_num_threads(compute.threads)
    if kind is CommaEncoder:
        return TorchEncoder(network, device)
    return TorchDecoder(path, network, device, compute.batch_size)


def read_tensors(path: Path) -> dict[str, Any]:
    """The tensors of a .safetensors or PyTorch file by name; of a training's checkpoint, its `state_dict`.

    Raises ModelError, DependencyError. Nothing else is unpickled: such a file could run code.
    """
    if path.suffix.lower() == ".safetensors":
        load = need("safetensors.torch", "a checkpoint in safetensors").load_file
        try:
            return dict(load(path))
        except Exception as error:
            raise ModelError(f"safetensors cannot read it: {reason(error)}") from error
    torch = need("torch", "a checkpoint of PyTorch")
    try:
        table = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "Unsupported" in str(error):
            raise ModelError(
                "it holds more than tensors, and loading that could run code; where you trust it, write its "
                "state_dict with safetensors.torch.save_file and take that"
            ) from error
        raise ModelError("expected a PyTorch file of tensors, found other data") from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError, TypeError) as error:
        raise ModelError(f"expected a PyTorch file of tensors, found other data: {reason(error)}") from error
    if isinstance(table, dict) and isinstance(table.get("state_dict"), dict):
        table = table["state_dict"]
    if not isinstance(table, dict) or not all(isinstance(t, torch.Tensor) for t in table.values()):
        raise ModelError("expected tensors by name (a state_dict), found something else")
    return dict(table)


class TorchDecoder(_Base):
    """A decoder of autoencoders.py."""

    def __init__(self, path: Path, network: Any, device: str, batch_size: int) -> None:
        super().__init__(path, network.vocabulary, batch_size)
        self.network, self.device = network.to(device), device

    def run(self, ids: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            images: np.ndarray = self.network(torch.from_numpy(ids).to(self.device)).cpu().numpy()
        return images


class TorchEncoder:
    """The encoder of autoencoders.py."""

    def __init__(self, network: Any, device: str) -> None:
        self.network, self.device, self.vocabulary = network.to(device), device, network.vocabulary

    def encode(self, frames: np.ndarray) -> np.ndarray:
        import torch

        x = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
        with torch.inference_mode():
            ids: np.ndarray = self.network(x.to(self.device).float()).cpu().numpy()
        return ids
