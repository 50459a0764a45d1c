"""Packing the decoder: the modules of `vqcomp/runtime` that an archive needs, stripped, as the entries of a zip.

Whatever Python packs them, the same sources give the same bytes (see stripping.py): bzip2 has one implementation.
"""

from __future__ import annotations

import ast
import bz2
import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime import layout
from .renaming import rename
from .stripping import Text, remove_ballast
from .unused import remove_unused

if TYPE_CHECKING:
    from ..runtime.kinds import Kind

RUNTIME_FOLDER = Path(layout.__file__).parent
ENTRY, FUNCTION = "launch", "main"
"""The module that decompress.py imports, and the function in it that it calls."""
SEPARATOR = "\0"
TOKEN_PREFIX = "token_"
"""How the names of modules begin that networks from outside an archive take. With them, the runtime is another program:
so they change nothing of what other archives carry."""
RUNTIME_LIMIT = 1 << 24
"""Bytes of a decoder's modules: one of more is taken for a bomb."""


def roots(kinds: Iterable[Kind], *, files: bool, workers: bool, model: int = 0) -> frozenset[str]:
    """The modules that an archive's decoder starts from: what is imported late where it is needed.

    kinds: of its codecs. files: whether it holds any that are no arrays. workers: whether groups can be coded side by
    side. model: bytes of the network's weights.
    """
    late = {"files": files, "workers": workers, "products": model >= layout.LARGE_MODEL}
    return frozenset({ENTRY, "main", *(kind.module for kind in kinds), *(name for name in late if late[name])})


def source_of(name: str) -> str:
    # Universal newlines: a checkout on Windows gives the same bytes as one on Linux.
    return (RUNTIME_FOLDER / f"{name}.py").read_text("utf-8")


def strip_program(sources: dict[str, str], function: str) -> dict[str, str]:
    """A program's modules, as short as they get and do the same when run from `function`; names -> texts."""
    texts = {name: Text(source) for name, source in sources.items()}
    for text in texts.values():
        remove_ballast(text)
    remove_unused(texts, function)
    rename(texts)
    return {name: text.render() for name, text in texts.items()}


@lru_cache
def stripped_modules(external: bool = False) -> dict[str, str]:
    """All modules of the runtime, stripped as one program; those for external networks among them, or not."""
    names = sorted(path.stem for path in RUNTIME_FOLDER.glob("*.py") if path.name != layout.BOOTSTRAP)
    names = [name for name in names if external or not name.startswith(TOKEN_PREFIX)]
    return strip_program({name: source_of(name) for name in names}, FUNCTION)


@lru_cache
def _imports(name: str, external: bool) -> frozenset[str]:
    """The modules that a stripped module imports when it is imported; its functions may import others when called."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(stripped_modules(external)[name])]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)
    return frozenset(found)


def runtime_modules(roots: Iterable[str]) -> list[str]:
    """Names of these modules, and of all that they import, and so on."""
    found: set[str] = set()
    wanted = {"__init__", *roots}
    external = has_token_modules(wanted)
    while wanted:
        name = wanted.pop()
        found.add(name)
        wanted |= _imports(name, external) - found
    return sorted(found)


def has_token_modules(names: Iterable[str]) -> bool:
    """Whether modules of these names are part of the program for external networks."""
    return any(name.startswith(TOKEN_PREFIX) for name in names)


@lru_cache
def runtime_archive(roots: frozenset[str]) -> bytes:
    """The entry layout.RUNTIME: `name, line feed, text` of each module, joined by SEPARATOR, as bzip2."""
    texts = stripped_modules(has_token_modules(roots))
    modules = (f"{name}\n{texts[name]}" for name in runtime_modules(roots))
    return bz2.compress(SEPARATOR.join(modules).encode())


@lru_cache
def bootstrap(runtime: bytes) -> bytes:
    """The entry layout.BOOTSTRAP, stripped; it knows the sha256 of the runtime that goes with it."""
    source = source_of(Path(layout.BOOTSTRAP).stem)
    source = source.replace('RUNTIME_SHA256 = ""', f'RUNTIME_SHA256 = "{hashlib.sha256(runtime).hexdigest()}"')
    text = Text(source)
    remove_ballast(text)
    rename({"": text})
    return text.render().encode()


def is_whole(runtime: bytes) -> bool:
    """Whether bzip2's own checksums match."""
    try:
        bunzip = bz2.BZ2Decompressor()
        bunzip.decompress(runtime, RUNTIME_LIMIT)
        return bunzip.eof and not bunzip.unused_data
    except (OSError, ValueError):
        return False
