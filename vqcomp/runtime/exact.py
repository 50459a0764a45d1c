"""The operations that prediction is made of, over NumPy or torch, with the same bits from both.

Every array holds integers below 2^24 in float32, or quotients and products of such that are rounded before they are
added to anything. IEEE 754 fixes the result of a single `+ - * /` and of a rounding; sums and matrix products of
integers below 2^24 are exact in any order. So no thread count, batch, BLAS, instruction set or fused multiply-add can
change a bit. FORMAT.md derives the bounds.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from functools import lru_cache
from typing import Any

import numpy as np

from .arithmetic import ACTIVATION_MAX
from .errors import DependencyError, InputError

Array = Any
"""A NumPy array or a torch tensor; float32 unless said otherwise."""

Weight = tuple[Any, Any]
"""What `linear` multiplies by, and the multipliers of what comes out; None for none."""


class NumpyOps:
    """The operations over NumPy. Names that end in `_` work in place and return their first argument."""

    name = "numpy"
    on_host = True

    def settings(self, shared: bool = True) -> AbstractContextManager[None]:
        """Within it, the process is set up for these operations, each on one thread unless `shared`; then as it was."""
        return nullcontext()

    def load(self, array: np.ndarray) -> Array:
        """Host array -> array of this backend, dtype kept."""
        return np.ascontiguousarray(array)

    def host(self, x: Array) -> np.ndarray:
        """Array of this backend -> host array."""
        return np.ascontiguousarray(x)

    def empty(self, *shape: int) -> Array:
        """float32, values undefined."""
        return np.empty(shape, np.float32)

    def weight(self, codes: np.ndarray, scales: np.ndarray | None = None) -> Weight:
        """(N, K) integer codes and perhaps a multiplier for each row (N,) -> what `linear` wants."""
        return np.ascontiguousarray(codes.T, np.float32), None if scales is None else self.load(scales)

    def linear(self, x: Array, weight: Weight) -> Array:
        """(M, K) times a `weight` of (N, K) -> (M, N), exact while K * max|x| * max|w| < 2^24; times the multipliers.

        x: integers of any type.
        """
        matrix, scale = weight
        y = np.matmul(x.astype(np.float32, copy=False), matrix)
        return y if scale is None else np.multiply(y, scale, out=y)

    def codes(self, x: Array, weight: Weight) -> Array:
        """`linear`, rounded and clipped to ACTIVATION_MAX: integers of a type that `linear` takes as it is."""
        return self.clip_(self.round_(self.linear(x, weight)), -ACTIVATION_MAX, ACTIVATION_MAX)

    def empty_codes(self, *shape: int) -> Array:
        """Of that type, values undefined."""
        return self.empty(*shape)

    def bmm(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """(n, M, K) @ (n, K, N), exact under the same condition."""
        return np.matmul(a, b, out=out)

    def take(self, table: Array, index: Array, axis: int = 0) -> Array:
        """The slices of `table` that the integers (n,) name."""
        return np.take(table, index, axis)

    def take_sum(self, table: Array, index: Array) -> Array:
        """The sum of the rows of `table` (R, D) that each row of `index` (n, m) names: (n, D)."""
        return np.take(table, index, 0).sum(1)

    def round_(self, x: Array) -> Array:
        """To the nearest integer, halves to even."""
        return np.rint(x, out=x)

    def clip_(self, x: Array, low: float, high: float) -> Array:
        return np.clip(x, low, high, out=x)

    def floor_(self, x: Array, out: Array | None = None) -> Array:
        """Perhaps into another array."""
        return np.floor(x, out=x if out is None else out)

    def at_least_(self, x: Array, low: float) -> Array:
        return np.maximum(x, low, out=x)

    def row_max(self, x: Array) -> Array:
        return x.max(axis=-1, keepdims=True)

    def row_sum(self, x: Array) -> Array:
        return x.sum(axis=-1, keepdims=True)

    def abs_sum(self, x: Array) -> Array:
        """Of each row, kept as a column."""
        return np.abs(x).sum(axis=-1, keepdims=True)

    def quotient(self, numerator: float, x: Array) -> Array:
        """numerator / x, one correctly rounded division."""
        return np.divide(np.float32(numerator), x)

    def permute(self, x: Array, *axes: int) -> Array:
        return x.transpose(axes)

    def arrange(self, x: Array, *axes: int) -> Array:
        """`permute`, with float32 to hold the integers."""
        return x.transpose(axes)

    def transpose(self, x: Array) -> Array:
        """Swap the last two axes."""
        return x.swapaxes(-1, -2)

    def concat(self, parts: list[Array], axis: int) -> Array:
        return np.concatenate(parts, axis)

    def where(self, condition: Array, x: Array, y: Array) -> Array:
        return np.where(condition, x, y)

    def bits_to_float(self, x: Array) -> Array:
        """float32 holding integers below 2^31 -> the float32 that has this integer as its bit pattern."""
        return x.astype(np.int32).view(np.float32)

    def add_at_(self, x: Array, columns: Array, values: Array) -> Array:
        """x[i, columns[i, j]] += values[i, j] for all i, j; x (n, V), columns and values (n, G). Integers only."""
        np.add.at(x, (np.arange(len(x))[:, None], columns), values)
        return x


class TorchOps:
    """The same operations over torch, on the CPU or a GPU."""

    def __init__(self, device: str = "cpu", gemm: str = "float32", threads: int | None = None) -> None:
        """gemm: the type that products multiply, float32 or float64 (others: products.py). threads: for the CPU; None
        leaves torch's own choice. Torch is set up so within `settings` alone."""
        torch = load_torch()
        self.torch = torch
        self.device = torch.device(device)
        self.name = f"torch:{self.device}"
        self.on_host = self.device.type == "cpu"
        self.gemm = gemm
        self._constants: dict[float, Array] = {}
        self.threads = threads

    @contextmanager
    def settings(self, shared: bool = True) -> Iterator[None]:
        torch, products = self.torch, self.torch.backends.cuda.matmul
        threads, tf32 = torch.get_num_threads(), not self.on_host and products.allow_tf32
        torch.set_num_threads((self.threads or threads) if shared else 1)
        if tf32:
            # Products of integers within 8 bits are exact in TF32 as well, but the sums of attention are not of such.
            products.allow_tf32 = False
        try:
            with torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(threads)
            if tf32:
                products.allow_tf32 = True

    def load(self, array: np.ndarray) -> Array:
        return self.torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def host(self, x: Array) -> np.ndarray:
        return x.contiguous().cpu().numpy()

    def empty(self, *shape: int) -> Array:
        return self.torch.empty(shape, dtype=self.torch.float32, device=self.device)

    def weight(self, codes: np.ndarray, scales: np.ndarray | None = None) -> Weight:
        matrix = self.load(codes.T).to(getattr(self.torch, self.gemm))
        return matrix, None if scales is None else self.load(scales)

    def linear(self, x: Array, weight: Weight) -> Array:
        matrix, scale = weight
        y = self._product(x.to(matrix.dtype), matrix).float()
        return y if scale is None else y.mul_(scale)

    def _product(self, x: Array, matrix: Array) -> Array:
        return self.torch.mm(x, matrix)

    def codes(self, x: Array, weight: Weight) -> Array:
        return self.linear(x, weight).round_().clamp_(-ACTIVATION_MAX, ACTIVATION_MAX)

    def empty_codes(self, *shape: int) -> Array:
        return self.empty(*shape)

    def bmm(self, a: Array, b: Array, out: Array | None = None) -> Array:
        # On a CPU, torch computes the smallest products of a row and a matrix in a loop that takes three times as long.
        if self.on_host and a.shape[1] == 1 and a.shape[2] * b.shape[2] < 400:
            return self.torch.sum(a.mT * b, 1, keepdim=True, out=out)
        return self.torch.bmm(a, b, out=out)

    def take(self, table: Array, index: Array, axis: int = 0) -> Array:
        return table.index_select(axis, index)

    def take_sum(self, table: Array, index: Array) -> Array:
        return self.torch.nn.functional.embedding_bag(index, table, mode="sum")

    def round_(self, x: Array) -> Array:
        return x.round_()

    def clip_(self, x: Array, low: float, high: float) -> Array:
        return x.clamp_(low, high)

    def floor_(self, x: Array, out: Array | None = None) -> Array:
        return self.torch.floor(x, out=x if out is None else out)

    def at_least_(self, x: Array, low: float) -> Array:
        return x.clamp_(min=low)

    def row_max(self, x: Array) -> Array:
        return x.amax(-1, keepdim=True)

    def row_sum(self, x: Array) -> Array:
        return x.sum(-1, keepdim=True)

    def abs_sum(self, x: Array) -> Array:
        return x.abs().sum(-1, keepdim=True)

    def quotient(self, numerator: float, x: Array) -> Array:
        # `number / tensor` is a reciprocal and a product in torch: two roundings. Two tensors are divided properly.
        if numerator not in self._constants:
            self._constants[numerator] = self.torch.tensor(numerator, dtype=self.torch.float32, device=self.device)
        return self.torch.div(self._constants[numerator], x)

    def permute(self, x: Array, *axes: int) -> Array:
        return x.permute(*axes)

    def arrange(self, x: Array, *axes: int) -> Array:
        x = x.permute(*axes)
        return x if x.dtype == self.torch.float32 else self.empty(*x.shape).copy_(x)

    def transpose(self, x: Array) -> Array:
        return x.mT

    def concat(self, parts: list[Array], axis: int) -> Array:
        return self.torch.cat(parts, axis)

    def where(self, condition: Array, x: Array, y: Array) -> Array:
        return self.torch.where(condition, x, y)

    def bits_to_float(self, x: Array) -> Array:
        return x.to(self.torch.int32).view(self.torch.float32)

    def add_at_(self, x: Array, columns: Array, values: Array) -> Array:
        return x.scatter_add_(1, columns, values)


@lru_cache
def load_torch() -> Any:
    """The module torch, once an array has come back from it unchanged. Raises DependencyError."""
    # A torch that was built for another NumPy says so in some fifty lines; one of our own says what it means here.
    noise = io.StringIO()
    # Read when torch comes in: threads that have nothing to do spin for some microseconds, since the next operation
    # often comes as soon, and then wait, so that others do not starve. docs/LOG.md has the table.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="10000")
    try:
        with redirect_stderr(noise), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch

            array = np.arange(3, dtype=np.float32)
            proven = np.array_equal(torch.from_numpy(array).numpy(), array)
    except ImportError as error:
        raise DependencyError("torch is not installed: pip install torch") from error
    except (RuntimeError, TypeError) as error:
        proven, reason = False, str(error)
    else:
        reason = "an array did not come back as it was"
    if not proven:
        raise DependencyError(
            f"torch {torch.__version__} does not work with NumPy {np.__version__} ({reason}); "
            "pip install 'numpy<2', or a newer torch"
        )
    return torch


def make_ops(device: str = "auto", threads: int | None = None) -> NumpyOps | TorchOps:
    """The best backend that `device` allows.

    device: "auto" (CUDA if there is one, else torch on the CPU, else NumPy), "numpy", "cpu", "cuda" or "cuda:n".
    A torch that is there but does not work with this NumPy is passed over, with a warning.
    threads: for torch on the CPU; None leaves torch's own choice.
    Raises InputError for a device that is not here, DependencyError where it needs torch and there is none.
    """
    if device == "numpy":
        return NumpyOps()
    try:
        torch = load_torch()
    except DependencyError as error:
        if device.startswith("cuda"):
            raise DependencyError(f"device {device!r} needs torch: {error}") from error
        if sys.modules.get("torch"):
            logging.getLogger("vqcomp").warning("note: %s; NumPy does the computing instead", error)
        return NumpyOps()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {device!r}: torch finds no CUDA GPU here; use --device cpu")
    try:
        return TorchOps(device, threads=threads)
    except RuntimeError as error:
        raise InputError(f"device {device!r}: expected auto, numpy, cpu or cuda[:n] ({error})") from error
