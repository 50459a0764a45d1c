"""Models by name: files (.vqm) that ship, the path of one, or an address on the hub; and external networks."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from .data import hub
from .data.segments import Grid
from .runtime.compute import Compute
from .runtime.errors import InputError, ModelError, VqcompError
from .runtime.kinds import EXTERNAL
from .runtime.spec import TokenSpec
from .runtime.token_config import Precision, TokenConfig
from .runtime.token_external import PART_BITS, SCHEME, External, hash_of, load_engine, parse_external, self_test
from .runtime.token_weights import CONFIG, NAMES, find_weights
from .runtime.token_weights import read_config as read_token_config
from .runtime.weights import read_config


@dataclass(frozen=True)
class ModelFile:
    """A model file: its name, its bytes (.vqm, or what names an external network), and the tokens that it predicts."""

    name: str
    data: bytes = field(repr=False)
    spec: TokenSpec


def models_folder() -> Path:
    """Where the shipped models lie: in the package if installed from a wheel, else at the top of the checkout."""
    inside = Path(__file__).parent / "models"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "models"


@lru_cache
def shipped_models() -> Mapping[str, ModelFile]:
    """Every shipped model by name."""
    return {path.stem: read_model_file(path) for path in sorted(models_folder().glob("*.vqm"))}


def read_model_file(path: Path) -> ModelFile:
    """Read a .vqm. Raises ModelError, naming the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return ModelFile(path.stem, data, read_config(data)[0].spec)
    except VqcompError as error:
        raise ModelError(f"{path}: {error}") from error


def find_models(choice: str | os.PathLike[str]) -> list[ModelFile]:
    """The candidates for "auto" (all that ship), "none", the name of a shipped model, the path of a .vqm or hf://...

    Raises ModelError.
    """
    name = os.fspath(choice)
    if name == "none":
        return []
    if name == "auto":
        return list(shipped_models().values())
    if name in shipped_models():
        return [shipped_models()[name]]
    if name.startswith(hub.SCHEME):
        return [read_model_file(hub.local(name, "model"))]
    if not Path(name).is_file():
        names = ", ".join(["auto", "none", *shipped_models()])
        raise ModelError(f"there is no model {name}: expected one of {names}, the path of a .vqm file or hf://...")
    return [read_model_file(Path(name))]


@dataclass(frozen=True)
class TokenOptions:
    """How precisely an external network is computed, and how its window slides; None for what is usual."""

    precision: tuple[int, int] | None = None
    """Bits of weights (7 or 14) and of activations (8 or 15); as many as there are unless given."""
    keep_frames: int | None = None
    """Frames that a new window begins with; half of them unless given."""

    def parts(self) -> Precision:
        """Raises InputError for other numbers of bits."""
        if self.precision is None:
            return Precision()
        for bits, known in zip(self.precision, PART_BITS, strict=True):
            if bits not in known:
                raise InputError(
                    "precision: expected {} or {} bits of weights and {} or {} of activations, such as 14,15; ".format(
                        *PART_BITS[0], *PART_BITS[1]
                    )
                    + f"found {self.precision[0]},{self.precision[1]}"
                )
        return Precision(*(known.index(bits) + 1 for bits, known in zip(self.precision, PART_BITS)))


def is_external(choice: str | os.PathLike[str]) -> bool:
    """Whether `choice` names a network that a zip would not carry: a folder, or a repository hf://OWNER/NAME."""
    name = os.fspath(choice)
    if name.startswith(hub.SCHEME):
        return bool(_REPOSITORY.fullmatch(name))
    return name not in ("auto", "none", *shipped_models()) and Path(name).is_dir()


def find_external(
    choice: str | os.PathLike[str], grids: Collection[Grid], options: TokenOptions, compute: Compute
) -> tuple[ModelFile, Path]:
    """(what names the network, its file of weights) of a folder or a repository on the hub.

    The file is hashed, loaded and tried. grids: those of the data; the first that the network has positions for is what
    it predicts. Raises ModelError, InputError, DependencyError.
    """
    name, source = os.fspath(choice), ""
    if name.startswith(hub.SCHEME):
        config, path, source = _from_hub(name)
    else:
        config, path = read_token_config(Path(name)), find_weights(Path(name))
    specs = [TokenSpec(*grid, (config.bos,)) for grid in grids]
    fitting = [spec for spec in specs if spec.positions < config.positions]
    spec = (fitting or specs)[0]
    frames, precision, keep = config.frames(spec), options.parts(), options.keep_frames
    keep = frames // 2 if keep is None else keep
    if not 0 <= keep < frames:
        raise InputError(f"frames to keep: expected 0 to {frames - 1}, found {keep}")
    external = External(path.name, source, path.stat().st_size, hash_of(path), config, spec, precision, keep, 0)
    check = self_test(load_engine(path, external, compute.device, compute.threads))
    return ModelFile(name, external._replace(check=check).to_bytes(), spec), path


_REPOSITORY = re.compile(r"hf://(?:models/)?((?!datasets/|models/)[^/@]+/[^/@]+)(?:@([^/@]+))?")


def _from_hub(name: str) -> tuple[TokenConfig, Path, str]:
    """(config, path of the weights, hf://OWNER/NAME@COMMIT) of a repository."""
    match = _REPOSITORY.fullmatch(name)
    assert match
    repository, revision = match[1], match[2]
    path = _fetch_first(name, repository, revision)
    # The client's cache keeps each commit's files in a folder of its name.
    revision = path.parent.name if re.fullmatch("[0-9a-f]{40}", path.parent.name) else revision
    try:
        config = read_token_config(hub.fetch(hub.Address("model", repository, revision, CONFIG)).parent)
    except hub.MissingError:
        config = TokenConfig()
    return config, path, f"{SCHEME}{repository}{'@' + revision if revision else ''}"


def _fetch_first(name: str, repository: str, revision: str | None) -> Path:
    """The first of NAMES that a repository has."""
    for file in NAMES:
        try:
            return hub.fetch(hub.Address("model", repository, revision, file))
        except hub.MissingError:
            continue
    raise ModelError(f"{name}: expected {' or '.join(NAMES)} in the repository, found neither")


def spec_of(data: bytes) -> TokenSpec:
    """The tokens that a model predicts: a .vqm, or what names an external network. Raises ModelError, DamageError."""
    return parse_external(data).spec if data.startswith(EXTERNAL) else read_config(data)[0].spec


def find_model(choice: str | os.PathLike[str], option: str) -> ModelFile:
    """The one model that `option` names. Raises ModelError."""
    found = find_models(choice)
    if len(found) != 1:
        raise ModelError(f"{option} {os.fspath(choice)}: expected one model, a shipped one's name or a .vqm file")
    return found[0]


def model_name(sha256: str) -> str | None:
    """Name of the shipped model with this hash, if there is one."""
    return next((m.name for m in shipped_models().values() if hashlib.sha256(m.data).hexdigest() == sha256), None)
