"""The kinds of codec: which there are, what each needs, and how to make one."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import NamedTuple

from .codec import Codec
from .compute import Compute
from .spec import TokenSpec


class Kind(NamedTuple):
    """A way to turn segments into streams."""

    name: str
    """As manifests have it."""
    module: str
    """The module beside this one whose `make(spec, model, compute)` makes the codec."""
    has_network: bool
    """Whether it takes a trained network (a .vqm)."""
    learns: bool
    """Whether it learns while it codes: then several segments share a stream."""
    has_processes: bool
    """Whether groups are coded in several processes. A network that takes gigabytes is loaded once."""


ADAPTIVE = Kind("adaptive", "adapt", has_network=False, learns=True, has_processes=True)
NETWORK = Kind("gpt", "gpt", has_network=True, learns=False, has_processes=False)
MIXED = Kind("mixed", "mixed", has_network=True, learns=True, has_processes=True)
TOKEN = Kind("token", "token_codec", has_network=True, learns=False, has_processes=False)
TOKEN_MIXED = Kind("token-mixed", "token_mixed", has_network=True, learns=True, has_processes=False)
KINDS = {kind.name: kind for kind in (ADAPTIVE, NETWORK, MIXED, TOKEN, TOKEN_MIXED)}
EXTERNAL = b"{"
"""How a description of an external network begins; a .vqm begins otherwise."""


def choose_kind(model: bytes | None, adapt: bool) -> Kind:
    """What codes tokens, by a trained network or none, and with it learning (`adapt`) or not."""
    if model is None:
        return ADAPTIVE
    if model.startswith(EXTERNAL):
        return TOKEN_MIXED if adapt else TOKEN
    return MIXED if adapt else NETWORK


def make_codec(spec: TokenSpec, model: bytes | None, *, adapt: bool = False, compute: Compute | None = None) -> Codec:
    """The codec for tokens of `spec`: by the network in `model`, and by what it learns (`adapt`).

    model: the bytes of a .vqm, or what names an external network (see token_external.py). Raises as `codec_of` does.
    """
    return codec_of(choose_kind(model, adapt), spec, model, compute or Compute())


def codec_of(kind: Kind, spec: TokenSpec, model: bytes | None, compute: Compute) -> Codec:
    """The codec of this kind. Where compute.jobs is above 1, it may code groups in so many processes.

    Raises ModelError, DamageError, PlatformError, InputError, DependencyError.
    """
    make = partial(import_module(f".{kind.module}", __package__).make, spec, model)
    # Made here in any case, so that a model or a machine that will not do is found before any process is started.
    codec: Codec = make(compute)
    if not kind.has_processes or compute.processes == 1:
        return codec
    from .workers import Workers

    return Workers(codec, make, compute)
