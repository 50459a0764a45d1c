"""Processes that train one model together, as torchrun starts them: gloo on CPUs, NCCL on CUDA.

Each computes the gradient of its own micro-batches and gets the average of all, so all make the same steps. Never run
on CUDA: no GPU was at hand.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch import distributed as dist

from ..runtime.errors import InputError


class ProcessGroup:
    """This process, number `rank` of `size`; number 0 alone writes files and reports."""

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.size, self.device = rank, size, device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def average_gradients(self, parameters: Sequence[Tensor], values: Sequence[float]) -> list[float]:
        """Average gradients, and some values, over all processes, in one flat buffer."""
        if self.size == 1:
            return list(values)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        extra = torch.tensor(values, dtype=torch.float32, device=gradients[0].device)
        flat = torch.cat([*(g.reshape(-1) for g in gradients), extra])
        dist.all_reduce(flat)
        flat /= self.size
        parts = flat.split([*(g.numel() for g in gradients), len(values)])
        for p, part in zip(parameters, parts):
            p.grad = part.view_as(p)
        return [float(value) for value in parts[-1].tolist()]

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums of values over all processes."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return [float(value) for value in sums.tolist()]


def find_device(name: str) -> torch.device:
    """The device that "auto", "cpu", "cuda" or "cuda:N" names for this process. Raises InputError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {name!r}: torch finds no CUDA GPU here; use --device cpu")
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"device {name!r}: training expects auto, cpu or cuda[:n]")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r}: training expects auto, cpu or cuda[:n] ({error})") from error


@contextmanager
def connect(device: torch.device) -> Iterator[ProcessGroup]:
    """The group that torchrun's environment variables describe; a process by itself where there are none.

    Raises InputError if its processes do not find each other.
    """
    if dist.is_available() and dist.is_initialized():
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), device)
        return
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield ProcessGroup(device=device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise InputError(f"training: the processes of torchrun do not find each other: {error}") from error
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()
