"""A network of the GPT-2 family in float, with gradients: what `TokenGPT` is held against, and trained as.

Its state has the names and shapes of comma's gpt2m and of transformers' GPT2LMHeadModel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..runtime.token_config import TokenConfig


class _Linear(nn.Module):
    """A linear layer whose weight is stored (inputs, outputs)."""

    def __init__(self, inputs: int, outputs: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * std)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class _Attention(nn.Module):
    def __init__(self, config: TokenConfig, std: float) -> None:
        super().__init__()
        self.heads = config.heads
        self.c_attn = _Linear(config.dim, 3 * config.dim, 0.02)
        self.c_proj = _Linear(config.dim, config.dim, std)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.c_attn(x).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.c_proj(y.transpose(1, 2).reshape(b, t, d))
        return out


class _MLP(nn.Module):
    def __init__(self, config: TokenConfig, std: float) -> None:
        super().__init__()
        self.c_fc = _Linear(config.dim, config.hidden, 0.02)
        self.c_proj = _Linear(config.hidden, config.dim, std)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return out


class _Block(nn.Module):
    def __init__(self, config: TokenConfig, dropout: float) -> None:
        super().__init__()
        std = 0.02 / (2 * config.layers) ** 0.5
        self.ln_1 = nn.LayerNorm(config.dim, config.epsilon)
        self.attn = _Attention(config, std)
        self.ln_2 = nn.LayerNorm(config.dim, config.epsilon)
        self.mlp = _MLP(config, std)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attn(self.ln_1(x)))
        out: Tensor = x + self.drop(self.mlp(self.ln_2(x)))
        return out


class GPT2(nn.Module):
    """ids (B, L) -> logits (B, L, vocabulary), in nats."""

    def __init__(self, config: TokenConfig, dropout: float = 0.0) -> None:
        """dropout: share of the residual updates that are dropped in training."""
        super().__init__()
        config.check()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocabulary, config.dim),
                "wpe": nn.Embedding(config.positions, config.dim),
                "h": nn.ModuleList(_Block(config, dropout) for _ in range(config.layers)),
                "ln_f": nn.LayerNorm(config.dim, config.epsilon),
            }
        )
        self.lm_head = nn.Linear(config.dim, config.vocabulary, bias=False)
        for weight in (self.transformer["wte"].weight, self.transformer["wpe"].weight, self.lm_head.weight):
            nn.init.normal_(weight, std=0.02)  # type: ignore[arg-type]

    def forward(self, ids: Tensor) -> Tensor:
        parts = self.transformer
        x: Tensor = parts["wte"](ids) + parts["wpe"](torch.arange(ids.shape[1], device=ids.device))
        for block in parts["h"]:  # type: ignore[attr-defined]
            x = block(x)
        logits: Tensor = self.lm_head(parts["ln_f"](x))
        return logits
