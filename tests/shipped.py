"""The decoder as zips carry it: stripped, and imported by its own bootstrap."""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from vqcomp.archive import packing
from vqcomp.archive.packing import bootstrap, roots, runtime_archive
from vqcomp.runtime import layout
from vqcomp.runtime.kinds import KINDS

PACKAGE = "vqcomp_runtime"
EXTERNAL = roots(KINDS.values(), files=True, workers=True, model=layout.LARGE_MODEL)
"""All modules, those for external networks too."""
EVERYTHING = frozenset(name for name in EXTERNAL if not name.startswith(packing.TOKEN_PREFIX))
"""All that archives without an external network may need."""


def write_decoder(folder: Path, roots: frozenset[str] = EVERYTHING) -> Path:
    """The two entries of a zip that are the decoder, from these roots (see packing.py)."""
    runtime = runtime_archive(roots)
    (folder / layout.RUNTIME).parent.mkdir(parents=True, exist_ok=True)
    (folder / layout.RUNTIME).write_bytes(runtime)
    (folder / layout.BOOTSTRAP).write_bytes(bootstrap(runtime))
    return folder


@contextmanager
def imported(folder: Path) -> Iterator[Callable[[str], ModuleType]]:
    """A function that imports a module of the decoder in an unpacked archive, by its name."""
    program = runpy.run_path(str(folder / layout.BOOTSTRAP), run_name="bootstrap")
    finders = list(sys.meta_path)
    program["use_runtime"]()
    try:
        yield lambda name: importlib.import_module(f"{PACKAGE}.{name}")
    finally:
        sys.meta_path[:] = finders
        for name in [n for n in sys.modules if n.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
