"""Weights that are floats while they are trained, and integer codes wherever they are used, measured or shipped.

A weight tensor is held in units in which one step size, about 0.03 for AdamW, suits all of them; a row of codes has the
multiplier m = unit * step. The units of the activations follow from these: norm outputs, q, k, v, attention outputs and
MLP hidden 1/32; residual 1/256; logits and gates 1/64 bit; scores 1/4096 nat.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..runtime.config import ModelConfig
from ..runtime.engine import Tensors
from ..runtime.errors import ModelError
from ..runtime.weights import SPREADS, kind_of
from . import functions
from .quantise import (
    FINENESS,
    FINENESS_TABLES,
    SMALLEST,
    LearnedStep,
    Quantised,
    adaptive_bits,
    code_bits,
    code_contexts,
    multiplier,
    occurrences,
    quantise,
    shared_scales,
)

UNITS = {
    "embed": 2.0,
    "position": 256.0,
    "flags": 256.0,
    "qkv": 1.0,
    "proj": 8.0,
    "up": 2.0**-2.5,
    "down": 8.0,
    "bias_s": 8 * 4096.0,
    "bias_t": 8 * 4096.0,
    "bias": 4 * 64.0,
}


class Embedding(NamedTuple):
    """An embedding as it is computed with, once for every use of it in a pass."""

    codes: Tensor
    """(V + 1, R); unrounded where the network is not quantised."""
    multiplier: Tensor
    """(1, 1)"""

    @property
    def step(self) -> Tensor:
        """(1, 1): what a code of 1 stands for."""
        return self.multiplier / UNITS["embed"]


class CodedModule(nn.Module):
    """A network whose parameters have the names and shapes of `config.tensor_shapes()`, and are used as integer codes.

    quantised: whether they are; otherwise nothing is rounded, to measure what rounding costs. learned_steps: whether
    there is a parameter `steps.<tensor>` (scales, 1) for each tensor: the fineness of its rows, to be trained without
    decay and with `weight_bits` in the loss.
    """

    def __init__(self, config: ModelConfig, quantised: bool, learned_steps: bool) -> None:
        super().__init__()
        self.config, self.quantised, self.learned_steps = config, quantised, learned_steps
        self._scales = {name: scales for name, (_, scales) in config.tensor_shapes().items()}

    def complete(self) -> None:
        """Called once all tensors are parameters: check that they are those of the config, and add learned steps."""
        found = {name: tuple(p.shape) for name, p in self.named_parameters()}
        if found != {name: shape for name, (shape, _) in self.config.tensor_shapes().items()}:
            raise ModelError("model: the parameters do not have the names and shapes of ModelConfig.tensor_shapes()")
        if not self.learned_steps:
            return
        self.steps = nn.Module()
        for name, scales in self._scales.items():
            *path, leaf = name.split(".")
            module = self.steps
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(leaf, nn.Parameter(torch.full((scales, 1), _fixed_fineness(name))))

    # ---- in a pass

    def embedding(self, f: int) -> Embedding:
        """The embedding of factor f, quantised."""
        name = f"embed.{f}"
        weight = self.get_parameter(name)
        if not self.quantised:
            return Embedding(weight.detach() * UNITS["embed"], weight.new_ones(1, 1))
        codes, m, _ = self._quantise(name, UNITS["embed"])
        return Embedding(codes, m)

    def embedding_codes(self, f: int, embedding: Embedding) -> Tensor:
        """Its codes (V + 1, R) with a gradient for the weights."""
        weight = self._learned(f"embed.{f}", embedding.codes, embedding.multiplier, UNITS["embed"])
        return functions.Codes.apply(weight, embedding.codes, embedding.step)

    def linear(
        self,
        x: Tensor,
        name: str,
        bound: Tensor | float | None = None,
        rounded: bool = True,
        embedding: Embedding | None = None,
    ) -> Tensor:
        """x (..., columns) times a matrix, rounded and clipped: (..., rows). `stack` needs its factor's embedding."""
        weight, codes, m, unit = self._coded(name, embedding)
        rounded = rounded and self.quantised
        return functions.Linear.apply(x, weight, codes, m.reshape(1, -1), unit, bound, rounded, self.quantised)

    def table(self, name: str, bound: float | None = None) -> Tensor:
        """A tensor (rows, columns) that is used as it is, rounded and clipped to the bound."""
        weight, codes, m, unit = self._coded(name)
        return functions.Scaled.apply(weight, codes, m, unit, bound, self.quantised)

    def _coded(self, name: str, embedding: Embedding | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor | float]:
        """Weights with a gradient, codes, multipliers (rows, 1) or (1, 1), unit. Unrounded codes are no integers."""
        weight, unit = self.get_parameter(name), self._unit(name, embedding and embedding.step)
        if not self.quantised:
            return weight, weight.detach() * unit, weight.new_ones(1, 1), unit
        codes, m, _ = self._quantise(name, unit)
        return self._learned(name, codes, m, unit), codes, m, unit

    def _learned(self, name: str, codes: Tensor, m: Tensor, unit: Tensor | float) -> Tensor:
        """The weights, through which a gradient reaches their steps too where these are learned."""
        weight = self.get_parameter(name)
        if not (self.quantised and self.learned_steps):
            return weight
        return LearnedStep.apply(weight, self.get_parameter(f"steps.{name}"), codes * (m / unit))

    def _unit(self, name: str, step: Tensor | None) -> Tensor | float:
        """What a row's step is multiplied with to give its multiplier; `step` is that of the embedding, for `stack`."""
        kind = kind_of(name)
        if kind == "stack":
            assert step is not None, "the unit of `stack` depends on the embedding that it multiplies"
            return UNITS["position"] * step
        if kind == "head":
            units = self.get_parameter(name).new_ones(self._scales[name], 1)
            units[self.config.rank :] = 2.0
            return units
        return UNITS[kind.split(".")[-1]]

    def _fineness(self, name: str) -> Tensor | float:
        if self.learned_steps:
            return self.get_parameter(f"steps.{name}")
        return _fixed_fineness(name)

    def _quantise(self, name: str, unit: Tensor | float) -> Quantised:
        return quantise(self.get_parameter(name), unit, self._scales[name], self._fineness(name))

    # ---- as a whole

    def _each(self) -> Iterator[tuple[str, Tensor | float, Quantised]]:
        """(name, unit, codes) of every tensor in file order, where `stack` comes after the embedding of its factor."""
        step = None
        for name in self._scales:
            unit = self._unit(name, step)
            quantised = self._quantise(name, unit)
            if kind_of(name) == "embed":
                step = Embedding(quantised.codes, quantised.multipliers).step
            yield name, unit, quantised

    def weight_bits(self) -> Tensor:
        """Size of all weights and scales as `runtime.weights.write_model` codes them, in bits, with a gradient."""
        scaled, coded, contexts = [], [], []
        told: dict[str, list[Tensor]] = {}
        changes: dict[str, list[Tensor]] = {}
        for name, unit, (codes, m, exponents) in self._each():
            rows = (self.get_parameter(name) * unit).reshape(self._scales[name], -1)
            step = rows.square().mean(1, keepdim=True).clamp_min(SMALLEST**2).sqrt()
            fineness = self._fineness(name)
            if isinstance(fineness, Tensor):
                step = step * torch.exp2(-fineness)
            # The gradient is that of a step that is not rounded.
            scaled.append((rows / (step * (m / step).detach())).flatten())
            coded.append(codes.flatten())
            context, spread = code_contexts(codes)
            contexts.append(context.flatten())
            told.setdefault(kind_of(name), []).append(spread)
            exponents = shared_scales(codes, exponents)
            changes.setdefault(kind_of(name), []).append(exponents.diff(prepend=exponents.new_zeros(1)))
        bits = code_bits(torch.cat(scaled), torch.cat(coded), torch.cat(contexts))
        rest = [adaptive_bits(occurrences(torch.cat(x), SPREADS)) for x in told.values()]
        rest += [adaptive_bits(occurrences(torch.cat(x).remainder(256), 256)) for x in changes.values()]
        return bits + torch.stack(rest).sum().to(bits.dtype)

    def export(self) -> tuple[ModelConfig, dict[str, tuple[np.ndarray, np.ndarray]]]:
        """The integer network: config, and for each tensor int8 codes (rows, cols) and int8 scale codes (scales,)."""
        tensors = {}
        for name, _, (codes, _, scales) in self._each():
            scales = shared_scales(codes, scales)
            tensors[name] = (codes.to(torch.int8).cpu().numpy(), scales.to(torch.int8).cpu().numpy())
        return self.config, tensors

    @torch.no_grad()
    def load_codes(self, tensors: Tensors) -> None:
        """Set the weights to what the codes of a .vqm stand for; tensors as `read_model` gives them.

        Quantised again they are the same but where a row's step is rounded to a neighbouring one.
        """
        step = None
        for name in self._scales:
            codes, scales = (torch.from_numpy(np.array(a)) for a in tensors[name])
            weight = self.get_parameter(name)
            rows = codes.float().reshape(len(scales), -1) * multiplier(scales)[:, None]
            weight.copy_(rows.reshape(weight.shape) / self._unit(name, step))
            if self.learned_steps:
                deviation = codes.float().reshape(len(scales), -1).square().mean(1, keepdim=True).sqrt()
                self.get_parameter(f"steps.{name}").copy_(deviation.clamp_min(2.0**-4).log2())
            if kind_of(name) == "embed":
                step = self._quantise(name, UNITS["embed"]).multipliers / UNITS["embed"]


def _fixed_fineness(name: str) -> float:
    return FINENESS_TABLES if "bias" in name or "embed" in name else FINENESS
