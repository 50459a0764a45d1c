"""Where and how to compute. None of it changes a byte of what comes out."""

from __future__ import annotations

import multiprocessing
import os
import re
from typing import NamedTuple

from .errors import InputError


class Compute(NamedTuple):
    """Where and how to compute."""

    device: str = "auto"
    """auto (CUDA if there is one, else torch on the CPU, else NumPy), numpy, cpu, cuda or cuda:N."""
    threads: int | None = None
    """Threads of a process; None for as many as its share of the CPUs."""
    jobs: int | None = None
    """Processes that code groups side by side where the codec learns; None to leave it open: see `with_jobs`."""
    batch_size: int = 16
    """Segments that are computed together, and in memory at a time."""
    model: str | None = None
    """Where a network lies that an archive names and does not carry: a folder or a file."""

    def checked(self) -> Compute:
        """The same; raises InputError for values that cannot be meant."""
        if not re.fullmatch(r"auto|numpy|cpu|cuda(:\d+)?", self.device):
            raise InputError(f"device: expected auto, numpy, cpu, cuda or cuda:N, found {self.device}")
        for name in ("threads", "jobs", "batch_size"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise InputError(f"{name.replace('_', ' ')}: expected an integer of at least 1, found {value}")
        return self

    @property
    def processes(self) -> int:
        """How many processes to use: one inside a process that may not start others, such as a DataLoader's."""
        if multiprocessing.current_process().daemon:
            return 1
        return self.jobs or 1

    def with_jobs(self, network: bool) -> Compute:
        """The same, and as many jobs as keep all CPUs busy where that is open: one each, or two beside a network."""
        return self._replace(jobs=self.jobs or max(1, cpus() // (1 + network)))


def cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
