"""What decompress.py runs once NumPy is there."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from .compute import Compute
from .errors import VqcompError
from .progress import ProgressLine
from .reader import Reader
from .restore import report_loss, restore


def restore_here(here: str, args: argparse.Namespace) -> int:
    """Restore the archive unpacked at `here` into $OUTPUT_DIR; returns the exit code. Existing files are replaced.

    args: the options that launch.py has read.
    """
    signal.signal(signal.SIGTERM, terminate)
    start, output = time.monotonic(), Path(os.environ.get("OUTPUT_DIR") or "decompressed")
    try:
        with Reader(here, Compute(args.device, args.threads, args.jobs, args.batch_size)) as archive:
            lost = restore(archive, output, args.only, ProgressLine())
            total = len(archive.manifest.select(args.only).outputs)
        if lost:
            print("error:", report_loss(lost, total), file=sys.stderr)
            return 3
        files = "1 file" if total == 1 else f"{total} files"
        print(f"restored {files} into {output} in {time.monotonic() - start:.1f} s", file=sys.stderr)
        return 0
    except VqcompError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except MemoryError:
        print("error: out of memory; try a smaller --batch-size", file=sys.stderr)
        return 1


def terminate(signum: int, _: object) -> None:
    """Signal handler: leave by an exception, so that temporary files are removed."""
    raise SystemExit(128 + signum)
