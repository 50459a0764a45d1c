"""The decoder as zips carry it: stripped, and imported by its own bootstrap."""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from vqcomp.archive.packing import bootstrap, roots_of, runtime_archive
from vqcomp.runtime import archive

PACKAGE = "vqcomp_runtime"


def write_decoder(folder: Path, needs: Iterable[str]) -> Path:
    """The two entries of a zip that are the decoder, for all of these needs (see packing.ROOTS)."""
    runtime = runtime_archive(roots_of(needs))
    (folder / archive.RUNTIME).parent.mkdir(parents=True, exist_ok=True)
    (folder / archive.RUNTIME).write_bytes(runtime)
    (folder / archive.BOOTSTRAP).write_bytes(bootstrap(runtime))
    return folder


@contextmanager
def imported(folder: Path) -> Iterator[Callable[[str], ModuleType]]:
    """A function that imports a module of the decoder in an unpacked archive, by its name."""
    program = runpy.run_path(str(folder / archive.BOOTSTRAP), run_name="bootstrap")
    finders = list(sys.meta_path)
    program["use_runtime"]()
    try:
        yield lambda name: importlib.import_module(f"{PACKAGE}.{name}")
    finally:
        sys.meta_path[:] = finders
        for name in [n for n in sys.modules if n.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
