"""Running out of memory: an error that says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ..runtime.errors import InputError
from .config import TrainConfig


def is_out_of_memory(error: Exception) -> bool:
    """Whether it is Python's own error, or one of torch's for the CPU or for GPUs."""
    return isinstance(error, MemoryError) or bool(re.search("out of memory|can't allocate memory", str(error)))


@contextmanager
def explain_memory(config: TrainConfig) -> Iterator[None]:
    """Turn errors of memory into one that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"training: out of memory with {config.batch} windows of {config.frames} frames at a time: use a smaller "
            "--batch-size and, to see as many in a step, a larger --accumulate"
        ) from error
