"""Networks that an archive names and does not carry: what names one, and how it is found, checked and loaded.

What an archive has in place of a model file is a small JSON object (FORMAT.md, section 11): the file of weights by
name, size and SHA-256, where it came from, and all that decides the bits of its predictions.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
import zlib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .compute import Compute
from .errors import ModelError, PlatformError
from .exact import make_ops
from .spec import TokenSpec
from .tables import Tables
from .token_config import Precision, TokenConfig, shown
from .token_engine import TokenGPT
from .token_memory import require_memory
from .token_weights import open_weights
from .token_windows import TokenWindows

SCHEME = "hf://"
VARIABLE = "VQCOMP_MODEL"
"""The environment variable that tells where an external network lies."""
PART_BITS = (7, 14), (8, 15)
"""Bits of a weight and of an activation, of one part or two."""
_LIMIT = 1 << 16
"""Bytes of a description: a hundredth of that is usual."""
_FIELDS = {
    "external": '"gpt2"', "file": '"(model.safetensors|pytorch_model.bin)"',
    "source": r'"(hf://\w[\w.-]*/\w[\w.-]*(@\w[\w.-]*)?)?"', "bytes": r"\d{1,18}", "sha256": '"[0-9a-f]{64}"',
    "height": r"\d{1,5}", "width": r"\d{1,5}", "weight_bits": "7|14", "activation_bits": "8|15", "keep": r"\d{1,4}",
    "self_test": r"\d{1,10}", **dict.fromkeys(TokenConfig().to_dict(), r"\d.*"),
}  # fmt: skip
"""What fields are as JSON; `TokenConfig` knows more of its own."""
TEST_IDS = 24
"""Ids of the self-test that are taken in at once; two more come one by one."""


class External(NamedTuple):
    """An external network: its file, and all that decides the bits of its predictions."""

    file: str
    """Its name, one of NAMES."""
    source: str
    """Where it came from: hf://OWNER/NAME@COMMIT, or "" for a folder."""
    size: int
    sha256: str
    config: TokenConfig
    spec: TokenSpec
    precision: Precision
    keep: int
    """Frames that a new window begins with."""
    check: int
    """Of the self-test."""

    def to_bytes(self) -> bytes:
        """What stands in an archive in place of a model file. `parse_external` is the inverse."""
        (weights, activations), c = self.precision, self.config
        table = {
            "external": "gpt2", "file": self.file, "source": self.source, "bytes": self.size, "sha256": self.sha256,
            **c.to_dict(), "height": self.spec.height, "width": self.spec.width,
            "weight_bits": PART_BITS[0][weights - 1], "activation_bits": PART_BITS[1][activations - 1],
            "keep": self.keep, "self_test": self.check,
        }  # fmt: skip
        return json.dumps(table, separators=(",", ":")).encode()


def parse_external(data: bytes) -> External:
    """The inverse of `External.to_bytes`. Raises ModelError for anything else."""
    table = None
    with suppress(ValueError, RecursionError):
        if len(data) <= _LIMIT:
            table = json.loads(data)
    if not isinstance(table, dict):
        raise ModelError(f"external network: expected its description, a JSON object of at most {_LIMIT:,} bytes")
    try:
        for name, pattern in _FIELDS.items():
            if not re.fullmatch(pattern, json.dumps(table.get(name))):
                raise ModelError(f"{name}: expected {pattern}, found {shown(table.get(name))}; perhaps upgrade vqcomp")
        config = TokenConfig.from_dict({name: table[name] for name in TokenConfig().to_dict()})
        spec, keep = TokenSpec(table["height"], table["width"], (config.bos,)), table["keep"]
        if keep >= config.frames(spec):
            raise ModelError(f"keep: expected less than {config.frames(spec)} frames, found {keep}")
    except ModelError as error:
        raise ModelError(f"external network: {error}") from error
    weights, activations = PART_BITS
    precision = Precision(weights.index(table["weight_bits"]) + 1, activations.index(table["activation_bits"]) + 1)
    return External(
        table["file"], table["source"], table["bytes"], table["sha256"], config, spec, precision, keep,
        table["self_test"],
    )  # fmt: skip


def load_windows(spec: TokenSpec, model: bytes, compute: Compute) -> TokenWindows:
    """The network that `model` names (External.to_bytes), found, checked and ready to predict tokens of `spec`.

    Raises ModelError where it is not to be found, is another file or predicts other tokens; InputError where there is
    no memory for it; PlatformError where this machine's arithmetic is not exact; DependencyError.
    """
    external = parse_external(model)
    if spec != external.spec:
        height, width, (ids,) = external.spec
        raise ModelError(f"the network predicts frames of {height}x{width} of {ids} ids, the tokens are others")
    engine = load_engine(find(external, compute.model), external, compute.device, compute.threads)
    windows = TokenWindows(engine, spec, external.keep)
    if self_test(engine) != external.check:
        raise PlatformError(
            f"{engine.ops.name}: the self-test's arithmetic is not exact on this machine; "
            "try another device (--device cpu, --device numpy)"
        )
    return windows


def load_engine(path: Path, external: External, device: str, threads: int | None) -> TokenGPT:
    """The engine of a file. Raises InputError where there is no memory for it, ModelError for a file of another hash.

    The last one that was loaded is kept at hand: an archive is written, then read to check it.
    """
    return _loaded(path, external._replace(source="", keep=0, check=0), device, threads)


@lru_cache(maxsize=1)
def _loaded(path: Path, external: External, device: str, threads: int | None) -> TokenGPT:
    config, spec, ops = external.config, external.spec, make_ops(device, threads)
    require_memory(config, external.precision, config.frames(spec) * (spec.positions + 1), ops)
    if hash_of(path, external.size) != external.sha256:
        raise ModelError(
            f"{path}: expected the network with the sha256 {external.sha256}, found another file: fetch the right one"
        )
    # Under whatever name it lies here, as a cache may have one of its own.
    return TokenGPT(config, open_weights(path, config, external.file), ops, external.precision)


def self_test(engine: TokenGPT) -> int:
    """CRC-32 of the frequency tables after some fixed ids, some taken in at once and two one by one."""
    count, x, ids = min(TEST_IDS + 2, engine.config.positions), 1, []
    for _ in range(count):
        x = (1103515245 * x + 12345) & 0x7FFFFFFF
        ids.append((x >> 8) % engine.config.vocabulary)
    state, crc = engine.start(1, count), 0
    with engine.ops.settings():
        for piece in (ids[:-2], ids[-2:-1], ids[-1:]):
            if piece:
                tables = Tables(engine.logits(engine.forward(state, np.array([piece]))), engine.ops)
                crc = zlib.crc32(engine.ops.host(tables.w).astype("<i4").tobytes(), crc)
    return crc


def find(external: External, place: str | None) -> Path:
    """The path of the file: at `place`, beside decompress.py, where VARIABLE says, or on the hub. Not yet checked.

    A place is a folder that holds the file, or the file, or another source (hf://...). Raises ModelError, saying what
    to get, and where.
    """
    if place and place.startswith(SCHEME):
        external, place = external._replace(source=place), None
    variable = os.environ.get(VARIABLE)
    found: list[str] = []
    for where in (place, _beside(), variable):
        if where and os.path.exists(where):
            # Not by pathlib, which raises an error for names too long and for folders that are closed.
            inside = sorted(glob.glob(os.path.join(glob.escape(where), "*", external.file)))
            found += [path for path in (os.path.join(where, external.file), where, *inside) if os.path.isfile(path)]
    if found:
        return Path(next((path for path in found if os.path.getsize(path) == external.size), found[0]))
    what = f"{external.file}, {external.size:,} bytes, sha256 {external.sha256}"
    tried = ""
    if place or variable:
        tried = f"; it is not in {place or variable}"
    elif external.source:
        try:
            return _fetch(external)
        except ImportError:
            tried = "; pip install huggingface_hub fetches it"
        except Exception as error:  # the client's HTTP library, which varies with its version, has errors of its own
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            tried = f"; it cannot be fetched: {reason}"
    origin = f", from {external.source}" if external.source else ""
    raise ModelError(
        f"the archive was coded by a network that it does not carry: {what}{origin}{tried}; say where it lies: "
        f"{VARIABLE}=DIR (or vqcomp --model DIR, or beside decompress.py)"
    )


def _beside() -> str | None:
    """The folder of an unpacked archive, if this runs out of one."""
    # Modules of an archive name runtime.bz2 as their file, in the folder vqcomp.
    return None if __name__.startswith("vqcomp.") else os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _fetch(external: External) -> Path:
    """From the hub, or its client's cache."""
    from huggingface_hub import hf_hub_download

    repository, _, revision = external.source.removeprefix(SCHEME).removeprefix("models/").partition("@")
    logging.getLogger("vqcomp").warning(
        "note: the archive names a network: %s of %s, %d bytes; fetching it unless it is at hand",
        external.file, external.source, external.size,
    )  # fmt: skip
    return Path(hf_hub_download(repository, external.file, revision=revision or None))  # nosec B615


def hash_of(path: Path, size: int | None = None) -> str:
    """SHA-256, in hex; "" where the file is not of this size, which is much sooner known. Raises ModelError."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            if size not in (None, os.fstat(file.fileno()).st_size):
                return ""
            while piece := file.read(1 << 22):
                digest.update(piece)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()
