"""python -m vqcomp, and the command vqcomp: what happens before there is anything to tidy up."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Run the command line and exit with its code."""
    # Imports take a while, and an exception in the middle of one ends in a traceback at best.
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    from .cli import main as run

    run()


def _leave(signum: int, _: object) -> None:
    """Signal handler: end at once."""
    os.write(2, b"interrupted\n")
    os._exit(128 + signum)


if __name__ == "__main__":
    main()
