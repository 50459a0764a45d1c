"""python -m vqcomp, and the command vqcomp."""

import os
import sys

if sys.version_info < (3, 11):
    from multiprocessing import util


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        # Before NumPy and torch come in: threads that have nothing to do shall wait, and not spin until others starve.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        # Processes that are started search neither the working folder nor the script's for modules.
        os.environ["PYTHONSAFEPATH"] = "1"
        if sys.version_info < (3, 11):  # which does not know it
            util._args_from_interpreter_flags = lambda: ["-I"]  # type: ignore[attr-defined, unused-ignore]
        from .cli import main as run
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
