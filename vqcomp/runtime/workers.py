"""Several processes that code groups side by side, each with a codec of its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from .codec import Advance, Codec
from .compute import Compute, cpus
from .errors import InputError

POLL = 0.2
"""Seconds between looks at what the processes report."""
_MINE: dict[str, Any] = {}
"""A worker's own: its codec, and where it reports progress."""


class Workers(Codec):
    """A codec in several processes: the same bytes, sooner. Close it when done.

    Processes start when a call first has groups for more than one of them.
    """

    def __init__(self, codec: Codec, make: Callable[[Compute], Codec], compute: Compute) -> None:
        """codec: one like those that `make` makes in the processes, for a group by itself. `make` is pickled."""
        self._codec, self._jobs = codec, compute.processes
        threads = compute.threads or max(1, cpus() // self._jobs)
        self._start = partial(make, compute._replace(threads=threads, jobs=1))
        self._pool: ProcessPoolExecutor | None = None
        self._started: list[Any] = []

    @property
    def group_size(self) -> int:
        return self._codec.group_size

    @property
    def group_limit(self) -> int:
        return self._codec.group_limit

    def close(self) -> None:
        """End the processes, whatever they do."""
        if self._pool:
            # Those that have only been started could not find what this process has taken down meanwhile.
            for process in self._started:
                process.kill()
            for process in self._started:
                process.wait()
            # Waits for the pool's own thread alone: while Python ends, it must not be found closing its pipe.
            self._pool.shutdown(cancel_futures=True)
            for end in (self._life, *self._reports):
                end.close()
            self._pool = None
        self._codec.close()

    def encode(self, groups: Sequence[Sequence[np.ndarray]], advance: Advance | None = None) -> list[bytes]:
        """As of the codec."""
        if len(groups) == 1:
            return self._codec.encode(groups, advance)
        return self._map("encode", advance, groups)

    def decode(
        self, streams: Sequence[bytes], frames: Sequence[Sequence[int]], advance: Advance | None = None
    ) -> list[list[np.ndarray]]:
        """As of the codec."""
        if len(streams) == 1:
            return self._codec.decode(streams, frames, advance)
        return self._map("decode", advance, streams, frames)

    def _map(self, method: str, advance: Advance | None, *columns: Any) -> list[Any]:
        """Split the groups evenly; the results of all, in order."""
        count = min(self._jobs, len(columns[0]))
        cuts = [len(columns[0]) * i // count for i in range(count + 1)]
        parts = [[column[a:b] for column in columns] for a, b in pairwise(cuts)]
        pool = self._pool = self._pool or self._open()
        try:
            # The pool must not be closed half started: it would wait for a thread that has not begun.
            with _no_interrupts():
                futures: list[Future[Any]] = [pool.submit(_run, method, part) for part in parts]
            pending = set(futures)
            while pending:
                pending = wait(pending, POLL).not_done
                while self._reports[0].poll():
                    tokens = self._reports[0].recv()
                    if advance:
                        advance(tokens)
            return [item for future in futures for item in future.result()]
        except BrokenProcessPool as error:
            raise InputError("a process was ended from outside, perhaps for lack of memory; try fewer jobs") from error

    def _open(self) -> ProcessPoolExecutor:
        context, self._started = _Context(), []
        context.started = self._started
        theirs, self._life = context.Pipe(duplex=False)
        # A report is shorter than what a pipe takes at once, but other systems than POSIX want the lock.
        self._reports = context.Pipe(duplex=False)
        arguments = (self._start, theirs, self._reports[1], context.Lock())
        return ProcessPoolExecutor(self._jobs, context, _begin, arguments)


class _Process(SpawnProcess):
    """A spawned process that does not run the caller's script again: it needs nothing of it."""

    @staticmethod
    def _Popen(process: BaseProcess) -> Any:
        started = vars(process).pop("started")  # which cannot be sent to the process
        with _hidden_main():
            started.append(SpawnProcess._Popen(process))  # type: ignore[attr-defined, unused-ignore]
        return started[-1]


class _Context(SpawnContext):
    started: list[Any]
    """Processes are added here as soon as they are there: an interrupt may come before the pool knows of them."""

    def Process(self, *arguments: Any, **options: Any) -> _Process:  # type: ignore[override]
        process = _Process(*arguments, **options)
        vars(process)["started"] = self.started
        return process


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Within it, the main module has no file that a new process could run."""
    main = sys.modules["__main__"]
    before = dict(vars(main))
    if not _in_archive():
        vars(main)["__spec__"] = None
        vars(main).pop("__file__", None)
    try:
        yield
    finally:
        vars(main).update({name: before[name] for name in ("__spec__", "__file__") if name in before})


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Within it, Ctrl-C waits; processes that are started do not see it at all, from their first instruction on."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # else it would be started within, and let interrupts in
    # Another thread may get the signal, and Python then calls the handler in this one: that waits, too, and SIGTERM's.
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if threading.current_thread() is not threading.main_thread():
        handlers = {}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, lambda number, _: came.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _in_archive() -> bool:
    """Whether this runs out of an unpacked archive, whose decompress.py gives new processes their modules."""
    return not __name__.startswith("vqcomp.")


def _begin(make: Callable[[], Codec], life: Connection, reports: Connection, lock: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides
    threading.Thread(target=_end_with, args=(life,), daemon=True).start()
    _MINE.update(codec=make(), reports=reports, lock=lock)


def _end_with(life: Connection) -> None:
    """Wait until the first process closes its end of the pipe, or has gone."""
    with suppress(EOFError, OSError):
        life.recv()
    os._exit(1)


def _run(method: str, part: Sequence[Any]) -> list[Any]:
    result: list[Any] = getattr(_MINE["codec"], method)(*part, _report)
    return result


def _report(tokens: int) -> None:
    with _MINE["lock"]:
        _MINE["reports"].send(tokens)
