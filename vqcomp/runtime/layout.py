"""The entries of an archive, and the versions of its format. FORMAT.md, section 2."""

FORMAT = 2
BOOTSTRAP, ROOT = "decompress.py", "vqcomp/"
RUNTIME, MODEL, STREAMS, FILES, MANIFEST = (
    ROOT + n for n in ("runtime.bz2", "model.vqm", "streams.bin", "files.bin", "manifest.json")
)
ENTRIES = (BOOTSTRAP, RUNTIME, MODEL, STREAMS, FILES, MANIFEST)
"""In the order in which they are written."""
MANIFEST_LIMIT, MODEL_LIMIT, TOKENS_LIMIT = 1 << 28, 1 << 30, 1 << 31
"""Bytes of a manifest and of a model, and tokens of a segment: beyond them a file is taken for a bomb."""
LARGE_MODEL = 1 << 18
"""Bytes of a model from which on it pays to look for the fastest kind of matrix products (products.py), and to carry
what does so. In a smaller network, to call for a product takes as long as to compute it."""
