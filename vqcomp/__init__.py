"""vqcomp: lossless compression of video tokens, by a causal GPT and a range coder, into self-contained zips.

vqcomp.compress("tokens/", "out.zip")
vqcomp.decompress("out.zip", "restored/")
with vqcomp.open("out.zip") as archive:
    tokens = archive["drive/0001.npy"]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

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

_API = ("check", "compress", "decompress", "evaluate", "open")
_HOMES = {"Archive": "archive.reader", "Summary": "archive.summary", "Compute": "runtime.compute"}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are asked for: the command line sets up threads before NumPy comes in."""
    if name not in __all__:
        raise AttributeError(f"module 'vqcomp' has no attribute '{name}'")
    home = "api" if name in _API else _HOMES.get(name, "runtime.errors")
    module = import_module(f".{home}", __name__)
    return getattr(module, "open_archive" if name == "open" else name)


def __dir__() -> list[str]:
    return __all__
