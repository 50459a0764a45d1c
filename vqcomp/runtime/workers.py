"""Several processes that code groups side by side, each with a codec of its own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from .codec import Codec, Progress, make_codec
from .errors import InputError

_CODEC: list[Codec] = []
"""A worker's own."""


class Workers(Codec):
    """The codec that make_codec(*args, **options) gives (see codec.py), in `jobs` processes: the same bytes, sooner.

    Processes are spawned, so a script that uses this needs `if __name__ == "__main__":`. Close it when done.
    """

    def __init__(self, jobs: int, codec: Codec, *args: Any, **options: Any) -> None:
        """codec: one of the same kind, which is not used but for its name and group size."""
        self.name, self.group_size, self._jobs = codec.name, codec.group_size, jobs
        options["threads"] = options.get("threads") or max(1, (os.cpu_count() or 1) // jobs)
        spawn = get_context("spawn")
        self._theirs, self._ours = spawn.Pipe(duplex=False)
        start = partial(make_codec, *args, **options)
        self._pool = ProcessPoolExecutor(jobs, spawn, _start, (start, self._theirs))

    def close(self) -> None:
        """End the processes, whatever they do."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._ours.close()
        self._theirs.close()

    def encode(self, groups: Sequence[Sequence[np.ndarray]], progress: Progress | None = None) -> list[bytes]:
        """As of the codec; progress is told when a process has done its share."""
        return self._map("encode", progress, lambda _, part: sum(s.size for g in part[0] for s in g), groups)

    def decode(
        self, streams: Sequence[bytes], frames: Sequence[Sequence[int]], progress: Progress | None = None
    ) -> list[list[np.ndarray]]:
        """As of the codec; progress is told when a process has done its share."""
        return self._map("decode", progress, lambda done, _: sum(s.size for g in done for s in g), streams, frames)

    def _map(self, method: str, progress: Progress | None, size: Callable[[Any, Any], int], *columns: Any) -> list[Any]:
        """Split the groups evenly; the results of all, in order."""
        count = min(self._jobs, len(columns[0]))
        cuts = [len(columns[0]) * i // count for i in range(count + 1)]
        parts = [[column[a:b] for column in columns] for a, b in pairwise(cuts)]
        try:
            futures: dict[Future[Any], Any] = {self._pool.submit(_run, method, part): part for part in parts}
            for future in as_completed(futures):
                if progress:
                    progress(size(future.result(), futures[future]))
            return [item for future in futures for item in future.result()]
        except BrokenProcessPool as error:
            raise InputError("a process was ended from outside, perhaps for lack of memory; try fewer jobs") from error


def _start(make: Callable[[], Codec], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    _CODEC.append(make())


def _end_with(pipe: Connection) -> None:
    """Wait until the first process closes its end of the pipe, or has gone."""
    with suppress(EOFError, OSError):
        pipe.recv()
    os._exit(1)


def _run(method: str, part: Sequence[Any]) -> list[Any]:
    result: list[Any] = getattr(_CODEC[0], method)(*part)
    return result
