"""Ctrl-C and SIGTERM end a training between two steps, never within one."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """A context in which the first signal that asks to stop is only noted; a second one acts at once.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.number = 0
        """The signal that came, or 0."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(signal.getsignal(number)):  # not where it is ignored, as under nohup
                    self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(self, *_: object) -> None:
        self._restore()

    def act(self) -> None:
        """Do what the signal that came would have done."""
        self._restore()
        if self.number == signal.SIGTERM:
            raise SystemExit(128 + self.number)
        raise KeyboardInterrupt
