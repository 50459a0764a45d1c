"""Networks that an archive names and does not carry: what names one, and how it is found, checked and loaded.

What an archive has in place of a model file is a small JSON object (FORMAT.md, section 11): the file of weights by
name, size and SHA-256, where it came from, and all that decides the bits of its predictions.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .compute import Compute
from .errors import ModelError, PlatformError
from .exact import make_ops
from .spec import TokenSpec
from .tables import Tables
from .token_config import Precision, TokenConfig
from .token_engine import TokenGPT
from .token_memory import require_memory
from .token_weights import NAMES, open_weights
from .token_windows import TokenWindows

SCHEME = "hf://"
VARIABLE = "VQCOMP_MODEL"
"""The environment variable that tells where an external network lies."""
PART_BITS = (7, 14), (8, 15)
"""Bits of a weight and of an activation, of one part or two."""
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
    try:
        table = json.loads(data)
        if table["external"] != "gpt2":
            raise ModelError(
                f"external network: expected the kind gpt2, found {_shown(table['external'])}; upgrade vqcomp"
            )
        numbers = {"bytes": 1 << 62, "height": 1 << 16, "width": 1 << 16, "keep": 1 << 16, "self_test": 1 << 32}
        for name, limit in numbers.items():
            if type(table[name]) is not int or not 0 <= table[name] < limit:
                raise ModelError(f"external network: {name}: expected an integer, found {_shown(table[name])}")
        for name, pattern in (
            ("file", "|".join(map(re.escape, NAMES))),
            ("source", r"|hf://[\w.-]+/[\w.-]+(@[\w.-]+)?"),
            ("sha256", "[0-9a-f]{64}"),
        ):
            if not re.fullmatch(pattern, table[name]):
                raise ModelError(f"external network: {name}: expected {pattern}, found {_shown(table[name])}")
        weights, activations = PART_BITS
        precision = Precision(weights.index(table["weight_bits"]) + 1, activations.index(table["activation_bits"]) + 1)
        config = TokenConfig.from_dict({name: table[name] for name in TokenConfig().to_dict()})
        spec = TokenSpec(table["height"], table["width"], (config.bos,))
        return External(
            table["file"], table["source"], table["bytes"], table["sha256"], config, spec, precision, table["keep"],
            table["self_test"],
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"external network: expected its description, found {type(error).__name__}: {error}"
        ) from error


def load_windows(spec: TokenSpec, model: bytes, compute: Compute) -> TokenWindows:
    """The network that `model` names (External.to_bytes), found, checked and ready to predict tokens of `spec`.

    Raises ModelError where it is not to be found, is another file or predicts other tokens; InputError where there is
    no memory for it; PlatformError where this machine's arithmetic is not exact; DependencyError.
    """
    external = parse_external(model)
    if spec != external.spec:
        raise ModelError(f"the model predicts {external.spec}, the tokens are {spec}")
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
    if hash_of(path) != external.sha256:
        raise ModelError(
            f"{path}: expected the network with the sha256 {external.sha256}, found another file: fetch the right one"
        )
    return TokenGPT(config, open_weights(path, config), ops, external.precision)


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
    for where in (place, _beside(), variable):
        if where:
            inside = sorted(Path(where).glob(f"*/{external.file}"))
            found = [path for path in (Path(where) / external.file, Path(where), *inside) if path.is_file()]
            if found:
                return next((path for path in found if path.stat().st_size == external.size), found[0])
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
        f"--model DIR, or {VARIABLE}=DIR, or put it beside decompress.py"
    )


def _beside() -> str | None:
    """The folder of an unpacked archive, if this runs out of one."""
    # Modules of an archive name runtime.bz2 as their file, in the folder vqcomp.
    return None if __name__.startswith("vqcomp.") else os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _fetch(external: External) -> Path:
    """From the hub, or its client's cache."""
    from huggingface_hub import hf_hub_download

    repository, _, revision = external.source.removeprefix(SCHEME).partition("@")
    logging.getLogger("vqcomp").warning(
        "note: the archive names a network: %s of %s, %d bytes; fetching it unless it is at hand",
        external.file, external.source, external.size,
    )  # fmt: skip
    return Path(hf_hub_download(repository, external.file, revision=revision or None))  # nosec B615


def hash_of(path: Path) -> str:
    """SHA-256, in hex. Raises ModelError."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(1 << 22):
                digest.update(piece)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def _shown(value: Any) -> str:
    return json.dumps(value)[:60]
