"""What a cluster's worker does: code groups with a codec of its own."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..archive.journal import code_digest
from ..runtime.codec import Codec
from ..runtime.compute import Compute
from ..runtime.errors import DamageError, VqcompError
from ..runtime.kinds import make_codec
from ..runtime.spec import TokenSpec
from ..training.memory import is_out_of_memory
from ..version import __version__

Settings = tuple[tuple[int, int, tuple[int, ...]], bool, str, int, int]
"""(height, width, factors), adapt, device, threads, batch size: plain values, so that a worker without vqcomp can say
that it is one."""
Outcome = tuple[str, Any]
""""done" and results; or the name of an error's class, and its message. In results of decoding, bytes of a damaged
stream are their error's message."""


def run(code: str, method: str, settings: Settings, model: bytes | None, columns: Sequence[Sequence[Any]]) -> Outcome:
    """Encode groups or decode streams. `code` is the caller's code_digest: another one might code otherwise."""
    here = f"worker {socket.gethostname()}"
    if code != code_digest():
        return "DependencyError", (
            f"{here}: has another vqcomp ({__version__}) than this machine; install the very same on both"
        )
    try:
        codec = _codec(settings, model)
        return "done", codec.encode(columns[0]) if method == "encode" else _decode(codec, columns[0], columns[1])
    except VqcompError as error:
        return type(error).__name__, f"{here}: {error}"
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return "InputError", f"{here}: out of memory; try a smaller --batch-size, or fewer tasks at a time (-j)"


def _decode(codec: Codec, streams: Sequence[bytes], frames: Sequence[Sequence[int]]) -> list[list[np.ndarray] | str]:
    """Groups' segments; of a damaged stream the reason, in their place."""
    try:
        return [*codec.decode(streams, frames)]
    except DamageError as error:
        if len(streams) == 1:
            return [str(error)]
    return [_decode(codec, [stream], [lengths])[0] for stream, lengths in zip(streams, frames)]


@lru_cache(maxsize=4)
def _codec(settings: Settings, model: bytes | None) -> Codec:
    (height, width, factors), adapt, device, threads, batch_size = settings
    compute = Compute(device, threads, 1, batch_size)
    return make_codec(TokenSpec(height, width, factors), model, adapt=adapt, compute=compute)
