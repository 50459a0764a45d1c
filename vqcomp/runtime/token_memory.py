"""What memory a TokenGPT takes, and for how many segments side by side that leaves room: reckoned, not tried."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path

import numpy as np

from .errors import InputError
from .exact import NumpyOps, TorchOps
from .token_config import Precision, TokenConfig
from .token_engine import SCORES
from .token_windows import ROWS, TokenWindows

_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Where Linux tells what a container may use, what it does, and what of that are files that it would forget."""


def weights_bytes(config: TokenConfig, precision: Precision) -> int:
    """Of the weights in float32, and of what reading the largest tensor takes beside them."""
    sizes = [prod(shape) for shape in config.tensor_shapes().values()]
    matrices = sum(prod(shape) for shape in config.tensor_shapes().values() if len(shape) == 2)
    embeddings = (config.vocabulary + config.positions) * config.dim
    return 4 * (embeddings + (matrices - embeddings) * precision.weights + 4 * max(sizes))


def work_bytes(config: TokenConfig, precision: Precision) -> int:
    """Of what is computed at a time: rows of the widest layer in all their parts, and scores."""
    width = max(config.hidden, 3 * config.dim, config.vocabulary)
    return 4 * (ROWS * width * (precision.weights * precision.activations + 4) + 6 * SCORES)


def segment_bytes(config: TokenConfig, precision: Precision, ids: int) -> int:
    """Of the keys and values of so many ids."""
    return 4 * config.layers * config.heads * ids * (config.head_dim * (1 + precision.activations) + 2)


def available_bytes(ops: NumpyOps | TorchOps) -> int | None:
    """What may be taken on the device of `ops`; None where the system does not say."""
    if isinstance(ops, TorchOps) and not ops.on_host:
        free: int = ops.torch.cuda.mem_get_info(ops.device)[0]
        return free
    found: list[int] = []
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    for folder, limit, usage, files in _CGROUPS:
        with suppress(OSError, ValueError):  # such as "max", where there is no limit
            room = int((folder / limit).read_text()) - int((folder / usage).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
            found.append(room + sum(int(line.split()[1]) for line in lines if line.startswith(files + " ")))
    if not found and hasattr(os, "sysconf"):
        with suppress(OSError, ValueError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found) if found else None


def require_memory(config: TokenConfig, precision: Precision, ids: int, ops: NumpyOps | TorchOps) -> None:
    """Raise InputError, saying how much is needed, unless the network and a segment's window have room."""
    weights, work = weights_bytes(config, precision), work_bytes(config, precision)
    segment, available = segment_bytes(config, precision, ids), available_bytes(ops)
    if available is not None and weights + work + segment > available:
        raise InputError(
            f"the network needs {_show(weights + work + segment)} of memory on {ops.name} ({_show(weights)} for its "
            f"weights, {_show(work)} to compute in, {_show(segment)} for each segment), {_show(available)} are "
            "available: use another device or machine"
        )


def side_by_side(windows: TokenWindows, segments: Sequence[np.ndarray]) -> Iterator[Sequence[np.ndarray]]:
    """Split segments into runs that memory has room for at once. Raises InputError where not even one has."""
    engine, start = windows.engine, 0
    while start < len(segments):
        longest = min(windows.window, max(len(segment) for segment in segments[start:]))
        each = segment_bytes(engine.config, engine.precision, longest * (windows.spec.positions + 1))
        room, count = available_bytes(engine.ops), len(segments)
        if room is not None:
            count = (room - work_bytes(engine.config, engine.precision)) // each
            if count < 1:
                raise InputError(
                    f"a segment needs {_show(each)} of memory on {engine.ops.name} for what the network has seen, "
                    f"{_show(room)} are available"
                )
        yield segments[start : start + count]
        start += count


def _show(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
