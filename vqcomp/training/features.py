"""What the network reads from past tokens directly: which are equal, and which could be copied.

Letters in shapes: B windows, T frames, S positions, F factors, J copies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime.config import ModelConfig, Offset


def equal_pairs(tokens: Tensor, config: ModelConfig) -> Tensor:
    """tokens (B, T, S, F) -> bool (B, T, S, flags): whether both tokens of each of `config.flags` exist and agree."""
    ids = tokens[..., 0]
    size = config.factors[0]
    for f in range(1, len(config.factors)):
        ids = ids + tokens[..., f] * size
        size *= config.factors[f]
    flags = []
    for first, second in config.flags:
        a = _shifted(ids, first, config)
        flags.append((a == _shifted(ids, second, config)) & (a >= 0))
    return torch.stack(flags, -1)


def copied_tokens(tokens: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """tokens (B, T, S, F) -> those at `config.copies` (B, T, S, J, F), and bool (B, T, S, J): whether there is one."""
    b, t, s, factors = tokens.shape
    if not config.copies:
        return tokens.new_zeros(b, t, s, 0, factors), tokens.new_zeros(b, t, s, 0, dtype=torch.bool)
    each = [[_shifted(tokens[..., f], o, config) for o in config.copies] for f in range(factors)]
    copies = torch.stack([torch.stack(x, -1) for x in each], -1)  # (B, T, S, J, F)
    return copies.clamp_min(0), copies[..., 0] >= 0


def _shifted(grid: Tensor, offset: Offset, config: ModelConfig) -> Tensor:
    """grid (B, T, S) -> the value at an offset of each token, -1 outside the grid and before the first frame."""
    (dt, dy, dx), (b, t, _), (h, w) = offset, grid.shape, (config.height, config.width)
    out = grid.new_full((b, t, h, w), -1)
    if dt < t:
        rows, cols = slice(max(dy, 0), h + min(dy, 0)), slice(max(dx, 0), w + min(dx, 0))
        to_rows, to_cols = slice(max(-dy, 0), h - max(dy, 0)), slice(max(-dx, 0), w - max(dx, 0))
        out[:, dt:, to_rows, to_cols] = grid.view(b, t, h, w)[:, : t - dt, rows, cols]
    return out.view(b, t, -1)
