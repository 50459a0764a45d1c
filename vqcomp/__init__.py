"""vqcomp: lossless compression of video tokens, by a causal GPT and a range coder, into self-contained zips.

vqcomp.compress("tokens/", "out.zip")
vqcomp.decompress("out.zip", "restored/")
with vqcomp.open("out.zip") as archive:
    tokens = archive["drive/0001.npy"]
"""

from __future__ import annotations

from .version import __version__

TYPE_CHECKING = False  # as of typing, whose import would take a while
if TYPE_CHECKING:
    from .api import check, compress, decompress, evaluate
    from .api import open_archive as open
    from .archive.reader import Archive
    from .archive.summary import Summary
    from .runtime.compute import Compute
    from .runtime.errors import (
        ArchiveError,
        DamageError,
        DependencyError,
        FormatError,
        InputError,
        ModelError,
        PlatformError,
        UnsafeNameError,
        VqcompError,
    )

__all__ = [
    "Archive",
    "ArchiveError",
    "Compute",
    "DamageError",
    "DependencyError",
    "FormatError",
    "InputError",
    "ModelError",
    "PlatformError",
    "Summary",
    "UnsafeNameError",
    "VqcompError",
    "__version__",
    "check",
    "compress",
    "decompress",
    "evaluate",
    "open",
]

_HOMES = {
    "api": ("check", "compress", "decompress", "evaluate", "open"),
    "archive.reader": ("Archive",),
    "archive.summary": ("Summary",),
    "runtime.compute": ("Compute",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """What `__all__` names is imported when it is first asked for, so that the command line is there at once."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from importlib import import_module

    module = import_module(f".{_HOME.get(name, 'runtime.errors')}", __name__)
    value = getattr(module, "open_archive" if name == "open" else name)
    globals()[name] = value
    return value
