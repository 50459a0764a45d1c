"""The shape of the network that predicts the tokens."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from .arithmetic import ACTIVATION_MAX, EXACT_LIMIT, WEIGHT_MAX
from .errors import ModelError
from .spec import TokenSpec

Offset = tuple[int, int, int]
"""(dt, dy, dx): the token dt frames before the frame being predicted, dy rows down, dx columns right."""


_LIMITS = {"blocks": 1024, "stack": 256}
"""So that a forged config does not ask for tensors without number."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a FrameGPT. Letters in shape comments: S positions, D dim, R rank, N window, V vocabulary."""

    height: int
    """Rows of the grid."""
    width: int
    """Columns of the grid."""
    factors: tuple[int, ...]
    """Vocabulary size of each factor of an id."""
    dim: int
    """D, width of the residual stream."""
    blocks: int
    """Number of blocks (attention, then MLP)."""
    spatial_heads: int
    """Heads that attend within the last frame."""
    temporal_heads: int
    """Heads that attend over the last `window` frames at one position."""
    head_dim: int
    """Width of a head."""
    hidden: int
    """Width of the MLP."""
    rank: int
    """R, width of the token embedding, shared by input and output."""
    window: int
    """N, frames that temporal heads see."""
    stack: int
    """Past frames whose tokens are embedded directly into the input."""
    flags: tuple[tuple[Offset, Offset], ...]
    """Pairs of past tokens; whether they are equal is an input feature."""
    copies: tuple[Offset, ...]
    """Past tokens that the copy head can point at."""
    within_frame: bool = False
    """Whether those tokens of the predicted frame itself that are known already are an input, too."""

    @property
    def spec(self) -> TokenSpec:
        return TokenSpec(self.height, self.width, self.factors)

    @property
    def positions(self) -> int:
        return self.height * self.width

    @property
    def heads(self) -> int:
        return self.spatial_heads + self.temporal_heads

    @property
    def attention_dim(self) -> int:
        """A, the width of all heads together."""
        return self.heads * self.head_dim

    @property
    def inputs(self) -> int:
        """Frames whose tokens are embedded into the input: the last `stack` ones, then perhaps the predicted one."""
        return self.stack + self.within_frame

    @property
    def residual_max(self) -> int:
        """Bound on the residual stream, so that its absolute row sum stays exact."""
        return min(32767, (EXACT_LIMIT - 1) // self.dim)

    @property
    def history(self) -> int:
        """Past frames of raw tokens that one prediction reads."""
        offsets = [o for pair in self.flags for o in pair] + list(self.copies)
        return max([self.stack, 1] + [dt for dt, _, _ in offsets])

    def tensor_shapes(self) -> dict[str, tuple[tuple[int, int], int]]:
        """Every weight tensor in file order: name -> ((rows, columns), number of scales)."""
        d, a, r = self.dim, self.attention_dim, self.rank
        span = (2 * self.height - 1) * (2 * self.width - 1)
        shapes: dict[str, tuple[tuple[int, int], int]] = {}
        for f, size in enumerate(self.factors):
            shapes[f"embed.{f}"] = ((size + 1, r), 1)
            for c in range(self.inputs):
                shapes[f"stack.{c}.{f}"] = ((d, r), d)
        shapes["position"] = ((d, self.positions), d)
        if self.flags:
            shapes["flags"] = ((d, len(self.flags)), d)
        for i in range(self.blocks):
            shapes[f"blocks.{i}.qkv"] = ((3 * a, d), 3 * a)
            if self.spatial_heads:
                shapes[f"blocks.{i}.bias_s"] = ((self.spatial_heads, span), self.spatial_heads)
            if self.temporal_heads:
                shapes[f"blocks.{i}.bias_t"] = ((self.temporal_heads, self.window), self.temporal_heads)
            shapes[f"blocks.{i}.proj"] = ((d, a), d)
            shapes[f"blocks.{i}.up"] = ((self.hidden, d), self.hidden)
            shapes[f"blocks.{i}.down"] = ((d, self.hidden), d)
        for f, size in enumerate(self.factors):
            shapes[f"head.{f}"] = ((r + len(self.copies), d), r + len(self.copies))
            shapes[f"bias.{f}"] = ((1, size), 1)
        return shapes

    def parameters(self) -> int:
        """Number of weights, scales left out."""
        return sum(rows * cols for (rows, cols), _ in self.tensor_shapes().values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field; `within_frame` is left out where it is false, as it was before there was such."""
        values = asdict(self)
        if not self.within_frame:
            del values["within_frame"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`, also from JSON. Raises ModelError on missing, unknown or impossible values."""
        names = {f.name for f in fields(cls)}
        if {"within_frame", *values} != names:
            raise ModelError(f"model config: expected the fields {sorted(names)}, found {sorted(values)}")
        try:
            others = ("factors", "flags", "copies", "within_frame")
            known: dict[str, Any] = {k: _integer(v) for k, v in values.items() if k not in others}
            known["within_frame"] = values.get("within_frame", False)
            known["factors"] = tuple(_integer(v) for v in values["factors"])
            known["flags"] = tuple((_offset(a), _offset(b)) for a, b in values["flags"])
            known["copies"] = tuple(_offset(o) for o in values["copies"])
            config = cls(**known)
        except (TypeError, ValueError) as error:
            raise ModelError(f"model config: {error}") from error
        config.check()
        return config

    def check(self) -> None:
        """Raise ModelError unless every sum that the engine makes stays exact. FORMAT.md derives the bounds."""
        for name in ("height", "width", "dim", "blocks", "head_dim", "hidden", "rank", "window", "stack"):
            limit = _LIMITS.get(name, 65536)
            if not 1 <= getattr(self, name) <= limit:
                raise ModelError(f"model config: {name} must be in 1..{limit}, found {getattr(self, name)}")
        if not isinstance(self.within_frame, bool):
            raise ModelError(f"model config: within_frame must be true or false, found {self.within_frame}")
        if self.spatial_heads < 0 or self.temporal_heads < 0 or self.heads < 1:
            raise ModelError("model config: at least one head, and no negative number of heads")
        if not 1 <= len(self.factors) <= 64 or any(not 2 <= v <= 65536 for v in self.factors):
            raise ModelError(f"model config: expected 1 to 64 factors in 2..65536, found {str(self.factors)[:60]}")
        for name, length, limit in (
            ("dim", self.dim, WEIGHT_MAX),
            ("hidden", self.hidden, WEIGHT_MAX),
            ("heads * head_dim", self.attention_dim, WEIGHT_MAX),
            ("rank", self.rank, WEIGHT_MAX),
            ("height * width", self.positions, ACTIVATION_MAX),
            ("window", self.window, ACTIVATION_MAX),
        ):
            if length * ACTIVATION_MAX * limit >= EXACT_LIMIT:
                raise ModelError(f"model config: {name} = {length} is too large for exact sums")
        # Scores share their range with the relative bias and the mask: see engine.py.
        if self.head_dim * ACTIVATION_MAX**2 > 1 << 21:
            raise ModelError(f"model config: head_dim = {self.head_dim} is too large for exact scores")
        for dt, dy, dx in [o for pair in self.flags for o in pair] + list(self.copies):
            if not (1 <= dt <= 256 and abs(dy) < self.height and abs(dx) < self.width):
                raise ModelError(f"model config: offset {(dt, dy, dx)} is outside the past or the grid")


def _offset(values: Any) -> Offset:
    dt, dy, dx = (_integer(v) for v in values)
    return dt, dy, dx


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"expected an integer, found {json.dumps(value)[:60]}")
    return value
