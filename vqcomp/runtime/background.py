"""A thread beside the caller's, with an owner."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Background:
    """One thread that does what is submitted, in that order. It is started when first needed, and again after `close`.

    A forked process inherits none of its parent's threads, so there a new one is started.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0
        """The process that started the thread."""

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Call the function in the thread. The future holds its result or the error that it raised."""
        if self._pool is None or self._process != os.getpid():
            self._pool, self._process = ThreadPoolExecutor(1), os.getpid()
        return self._pool.submit(function, *arguments)

    def close(self) -> None:
        """End the thread: wait for the call in progress, cancel the others."""
        if self._pool is not None and self._process == os.getpid():
            self._pool.shutdown(cancel_futures=True)
        self._pool = None
