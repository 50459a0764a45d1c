"""Files on the Hugging Face hub, by way of its own client: cached, resumed where a download broke off, pinned.

The client reads HF_HOME, HF_TOKEN, HF_HUB_OFFLINE and HF_ENDPOINT. Nothing here runs unless a command names the hub.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..runtime.errors import DependencyError, InputError

COMMAVQ = "commaai/commavq"
COMMAVQ_REVISION = "795c839a57b3c4eebd1a28b1ec04eb56d6000e81"
"""The shards that public solutions of the challenge name as theirs; a branch could change under an archive."""
COMMAVQ_SHARDS = 40
CHALLENGE = (0, 1)
"""The challenge's shards."""
SCHEME = "hf://"


class MissingError(InputError):
    """A repository has no such file."""


class Address(NamedTuple):
    """A file in a repository; kind is "model" or "dataset", revision a commit, tag or branch."""

    kind: str
    repository: str
    revision: str | None
    file: str


def parse_address(text: str, kind: str) -> Address:
    """hf://[datasets/|models/]OWNER/NAME[@REVISION]/FILE, of `kind` where it does not say. Raises InputError."""
    match = re.fullmatch(
        r"hf://(?:(datasets|models)/)?((?!datasets/|models/)[^/@]+/[^/@]+)(?:@([^/@]+))?/([^@]*[^/@])", text
    )
    if not match:
        raise InputError(f"{text}: expected {SCHEME}[datasets/|models/]OWNER/NAME[@REVISION]/FILE")
    return Address(match[1][:-1] if match[1] else kind, match[2], match[3], match[4])


def local(place: str | os.PathLike[str], kind: str) -> Path:
    """The path of a file, fetched first if it is an address on the hub. Raises InputError, DependencyError."""
    if isinstance(place, str) and place.startswith(SCHEME):
        return fetch(parse_address(place, kind))
    return Path(place)


def parse_shards(text: str) -> list[int]:
    """Numbers and ranges: "0-1", "0,3,7-9". Raises InputError."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not first <= last < COMMAVQ_SHARDS:
            raise InputError(
                f"shards: expected numbers from 0 to {COMMAVQ_SHARDS - 1} such as 0-1 or 0,3, found {text!r}"
            )
        numbers += range(first, last + 1)
    return sorted(set(numbers))


def fetch_commavq(
    shards: Sequence[int] = CHALLENGE, revision: str = COMMAVQ_REVISION, folder: Path | None = None
) -> list[Path]:
    """Download shards of commaVQ into the client's cache, or into `folder`; those that are there already are not again.

    Raises InputError, DependencyError.
    """
    names = (f"data-{n:04d}.tar.gz" for n in shards)
    return [fetch(Address("dataset", COMMAVQ, revision, name), folder) for name in names]


def fetch(address: Address, folder: Path | None = None) -> Path:
    """Where a file lies once it has been downloaded. Raises InputError, saying what to do; DependencyError."""
    try:
        from huggingface_hub import constants, hf_hub_download, utils
    except ImportError as error:
        raise DependencyError("the hub needs huggingface_hub: pip install huggingface_hub") from error
    kind, repository, revision, file = address
    label = f"{SCHEME}{kind}s/{repository}{'@' + revision if revision else ''}/{file}"
    try:
        return Path(
            hf_hub_download(repository, file, repo_type=kind, revision=revision, local_dir=folder)  # nosec B615
        )
    except utils.LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            raise InputError(
                f"{label}: not in the cache, and HF_HUB_OFFLINE forbids to fetch it; unset that"
            ) from error
        raise InputError(
            f"{label}: not in the cache, and {constants.ENDPOINT} cannot be reached: {_reason(error)}; check the "
            "network, or fetch it elsewhere and give its path"
        ) from error
    except utils.GatedRepoError as error:
        raise InputError(f"{label}: access must be granted on its page first; then set HF_TOKEN") from error
    except utils.RepositoryNotFoundError as error:
        raise InputError(
            f"{label}: there is no such repository, or it is private: check the name, or HF_TOKEN"
        ) from error
    except utils.RevisionNotFoundError as error:
        raise InputError(f"{label}: the repository has no such revision") from error
    except utils.EntryNotFoundError as error:
        raise MissingError(f"{label}: the repository has no such file in this revision") from error
    except Exception as error:  # the client's HTTP library, which varies with its version, has errors of its own
        raise InputError(f"{label}: cannot be fetched: {_reason(error)}; try again, it goes on from there") from error


def _reason(error: BaseException) -> str:
    """The first line of what is at the bottom of an error."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return str(error).strip().split("\n")[0] or type(error).__name__
