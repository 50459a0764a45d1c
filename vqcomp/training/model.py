"""FrameGPT, the network that is trained: exactly the integer network that `runtime/engine.py` runs, with gradients.

Every activation is an integer held in float32 and every weight an integer code in [-63, 63] times a step (a quarter
power of two, one per row). The master weights are floats. So what is trained is what is shipped, and in eval mode the
logits equal the engine's bit for bit. FORMAT.md is normative for the arithmetic.

Letters in shape comments: B windows, T frames, S positions, F factors, V vocabulary of a factor, D dim, R rank,
H heads, A heads * head_dim, C head_dim, N temporal window, J copies, M = B * T * S.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..runtime.arithmetic import ACTIVATION_MAX, GATE_MAX, OUTPUT_BIAS_MAX, SCORE_BIAS_MAX
from ..runtime.config import ModelConfig
from .coded import UNITS, CodedModule, Embedding
from .features import copied_tokens, equal_pairs
from .functions import LOGIT_NATS, Attention, Norm, OutputLoss, ReluSquared, product

MASKED = -1e9
"""Bias of a key that is not seen."""


class Block(nn.Module):
    """Attention over space and time, then an MLP. Its parameters; `FrameGPT` does the arithmetic."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        shapes = config.tensor_shapes()
        d, a = config.dim, config.attention_dim
        self.qkv = nn.Parameter(torch.randn(shapes["blocks.0.qkv"][0]) * d**-0.5)
        if config.spatial_heads:
            # Heads begin with reaches of about 1, 2, 4, ... tokens; 1/8 nat is the unit of the bias.
            dy = torch.arange(1 - config.height, config.height).abs()[:, None]
            dx = torch.arange(1 - config.width, config.width).abs()[None, :]
            slopes = 2.0 ** -torch.arange(config.spatial_heads)
            self.bias_s = nn.Parameter(-slopes[:, None] * (dy + dx).flatten()[None, :] / 8)
        if config.temporal_heads:
            slopes = 0.5 * 2.0 ** -torch.arange(config.temporal_heads)
            self.bias_t = nn.Parameter(-slopes[:, None] * torch.arange(config.window)[None, :] / 8)
        self.proj = nn.Parameter(torch.randn(shapes["blocks.0.proj"][0]) * (2 * config.blocks * a) ** -0.5)
        self.up = nn.Parameter(torch.randn(shapes["blocks.0.up"][0]) * d**-0.5)
        self.down = nn.Parameter(torch.randn(shapes["blocks.0.down"][0]) * (2 * config.blocks * config.hidden) ** -0.5)


class FrameGPT(CodedModule):
    """Predicts every token of a frame at once from the frames before it, and from its own known tokens (within_frame).

    tokens are int64 (B, T, S, F); output t is the prediction of frame t from frames < t, so there is no shift to make
    outside. dropout (share of residual updates that are dropped), token_dropout (of input tokens whose identity is
    hidden) and code_dropout (of codes whose identity is hidden in a whole window) act in training mode alone.
    quantised, learned_steps: see `CodedModule`. Raises ModelError for a config that is not exact.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dropout: float = 0.0,
        token_dropout: float = 0.0,
        code_dropout: float = 0.0,
        quantised: bool = True,
        learned_steps: bool = False,
    ) -> None:
        config.check()
        super().__init__(config, quantised, learned_steps)
        self.dropout, self.token_dropout, self.code_dropout = dropout, token_dropout, code_dropout
        d, r, copies = config.dim, config.rank, len(config.copies)
        embed_std = 0.3
        stack_std = 1.0 / (embed_std * math.sqrt(r * config.inputs * len(config.factors)))
        self.embed = nn.ParameterList(torch.randn(size + 1, r) * embed_std for size in config.factors)
        self.stack = nn.ModuleList(
            nn.ParameterList(torch.randn(d, r) * stack_std for _ in config.factors) for _ in range(config.inputs)
        )
        self.position = nn.Parameter(torch.randn(d, config.positions) * 0.2)
        if config.flags:
            self.flags = nn.Parameter(torch.randn(d, len(config.flags)) * 0.2)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.head = nn.ParameterList(
            torch.cat([torch.randn(r, d) * 0.5 * d**-0.5, torch.zeros(copies, d)]) for _ in config.factors
        )
        self.bias = nn.ParameterList(torch.zeros(1, size) for size in config.factors)
        self.complete()

    @torch.no_grad()
    def set_frequencies(self, counts: Sequence[np.ndarray]) -> None:
        """Start the output biases at the log frequencies of the tokens; counts has an array (V_f,) for each factor."""
        for bias, count in zip(self.bias, counts, strict=True):
            share = torch.as_tensor(np.asarray(count, dtype=np.float64) + 1.0)
            share = torch.log2(share / share.sum())
            bias.copy_(((share - share.mean()) * (64.0 / UNITS["bias"])).to(torch.float32)[None, :])

    # ---- arithmetic

    def forward(self, tokens: Tensor, known: Tensor | None = None) -> tuple[Tensor, ...]:
        """tokens (B, T, S, F) -> for each factor logits (B, T, S, V_f) in nats: their softmax predicts frame t.

        known: bool (B, T, S), which of frame t's own tokens its prediction sees (`within_frame`); None for none.
        """
        copies, inside = self._copied(tokens)
        embeddings = self.embeddings()
        h = self.residual(tokens, embeddings, known)
        outputs = []
        for f, embedding in enumerate(embeddings):
            z, gates, codes, m, bias = self._head(h, f, embedding)
            logits = product(z.flatten(0, -2), codes.t(), self.quantised).mul_(m).view(*z.shape[:-1], -1)
            if self.quantised:
                logits = logits.round()
            logits = logits + bias
            logits = logits.scatter_add(-1, copies[..., f], gates * inside)
            outputs.append(logits * LOGIT_NATS)
        return tuple(outputs)

    def loss(self, tokens: Tensor, skip: int = 0) -> Tensor:
        """Mean bits per token (summed over factors) of frames skip.. of each window; the same as of `forward`.

        In training mode a network `within_frame` is shown some of the tokens, and the mean is over the others.
        """
        copies, inside = self._copied(tokens)
        embeddings = self.embeddings()
        known = self._known(tokens) if self.training and self.config.within_frame else None
        h = self.residual(tokens, embeddings, known)[:, skip:].flatten(0, 2)  # (M, D)
        copies, inside = copies[:, skip:].flatten(0, 2), inside[:, skip:].flatten(0, 2)
        targets = tokens[:, skip:].flatten(0, 2)
        if known is not None:
            unknown = ~known[:, skip:].flatten()
            h, copies, inside, targets = (x[unknown] for x in (h, copies, inside, targets))
        total = h.new_zeros(())
        for f, embedding in enumerate(embeddings):
            z, gates, codes, m, bias = self._head(h, f, embedding)
            ids = copies[..., f].contiguous()  # (M, J)
            total = total + OutputLoss.apply(z, gates * inside, codes, m, bias, ids, targets[:, f], self.quantised)
        return total

    def embeddings(self) -> list[Embedding]:
        """The quantised embedding of each factor, for one pass."""
        return [self.embedding(f) for f in range(len(self.config.factors))]

    def residual(self, tokens: Tensor, embeddings: Sequence[Embedding], known: Tensor | None = None) -> Tensor:
        """tokens (B, T, S, F), known (B, T, S) -> the residual stream (B, T, S, D) that the heads read."""
        c, limit = self.config, self.config.residual_max
        b, t, s, _ = tokens.shape
        shown = self._hide(tokens) if self.training else tokens
        h = self.table("position").t()[None, None]  # (1, 1, S, D)
        for f, size in enumerate(c.factors):
            codes = self.embedding_codes(f, embeddings[f])  # (V + 1, R)
            for i in range(c.stack):
                table = self.linear(codes, f"stack.{i}.{f}", embedding=embeddings[f])  # (V + 1, D)
                start = tokens.new_full((b, min(i + 1, t), s), size)
                past = torch.cat([start, shown[:, : max(t - i - 1, 0), :, f]], 1)  # (B, T, S)
                h = h + functional.embedding(past, table)
            if c.within_frame:
                table = self.linear(codes, f"stack.{c.stack}.{f}", embedding=embeddings[f])
                hidden = torch.full_like(shown[..., f], size)
                h = h + functional.embedding(hidden if known is None else shown[..., f].where(known, hidden), table)
        if c.flags:
            h = h + self.linear(equal_pairs(tokens, c).to(self.position.dtype), "flags")
        h = self._drop(h.clamp(-limit, limit))
        for i in range(c.blocks):
            a = Norm.apply(h, self.quantised)
            qkv = self.linear(a, f"blocks.{i}.qkv", ACTIVATION_MAX)
            o = self._attention(qkv, i)
            h = (h + self._drop(self.linear(o, f"blocks.{i}.proj"))).clamp(-limit, limit)
            a = Norm.apply(h, self.quantised)
            g = ReluSquared.apply(self.linear(a, f"blocks.{i}.up", rounded=False), self.quantised)
            h = (h + self._drop(self.linear(g, f"blocks.{i}.down"))).clamp(-limit, limit)
        return h

    def _head(self, h: Tensor, f: int, embedding: Embedding) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """h (..., D) -> z (..., R), gates (..., J), and the codes (V, R), multiplier and bias (V,) of the output."""
        rank, size = self.config.rank, self.config.factors[f]
        bounds = [float(ACTIVATION_MAX)] * rank + [float(GATE_MAX)] * len(self.config.copies)
        bound = torch.tensor(bounds, dtype=h.dtype, device=h.device)
        y = self.linear(Norm.apply(h, self.quantised), f"head.{f}", bound)
        codes = self.embedding_codes(f, embedding)
        bias = self.table(f"bias.{f}", OUTPUT_BIAS_MAX)[0]
        return y[..., :rank], y[..., rank:], codes[:size], embedding.multiplier, bias

    def _copied(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, T, S, F) -> ids that can be copied (B, T, S, J, F), and 1.0 where there is one (B, T, S, J)."""
        copies, inside = copied_tokens(tokens, self.config)
        return copies, inside.to(self.position.dtype)

    def _attention(self, qkv: Tensor, i: int) -> Tensor:
        """qkv (B, T, S, 3A) -> o (B, T, S, A)."""
        c = self.config
        b, t, s, _ = qkv.shape
        q, k, v = qkv.view(b, t, s, 3, c.heads, c.head_dim).unbind(3)  # (B, T, S, H, C)
        outputs = []
        if c.spatial_heads:
            parts = [x[..., : c.spatial_heads, :].flatten(0, 1).transpose(1, 2) for x in (q, k, v)]  # (BT, H, S, C)
            bias = self.table(f"blocks.{i}.bias_s", SCORE_BIAS_MAX)[:, self._displacement()]  # (H, S, S)
            o = Attention.apply(*(x.contiguous() for x in parts), bias, self.quantised)
            outputs.append(o.transpose(1, 2).reshape(b, t, s, -1))
        if c.temporal_heads:
            n = c.window
            count = -(-t // n)
            # Queries in blocks of N frames; the keys of a block are its own frames and those of the block before.
            heads = [x[..., c.spatial_heads :, :].permute(0, 2, 1, 3, 4) for x in (q, k, v)]  # (B, S, T, H, C)
            heads = [functional.pad(x, (0, 0, 0, 0, 0, count * n - t)) for x in heads]
            queries = heads[0].unflatten(2, (count, n)).flatten(0, 1)  # (BS, blocks, N, H, C)
            keys = [functional.pad(x, (0, 0, 0, 0, n, 0)).unflatten(2, (count + 1, n)).flatten(0, 1) for x in heads[1:]]
            keys = [torch.cat([x[:, :-1], x[:, 1:]], 2) for x in keys]  # (BS, blocks, 2N, H, C)
            # Heads of a block side by side: (BS, blocks * H, N or 2N, C)
            parts = [x.transpose(2, 3).flatten(1, 2).contiguous() for x in (queries, *keys)]
            table = self.table(f"blocks.{i}.bias_t", SCORE_BIAS_MAX)  # (H, N)
            place = torch.arange(2 * n, device=table.device)
            distance = place[:n, None] + n - place[None, :]  # (N, 2N)
            seen = (distance >= 0) & (distance < n)
            bias = torch.where(seen, table[:, distance.clamp(0, n - 1)], MASKED)  # (H, N, 2N)
            before = torch.where(place < n, MASKED, 0.0)
            bias = torch.cat([bias + before] + [bias] * (count - 1))  # (blocks * H, N, 2N)
            o = Attention.apply(*parts, bias, self.quantised)
            o = o.view(b, s, count, c.temporal_heads, n, c.head_dim).permute(0, 2, 4, 1, 3, 5)
            outputs.append(o.reshape(b, count * n, s, -1)[:, :t])
        return torch.cat(outputs, -1)

    def _displacement(self) -> Tensor:
        """(S, S) indices of [query, key] into the table of relative biases."""
        h, w = self.config.height, self.config.width
        place = torch.arange(h * w, device=self.position.device)
        y, x = place // w, place % w
        return (y[None, :] - y[:, None] + h - 1) * (2 * w - 1) + x[None, :] - x[:, None] + w - 1

    # ---- noise in training

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout) if self.training and self.dropout else x

    def _known(self, tokens: Tensor) -> Tensor:
        """tokens (B, T, S, F) -> bool (B, T, S): which of its own tokens each frame is shown, in a step of training.

        Of half of the frames none, as in coding and in the first step of refining. Of the others as many as MaskGIT
        shows (Chang et al. 2022): a share of 1 - cos(pi / 2 * u) for a uniform u, but never all.
        """
        b, t, s, _ = tokens.shape
        u = torch.rand(b, t, 1, device=tokens.device)
        some = torch.rand(b, t, 1, device=tokens.device) < 0.5
        count = ((1 - torch.cos(math.pi / 2 * u)) * s * some).floor()  # below S, since cos is above 0
        rank = torch.rand(b, t, s, device=tokens.device).argsort(-1).argsort(-1)
        return rank < count.clamp_max(s - 1)

    def _hide(self, tokens: Tensor) -> Tensor:
        """Show some tokens, and all tokens of some codes, as if there were no frame: their equality stays known."""
        b, device = tokens.shape[0], tokens.device
        shown = tokens
        unknown = torch.tensor(self.config.factors, device=device)
        if self.token_dropout:
            hide = torch.rand((*tokens.shape[:-1], 1), device=device) < self.token_dropout
            shown = torch.where(hide, unknown, shown)
        if self.code_dropout:
            for f, size in enumerate(self.config.factors):
                lost = torch.rand(b, size, device=device) < self.code_dropout
                hide = lost.gather(1, tokens[..., f].flatten(1)).view(tokens.shape[:-1])
                shown = shown.clone()
                shown[..., f] = torch.where(hide, size, shown[..., f])
        return shown
