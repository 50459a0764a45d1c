"""What decompress.py runs once NumPy is there."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from .compute import Compute
from .errors import VqcompError
from .progress import ProgressLine
from .reader import Reader
from .restore import report_loss, restore


def restore_here(here: str, options: dict[str, Any]) -> int:
    """Restore the archive unpacked at `here` into $OUTPUT_DIR; returns the exit code. Existing files are replaced.

    options: those of launch.py that were given, by their names.
    """
    only = options.pop("only", None)
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, terminate)
    start, output = time.monotonic(), Path(os.environ.get("OUTPUT_DIR") or "decompressed")
    try:
        with Reader(here, Compute(**options)) as archive:
            lost = restore(archive, output, only, ProgressLine())
            total = len(archive.manifest.select(only).outputs)
        if lost:
            print("error:", report_loss(lost, total), file=sys.stderr)
            return 3
        plural = "s" * (total > 1)
        print(f"restored {total} file{plural} into {output} in {time.monotonic() - start:.1f} s", file=sys.stderr)
        return 0
    except VqcompError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except MemoryError:
        print("error: out of memory; try a smaller --batch-size", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to tidy up while Python ends


def terminate(signum: int, _: object) -> None:
    """Signal handler: leave by an exception, so that temporary files are removed; more signals do not disturb that."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + signum)
