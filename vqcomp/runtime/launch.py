"""What decompress.py runs first: reads the options and sees to NumPy, then leaves the rest to main.py.

Imports no more than Python has, until it is known that there is more.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import Any

NUMPY = "numpy==2.2.6" if sys.version_info < (3, 14) else "numpy<3"
"""What to install; any NumPy will do if one is there. Without hashes: those of its 54 wheels take 1.8 kB."""


def main(here: str) -> int:
    """Restore the archive unpacked at `here` into $OUTPUT_DIR; returns the exit code."""
    options = read_options()
    if sys.maxsize < 1 << 32:  # NumPy's indices are of 32 bits there, too narrow for those of the tables
        print("error: expected a 64-bit Python, found one of 32 bits", file=sys.stderr)
        return 1
    try:
        # Many small products: threads that wait for each other cost more than they save.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        if not (has_numpy() or install_numpy()):
            print(f'error: NumPy is missing: "{sys.executable}" -m pip install "{NUMPY}"', file=sys.stderr)
            return 1
        from .coder import CONSTRICTION, constriction
        from .main import restore_here

        if not constriction:
            print(
                f"note: constriction {CONSTRICTION} is not here: decoding takes a little longer",
                file=sys.stderr,
            )
        return restore_here(here, options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def read_options() -> dict[str, Any]:
    """The options that were given, by their names."""
    parser = argparse.ArgumentParser(
        description="Restore the files in this archive into $OUTPUT_DIR.",
        argument_default=argparse.SUPPRESS,  # compute.py has the defaults
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="restore these alone")
    parser.add_argument("--device", help="auto, numpy, cpu, cuda or cuda:N")
    parser.add_argument("--batch-size", type=positive, help="segments at a time")
    parser.add_argument("-T", "--threads", type=positive, help="threads of a process")
    parser.add_argument("-j", "--jobs", type=positive, help="processes")
    return vars(parser.parse_args())


def positive(text: str) -> int:
    """The value of an option that counts. Raises ValueError."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def has_numpy() -> bool:
    """Whether it is here and can be imported."""
    try:
        import numpy  # noqa: F401
    except ImportError:
        return False
    return True


def install_numpy() -> bool:
    """Into a private temporary folder that goes away when Python ends; whether that went well."""
    if os.environ.get("VQCOMP_NO_PIP", "0") not in ("", "0"):
        return False
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # now there is something to tidy up
    folder = tempfile.mkdtemp(prefix="vqcomp-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # -I: pip runs no module of the working folder. No builds: they would run what a stranger's package says.
    command = [sys.executable, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--target", folder, NUMPY]
    print("installing", NUMPY, "into", folder, file=sys.stderr)
    subprocess.run(command, check=False, stdout=sys.stderr, env={**os.environ, "PIP_USER": "0"})
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    return has_numpy()
