"""No free memory: an error that says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ..runtime.errors import InputError
from .config import TrainConfig


@contextmanager
def explain_memory(config: TrainConfig) -> Iterator[None]:
    """Turn errors of memory, of which torch has its own for the CPU and for GPUs, into one that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("out of memory|can't allocate memory", str(error)):
            raise
        raise InputError(
            f"training: out of memory with {config.batch} windows of {config.frames} frames at a time: use a smaller "
            "--batch-size and, to see as many in a step, a larger --accumulate"
        ) from error
