"""Training, top-down: fit (tokens to a .vqm), trainer (the loop), model (the network), functions (its arithmetic).

Needs torch, which presets, config and this file do not import.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..runtime.errors import DependencyError
from ..runtime.exact import load_torch


@contextmanager
def torch_ready(threads: int | None = None) -> Iterator[None]:
    """Within it, torch is there and uses so many threads (None: its own choice). Raises DependencyError."""
    try:
        torch = load_torch()
    except DependencyError as error:
        raise DependencyError(f"training needs torch: {error}") from error
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
