"""A thread beside the caller's, with an owner, and what goes ahead in it where all frames are known: while encoding."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from .contexts import Past
from .online import OnlineNetwork

Item = TypeVar("Item")


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


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Each item, once the next one has been made."""
    made: deque[Item] = deque()
    for item in items:
        made.append(item)
        if len(made) > 1:
            yield made.popleft()
    yield from made


class Ahead(OnlineNetwork):
    """Takes an `OnlineNetwork`'s place in a mixer: it predicts and learns in a thread, a frame ahead of the mixer."""

    def __init__(self, network: OnlineNetwork, past: Past, background: Background):
        """past: a second one, like the mixer's."""
        self.network, self.ahead, self.background = network, past, background
        self.masses = self  # type: ignore[assignment]
        self.logits: deque[Future[np.ndarray]] = deque()

    def follow(self, coded: np.ndarray, tokens: np.ndarray) -> None:
        """Learn from the next frame: coded (G, S, f) as of `begin`, tokens (G, S)."""
        self.logits.append(self.background.submit(self._follow, coded, tokens))

    def begin(self, past: Past, coded: np.ndarray) -> None:
        pass

    def look(self, node: np.ndarray, out: np.ndarray) -> None:
        """At the nodes of all levels at once."""
        out[:] = self.logits.popleft().result()

    def update(self, tokens: np.ndarray) -> None:
        pass

    def _follow(self, coded: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Logits (L, P) at the nodes of the tokens."""
        past, level = self.ahead, np.arange(self.ahead.levels)[:, None]
        past.begin(coded)
        self.network.begin(past, coded)
        logits = np.empty((past.levels, tokens.size))
        self.network.masses.look((1 << level) | (tokens.reshape(-1) >> (past.levels - level)), logits)
        self.network.update(tokens.reshape(-1))
        past.push(tokens)
        return logits
