"""Cases in processes of their own: one that hangs is ended, one that dies is an outcome."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from verdicts import Outcome, Verdict

MEMORY = 4 << 30
"""Bytes that a case may ask for: what a small archive makes vqcomp take stays far below."""


class Worker:
    """A process that runs a case at a time."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._start()

    def run(self, kind: str, seed: str, limit: float) -> Outcome:
        """The outcome of a case, after at most `limit` seconds."""
        self._pipe.send((kind, seed))
        if self._pipe.poll(limit):
            try:
                outcome: Outcome = self._pipe.recv()
                return outcome
            except EOFError:
                self.close()
                code = self._process.exitcode
                self._start()
                return Outcome(Verdict.TRACEBACK, f"the process died with {code}")
        self.close()
        self._start()
        return Outcome(Verdict.HANG, f"no end within {limit:.0f} s")

    def close(self) -> None:
        """End the process, and those that it started."""
        with_group = self._process.pid
        try:
            if with_group:
                os.killpg(with_group, signal.SIGKILL)
        except ProcessLookupError:
            self._process.kill()
        self._process.join()

    def _start(self) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._scratch), daemon=False)
        self._process.start()
        theirs.close()
        self._pipe.recv()  # it is ready


def _serve(pipe: Connection, scratch: Path) -> None:
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from cases import KINDS
    from specimens import make_specimens

    warnings.simplefilter("ignore")
    home = Path(tempfile.mkdtemp(dir=scratch))
    specimens = make_specimens(home / "specimens" if not (home / "specimens").mkdir() else home)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    pipe.send("ready")
    while True:
        try:
            kind, seed = pipe.recv()
        except EOFError:
            break
        folder = home / "case"
        folder.mkdir()
        try:
            outcome = KINDS[kind](Random(seed), folder, specimens)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        pipe.send(outcome)
        sys.stdout.flush()
    shutil.rmtree(home, ignore_errors=True)
