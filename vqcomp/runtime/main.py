"""Restoring an archive into a folder: what decompress.py runs, and `vqcomp decompress` too."""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from .archive import Reader
from .errors import InputError, UnsafeNameError, VqcompError


class Reporter(Protocol):
    """Where progress goes: stages of so many segments and tokens, one after another."""

    def begin(self, stage: str, segments: int, tokens: int) -> None: ...
    def advance(self, segments: int, tokens: int) -> None: ...
    def end(self) -> None: ...


class Progress:
    """A line on standard error, rewritten while work goes on; silent unless that is a terminal."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet or not sys.stderr or not sys.stderr.isatty()

    def begin(self, stage: str, segments: int, tokens: int) -> None:
        """Start a stage of this many segments and tokens."""
        self.stage, self.all, self.done = stage, (segments, tokens), [0, 0]
        self.start = self.shown = time.monotonic()

    def advance(self, segments: int, tokens: int) -> None:
        """So many more are done."""
        self.done[0] += segments
        self.done[1] += tokens
        now = time.monotonic()
        if not self.quiet and now - self.shown > 0.2:
            self.shown = now
            rate = self.done[1] / (now - self.start)
            counts = (
                f"{self.done[0]:,}/{self.all[0]:,} segments, {100 * self.done[1] / max(self.all[1], 1):.0f} % of tokens"
            )
            print(f"\r{self.stage}: {counts}, {rate:,.0f} tokens/s   ", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """The stage is over, well or not."""
        if not self.quiet:
            print("\r" + " " * 78 + "\r", end="", file=sys.stderr, flush=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what was written there takes the place of `path`, or nothing is left.

    Raises InputError where the system refuses, naming the file and what is free on the disk.
    """
    temporary = path.with_name(f".{os.urandom(6).hex()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno == errno.ENOSPC:
            reason += f" ({shutil.disk_usage(path.parent).free:,} bytes are free); make room or choose another disk"
        raise InputError(f"{path}: cannot be written: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


def restore(
    archive: Reader,
    folder: Path,
    names: Collection[str] | None = None,
    *,
    force: bool = False,
    batch_size: int = 16,
    progress: Reporter | None = None,
) -> dict[str, str]:
    """Write segments as .npy files under `folder`, and the archive's other files, each one whole or not at all.

    Returns what was lost to damage, name -> reason; everything else is written all the same. On any other error,
    and on an interrupt, what this call created is removed again. Raises InputError where a file exists (unless
    `force`), where there is too little disk, or on an unknown name; UnsafeNameError where a link leads out of `folder`.
    """
    for output in archive.outputs(names) if not force else ():
        if os.path.lexists(folder / output):
            raise InputError(f"{folder / output}: exists already; -f overwrites it")
    wanted = None if names is None else set(names)
    parts: dict[str, Any] = {}
    kept: list[Any] = []
    if archive.manifest.extras:
        from .files import chosen_files, report_parts, save_kept, save_raw

        wanted, parts, kept = chosen_files(archive, wanted)
    chosen = [s for s in archive.manifest.segments if wanted is None or s.name in wanted]
    progress = progress or Progress(quiet=True)
    lost: dict[str, str] = {}
    created: list[Path] = []

    def count(tokens: int) -> None:
        progress.advance(0, tokens)

    def save(name: str, write: Callable[[BinaryIO], object]) -> None:
        path = folder / name
        make_folder(path.parent, created)
        if root not in (path.parent.resolve() / "x").parents:
            raise UnsafeNameError(f"{path}: a link leads out of {folder}; expected a folder inside")
        is_new = not path.exists()
        with replacing(path) as temporary, open(temporary, "xb") as handle:
            write(handle)
        if is_new:
            created.append(path)

    try:
        make_folder(folder, created)
        need = sum(s.tokens * s.dtype.itemsize + 128 for s in chosen) + sum(f.size for f in kept)
        free = shutil.disk_usage(folder).free
        if need > free and not force:
            raise InputError(f"{folder}: too little disk: {need:,} bytes are needed, {free:,} are free")
        groups = {s.group for s in chosen}  # decoded as a whole
        tokens = sum(s.tokens for s in archive.manifest.segments if s.group in groups)
        progress.begin("decoding", len(chosen), tokens)
        root = folder.resolve()
        decoded = archive.decode(wanted, batch_size=batch_size, damaged=lost, progress=count)
        for raw, items in groupby(decoded, lambda item: parts.get(item[0])):
            if raw:
                save_raw(raw, items, save)
                continue
            for name, array in items:
                # np.save would append .npy to a path; to a handle it writes under the very name.
                save(name, lambda handle, array=array: np.save(handle, array))  # type: ignore[misc]
                progress.advance(1, 0)
        if archive.manifest.extras:
            save_kept(archive, kept, save, lost)
            report_parts(parts, lost)
    except BaseException:
        for path in reversed(created):
            with suppress(OSError):  # such as a folder that has got other files since
                (path.rmdir if path.is_dir() else path.unlink)()
        raise
    finally:
        progress.end()
    return lost


def make_folder(folder: Path, created: list[Path]) -> None:
    """mkdir -p that appends to `created` what it made."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder, found a file")
    for path in reversed(missing):
        try:
            path.mkdir()
        except OSError as error:
            raise InputError(f"{path}: cannot be made: {error.strerror}") from error
        created.append(path)


def report_loss(lost: dict[str, str], total: int) -> str:
    """What to print about damage."""
    lines = [f"  {name}: {reason}" for name, reason in sorted(lost.items())]
    return "\n".join([f"{len(lost)} of {total} segments are damaged and lost:", *lines])


def terminate(signum: int, _: object) -> None:
    """Signal handler: leave by an exception, so that temporary files are removed."""
    raise SystemExit(128 + signum)


def default_jobs() -> int:
    """A codec that learns keeps about two CPUs busy."""
    return max(1, len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)) // 2)


def restore_here(here: str, args: argparse.Namespace) -> int:
    """Restore the archive unpacked at `here` into $OUTPUT_DIR; returns the exit code. Existing files are replaced.

    args: the options that launch.py has read.
    """
    signal.signal(signal.SIGTERM, terminate)
    start, output = time.monotonic(), Path(os.environ.get("OUTPUT_DIR") or "decompressed")
    try:
        with Reader(here, device=args.device, threads=args.threads, jobs=args.jobs or default_jobs()) as archive:
            lost = restore(archive, output, args.only, force=True, batch_size=args.batch_size, progress=Progress())
            total = len(archive.outputs(args.only))
        if lost:
            print("error:", report_loss(lost, total), file=sys.stderr)
            return 3
        noun = "files" if archive.manifest.extras else "segments"
        print(f"restored {total} {noun} into {output} in {time.monotonic() - start:.1f} s", file=sys.stderr)
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
