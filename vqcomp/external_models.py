"""External networks: those that an archive names and does not carry, found in a folder or on the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from .data import hub
from .data.segments import Grid
from .model_files import ModelFile, shipped_models
from .runtime.compute import Compute
from .runtime.errors import InputError, ModelError
from .runtime.spec import TokenSpec
from .runtime.token_config import Precision, TokenConfig
from .runtime.token_external import PART_BITS, External, hash_of, load_engine, self_test
from .runtime.token_weights import CONFIG, NAMES, find_weights, read_config
from .runtime.token_windows import check_keep

_REPOSITORY = re.compile(r"hf://(?:models/)?((?!datasets/|models/)[^/@]+/[^/@]+)(?:@([^/@]+))?")


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
        (weights, activations), found = PART_BITS, self.precision
        if found[0] not in weights or found[1] not in activations:
            raise InputError(
                f"precision: expected {weights[0]} or {weights[1]} bits of weights and {activations[0]} or "
                f"{activations[1]} of activations, such as 14,15; found {found[0]},{found[1]}"
            )
        return Precision(weights.index(found[0]) + 1, activations.index(found[1]) + 1)


def is_external(choice: str | os.PathLike[str], options: TokenOptions | None) -> bool:
    """Whether `choice` names a network that a zip would not carry: a folder, or a repository hf://OWNER/NAME.

    Raises InputError where there are options for such a network, and it is none.
    """
    name = os.fspath(choice)
    if name.startswith(hub.SCHEME):
        found = bool(_REPOSITORY.fullmatch(name))
    else:
        found = name not in ("auto", "none", *shipped_models()) and os.path.isdir(name)
    if options and not found:
        raise InputError("precision and kept frames are of an external network: --model DIR or hf://OWNER/NAME")
    return found


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
        config, path = read_config(Path(name)), find_weights(Path(name))
    specs = [TokenSpec(*grid, (config.bos,)) for grid in grids]
    fitting = [spec for spec in specs if spec.positions < config.positions]
    spec = (fitting or specs)[0]
    frames, precision, keep = config.frames(spec), options.parts(), options.keep_frames
    keep = frames // 2 if keep is None else keep
    check_keep(keep, frames)
    external = External(path.name, source, path.stat().st_size, hash_of(path), config, spec, precision, keep, 0)
    check = self_test(load_engine(path, external, compute.device, compute.threads))
    return ModelFile(name, external._replace(check=check).to_bytes(), spec), path


def _from_hub(name: str) -> tuple[TokenConfig, Path, str]:
    """(config, path of the weights, hf://OWNER/NAME@COMMIT) of a repository."""
    match = _REPOSITORY.fullmatch(name)
    assert match
    repository, revision = match[1], match[2]
    path = _fetch_first(name, repository, revision)
    # The client's cache keeps each commit's files in a folder of its name.
    revision = path.parent.name if re.fullmatch("[0-9a-f]{40}", path.parent.name) else revision
    try:
        config = read_config(hub.fetch(hub.Address("model", repository, revision, CONFIG)).parent)
    except hub.MissingError:
        config = TokenConfig()
    return config, path, f"{hub.SCHEME}{repository}{'@' + revision if revision else ''}"


def _fetch_first(name: str, repository: str, revision: str | None) -> Path:
    """The first of NAMES that a repository has."""
    for file in NAMES:
        try:
            return hub.fetch(hub.Address("model", repository, revision, file))
        except hub.MissingError:
            continue
    raise ModelError(f"{name}: expected {' or '.join(NAMES)} in the repository, found neither")
