"""python -m vqcomp, and the command vqcomp: what happens before there is anything to tidy up."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found, unused-ignore]  # for signal itself takes a while to import
import os
import sys

if sys.version_info < (3, 11):
    from multiprocessing import util


def main() -> None:
    """Run the command line and exit with its code."""
    # Imports take a while, and an exception in the middle of one ends in a traceback at best.
    if _signal.getsignal(_signal.SIGINT) == _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _leave)
    # Before NumPy comes in: its threads would wait for each other longer than they compute.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Processes that are started search neither the working folder nor the script's for modules.
    os.environ["PYTHONSAFEPATH"] = "1"
    if sys.version_info < (3, 11):  # which does not know it
        util._args_from_interpreter_flags = lambda: ["-I"]  # type: ignore[attr-defined, unused-ignore]
    from .cli import main as run

    run()


def _leave(signum: int, _: object) -> None:
    """Signal handler: end at once."""
    os.write(2, b"interrupted\n")
    os._exit(128 + signum)


if __name__ == "__main__":
    main()
