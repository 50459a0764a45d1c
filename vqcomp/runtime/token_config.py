"""The shape of a network of the GPT-2 family that predicts tokens one after another, and how precisely it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from .errors import ModelError
from .spec import TokenSpec

POSITIONS_MAX = 4095
"""So that the weights of all keys, of 12 bits each, add up below 2^24."""
DIM_MAX = 4096
"""So that the squares of a row's residuals add up below 2^63."""
HEAD_DIM_MAX = 1024
"""So that queries and keys have 7 bits at least: see `TokenGPT`."""


def shown(value: Any) -> str:
    """A value of JSON for a message: not long, and nothing in it moves a terminal's cursor."""
    return json.dumps(value)[:60]


class Precision(NamedTuple):
    """Of how many parts numbers are. A part of a weight has 7 bits, a part of an activation 8; two make 14 and 15."""

    weights: int = 2
    activations: int = 2


@dataclass(frozen=True)
class TokenConfig:
    """Shape of a TokenGPT. Its defaults are comma's gpt2m."""

    layers: int = 24
    heads: int = 16
    dim: int = 1024
    """D, width of the residual stream."""
    positions: int = 2580
    """The most ids that it sees."""
    vocabulary: int = 1025
    """Number of ids; the last one begins every frame."""
    hidden: int = 4096
    """Width of the MLP."""
    epsilon: float = 1e-5
    """What LayerNorm adds to a variance."""

    @property
    def head_dim(self) -> int:
        """E, width of a head."""
        return self.dim // self.heads

    @property
    def bos(self) -> int:
        """The id that begins a frame."""
        return self.vocabulary - 1

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TokenConfig:
        """From what `transformers` writes as config.json; what is left out there is as gpt2m has it.

        Raises ModelError for other architectures, and for values that the exact arithmetic cannot take.
        """
        known = {"model_type": "gpt2", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
                 "reorder_and_upcast_attn": False, "add_cross_attention": False}  # fmt: skip
        for name, value in known.items():
            if values.get(name, value) != value:
                raise ModelError(f"{name}: expected {shown(value)}, found {shown(values[name])}")
        activation = values.get("activation_function", "gelu_new")
        if activation not in ("gelu_new", "gelu_pytorch_tanh"):
            raise ModelError(f"activation_function: expected gelu_new, found {shown(activation)}")

        def integer(name: str, default: int) -> int:
            value = values.get(name)
            if value is None:
                return default
            if type(value) is not int or not 1 <= value <= 1 << 16:
                raise ModelError(f"{name}: expected an integer in 1..65536, found {shown(value)}")
            return value

        epsilon, dim = values.get("layer_norm_epsilon", cls.epsilon), integer("n_embd", cls.dim)
        if type(epsilon) not in (int, float) or not 0 <= epsilon <= 1:
            raise ModelError(f"layer_norm_epsilon: expected a number in 0..1, found {shown(epsilon)}")
        config = cls(
            integer("n_layer", cls.layers), integer("n_head", cls.heads), dim, integer("n_positions", cls.positions),
            integer("vocab_size", cls.vocabulary), integer("n_inner", 4 * dim), float(epsilon),
        )  # fmt: skip
        config.check()
        return config

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` reads."""
        return {
            "n_layer": self.layers, "n_head": self.heads, "n_embd": self.dim, "n_positions": self.positions,
            "vocab_size": self.vocabulary, "n_inner": self.hidden, "layer_norm_epsilon": self.epsilon,
        }  # fmt: skip

    def check(self) -> None:
        """Raise ModelError unless every sum that the engine makes is exact."""
        for name, value, limit in (
            ("n_embd", self.dim, DIM_MAX),
            ("n_positions", self.positions, POSITIONS_MAX),
            ("n_embd / n_head", self.head_dim, HEAD_DIM_MAX),
        ):
            if value > limit:
                raise ModelError(f"{name}: expected at most {limit} for exact sums, found {value}")
        if self.dim % self.heads:
            raise ModelError(f"expected n_embd to be a multiple of n_head, found {self.dim}, {self.heads}")

    def frames(self, spec: TokenSpec) -> int:
        """How many frames it sees at once. Raises ModelError if tokens of `spec` are not what it predicts."""
        if spec.factors != (self.vocabulary - 1,):
            expected = f"ids below {self.vocabulary - 1} and one more that begins a frame"
            raise ModelError(f"the network predicts {expected}, the tokens have factors {spec.factors}")
        frames = self.positions // (spec.positions + 1)
        if frames < 1:
            raise ModelError(
                f"the network sees {self.positions} ids; a frame of {spec.height}x{spec.width} tokens has "
                f"{spec.positions + 1} with the one that begins it"
            )
        return frames

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of a checkpoint: name -> shape. The matrices of blocks are stored (inputs, outputs)."""
        d = self.dim
        shapes: dict[str, tuple[int, ...]] = {
            "transformer.wte.weight": (self.vocabulary, d),
            "transformer.wpe.weight": (self.positions, d),
        }
        for i in range(self.layers):
            for name, shape in (
                ("ln_1", (d,)),
                ("attn.c_attn", (d, 3 * d)),
                ("attn.c_proj", (d, d)),
                ("ln_2", (d,)),
                ("mlp.c_fc", (d, self.hidden)),
                ("mlp.c_proj", (self.hidden, d)),
            ):
                shapes[f"transformer.h.{i}.{name}.weight"] = shape
                shapes[f"transformer.h.{i}.{name}.bias"] = shape[-1:]
        shapes["transformer.ln_f.weight"] = shapes["transformer.ln_f.bias"] = (d,)
        shapes["lm_head.weight"] = (self.vocabulary, d)
        return shapes

    def parameters(self) -> int:
        """Number of weights."""
        return sum(map(prod, self.tensor_shapes().values()))
