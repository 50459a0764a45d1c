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
    """Whether it learns while it codes: then several segments share a stream, and groups are coded in processes."""


ADAPTIVE = Kind("adaptive", "adapt", has_network=False, learns=True)
NETWORK = Kind("gpt", "gpt", has_network=True, learns=False)
MIXED = Kind("mixed", "mixed", has_network=True, learns=True)
KINDS = {kind.name: kind for kind in (ADAPTIVE, NETWORK, MIXED)}


def kind_of(has_network: bool, adapt: bool) -> Kind:
    """What codes tokens, with or without a trained network, and with it learning (`adapt`) or not."""
    return (MIXED if adapt else NETWORK) if has_network else ADAPTIVE


def make_codec(spec: TokenSpec, model: bytes | None, *, adapt: bool = False, compute: Compute | None = None) -> Codec:
    """The codec for tokens of `spec`: by the network in `model`, the bytes of a .vqm, and by what it learns (`adapt`).

    Where it learns and compute.jobs is above 1, groups are coded in so many processes. Raises ModelError, DamageError,
    PlatformError, InputError, DependencyError.
    """
    compute = compute or Compute()
    kind = kind_of(model is not None, adapt)
    make = partial(import_module(f".{kind.module}", __package__).make, spec, model)
    # Made here in any case, so that a model or a machine that will not do is found before any process is started.
    codec: Codec = make(compute)
    if not kind.learns or compute.processes == 1:
        return codec
    from .workers import Workers

    return Workers(codec, make, compute)
