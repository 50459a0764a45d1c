"""The decoder that travels in every archive."""

from __future__ import annotations

import bz2
import hashlib
import io
import re
import tarfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from ..runtime import layout
from ..runtime.kinds import Kind

FOLDER = Path(layout.__file__).parent


def roots(kinds: Iterable[Kind], *, files: bool, workers: bool) -> frozenset[str]:
    """The modules that an archive's decoder starts from; `runtime_archive` adds what they import."""
    names = {"launch", "main", *(kind.module for kind in kinds)}
    return frozenset(names | ({"files"} if files else set()) | ({"workers"} if workers else set()))


@lru_cache
def runtime_archive(roots: frozenset[str]) -> bytes:
    found, new = set(), set(roots) | {"__init__"}
    while new:
        found |= new
        new = {n for m in new for n in re.findall(r"^from \.(\w+) import", (FOLDER / f"{m}.py").read_text(), re.M)}
        new -= found
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(found):
            source = (FOLDER / f"{name}.py").read_text("utf-8").encode()
            info = tarfile.TarInfo(f"{name}.py")
            info.size = len(source)
            tar.addfile(info, io.BytesIO(source))
    return bz2.compress(buffer.getvalue())


def bootstrap(runtime: bytes) -> bytes:
    source = (FOLDER / layout.BOOTSTRAP).read_text("utf-8")
    return source.replace('SHA256 = ""', f'SHA256 = "{hashlib.sha256(runtime).hexdigest()}"', 1).encode()


def is_whole(runtime: bytes) -> bool:
    """Whether bzip2's own checksums match."""
    try:
        return bool(bz2.decompress(runtime))
    except (OSError, ValueError):
        return False
