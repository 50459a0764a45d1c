"""Model files (.vqm) by name: those that ship, the path of one, or an address on the hub."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from .data import hub
from .runtime.errors import ModelError, VqcompError
from .runtime.kinds import EXTERNAL
from .runtime.spec import TokenSpec
from .runtime.token_external import parse_external
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
    if not os.path.isfile(name):
        names = ", ".join(["auto", "none", *shipped_models()])
        raise ModelError(f"there is no model {name}: expected one of {names}, the path of a .vqm file or hf://...")
    return [read_model_file(Path(name))]


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
