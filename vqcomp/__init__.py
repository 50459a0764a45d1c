"""vqcomp: lossless compression of video tokens, by a causal GPT and a range coder, into self-contained zips.

vqcomp.compress("tokens/", "out.zip")
vqcomp.decompress("out.zip", "restored/")
with vqcomp.open("out.zip") as archive:
    tokens = archive["drive/0001.npy"]
"""

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
from .version import __version__

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
