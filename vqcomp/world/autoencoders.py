"""The networks that turn video into tokens and back, with the parameter names of the published checkpoints.

comma's VQ-VAE (github.com/commaai/commavq, utils/vqvae.py) is VQGAN's (Esser et al. 2021, Taming Transformers): an
encoder and a decoder of residual blocks, with attention at the coarsest level. 1X's MAGVIT2 (Yu et al. 2024; Luo et al.
2024, Open-MAGVIT2) has residual blocks alone; its code is the bits of the id. Widths and depths are read off a
checkpoint's shapes, so nothing but the tensors is needed; loading is strict about every name and shape.

Letters in shapes: B frames, C channels, H x W of the map at hand, Z channels of a code, V ids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..runtime.errors import ModelError

GROUPS = 32
"""Of every normalisation."""
Tensors = Mapping[str, Tensor]


class ResidualBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm x))))), with a 1 x 1 convolution of x where the width changes."""

    def __init__(self, inside: int, outside: int, bias: bool = True):
        super().__init__()
        self.norm1, self.norm2 = _norm(inside), _norm(outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1, bias=bias)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=bias)
        if inside != outside:
            self.nin_shortcut = nn.Conv2d(inside, outside, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """One head over all places of a map."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2) for conv in (self.q, self.k, self.v))  # (B, C, H * W)
        weights = torch.softmax(q.transpose(1, 2) @ k * q.shape[1] ** -0.5, -1)  # (B, queries, keys)
        h = (v @ weights.transpose(1, 2)).reshape(x.shape)
        return x + self.proj_out(h)


class Middle(nn.Module):
    """What comma's coarsest level goes through."""

    def __init__(self, width: int):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = (
            ResidualBlock(width, width), Attention(width), ResidualBlock(width, width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Residual blocks of one resolution, each with attention behind it if `attends`; then the way to the next one."""

    def __init__(self, inside: int, width: int, blocks: int, attends: bool = False, bias: bool = True):
        super().__init__()
        self.block = nn.ModuleList([ResidualBlock(inside if j == 0 else width, width, bias) for j in range(blocks)])
        if attends:
            self.attn = nn.ModuleList([Attention(width) for _ in range(blocks)])

    def forward(self, x: Tensor) -> Tensor:
        for j, block in enumerate(self.block):
            x = block(x)
            if hasattr(self, "attn"):
                x = self.attn[j](x)
        for name in ("upsample", "downsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Upsample(nn.Module):
    """Twice the size: every place four times, then a convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Downsample(nn.Module):
    """Half the size: a convolution of stride 2, padded at the right and at the bottom alone."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class DepthToSpace(nn.Module):
    """Twice the size: a convolution to four times the width, whose quarters are the four places of each."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, 4 * width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = self.conv1(x).reshape(b, 2, 2, c, h, w)  # (B, row, column, C, H, W)
        return y.permute(0, 3, 4, 1, 5, 2).reshape(b, c, 2 * h, 2 * w)


class Codebook(nn.Module):
    """V codes of Z channels."""

    def __init__(self, vocabulary: int, channels: int):
        super().__init__()
        self._embedding = nn.Embedding(vocabulary, channels)

    def nearest(self, x: Tensor) -> Tensor:
        """(n, Z) -> ids (n,) of the nearest codes."""
        codes = self._embedding.weight
        distance = (x**2).sum(1, keepdim=True) + (codes**2).sum(1) - 2 * x @ codes.t()
        return distance.argmin(1)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, H, W) -> their codes (B, Z, H, W)."""
        return self._embedding(ids).permute(0, 3, 1, 2)


class CommaDecoder(nn.Module):
    """ids (B, H, W) -> RGB (B, 3, 16 H, 16 W) of about 0..255 (with comma's five levels)."""

    def __init__(self, tensors: Tensors):
        super().__init__()
        widths, blocks, attends = _levels(tensors, "up")
        vocabulary, z = _shape(tensors, "quantize._embedding.weight", 2)
        self.vocabulary = vocabulary
        self.post_quant_conv = nn.Conv2d(z, z, 1)
        self.quantize = Codebook(vocabulary, z)
        self.conv_in = nn.Conv2d(z, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level(widths[min(i + 1, len(widths) - 1)], width, blocks, attends[i])
            if i:
                level.upsample = Upsample(width)
            self.up.append(level)
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, encoding_indices: Tensor) -> Tensor:
        h = self.mid(self.conv_in(self.post_quant_conv(self.quantize(encoding_indices))))
        for level in self.up[::-1]:
            h = level(h)
        h = self.conv_out(functional.silu(self.norm_out(h)))
        return (h + 1) / 2 * 255


class CommaEncoder(nn.Module):
    """RGB (B, 3, 16 H, 16 W) of 0..255, not normalised -> ids (B, H, W)."""

    def __init__(self, tensors: Tensors):
        super().__init__()
        widths, blocks, attends = _levels(tensors, "down")
        vocabulary, z = _shape(tensors, "quantize._embedding.weight", 2)
        first = _shape(tensors, "conv_in.weight", 4)[0]
        self.vocabulary = vocabulary
        self.conv_in = nn.Conv2d(3, first, 3, padding=1)
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level(widths[i - 1] if i else first, width, blocks, attends[i])
            if i < len(widths) - 1:
                level.downsample = Downsample(width)
            self.down.append(level)
        self.mid = Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z, 3, padding=1)
        self.quant_conv = nn.Conv2d(z, z, 1)
        self.quantize = Codebook(vocabulary, z)

    def forward(self, big_img: Tensor) -> Tensor:
        h = self.conv_in(big_img)
        for level in self.down:
            h = level(h)
        h = self.quant_conv(self.conv_out(functional.silu(self.norm_out(self.mid(h)))))  # (B, Z, H, W)
        b, z, height, width = h.shape
        return self.quantize.nearest(h.permute(0, 2, 3, 1).reshape(-1, z)).reshape(b, height, width)


class Magvit2Decoder(nn.Module):
    """ids (B, H, W) -> RGB (B, 3, 16 H, 16 W) of about 0..255 (with 1X's five levels). Channel c of a code is bit c."""

    def __init__(self, tensors: Tensors):
        super().__init__()
        widths, blocks, _ = _levels(tensors, "up")
        self.bits = _shape(tensors, "conv_in.weight", 4)[1]
        if self.bits > 24:
            raise ModelError(f"MAGVIT2: expected codes of at most 24 bits, found {self.bits}")
        self.vocabulary = 1 << self.bits
        self.conv_in = nn.Conv2d(self.bits, widths[-1], 3, padding=1)
        self.mid_block = nn.ModuleList([ResidualBlock(widths[-1], widths[-1], False) for _ in range(blocks)])
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level(widths[min(i + 1, len(widths) - 1)], width, blocks, bias=False)
            if i:
                level.upsample = DepthToSpace(width)
            self.up.append(level)
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, ids: Tensor) -> Tensor:
        bits = ids[:, None] >> torch.arange(self.bits, device=ids.device)[:, None, None] & 1  # (B, bits, H, W)
        h = self.conv_in(bits.to(self.conv_in.weight.dtype) * 2 - 1)
        for block in self.mid_block:
            h = block(h)
        for level in self.up[::-1]:
            h = level(h)
        h = self.conv_out(functional.silu(self.norm_out(h)))
        return (h + 1) * 127.5


Network = CommaDecoder | CommaEncoder | Magvit2Decoder


def build(kind: type[Network], tensors: Tensors) -> Network:
    """The network whose parameters are `tensors`, all of them. Raises ModelError, naming what is missing or other."""
    with torch.device("meta"):
        network = kind(tensors)
    expected = network.state_dict()
    for what, names in (
        ("lacks", expected.keys() - tensors.keys()),
        ("has beside what is known", tensors.keys() - expected.keys()),
    ):
        if names:
            some = ", ".join(sorted(names)[:3])
            raise ModelError(f"the checkpoint {what} {len(names)} tensors, such as {some}; it is of another network")
    for name, value in expected.items():
        if tensors[name].shape != value.shape or not tensors[name].is_floating_point():
            found = f"{_words(tensors[name].shape)} of {str(tensors[name].dtype).removeprefix('torch.')}"
            raise ModelError(f"tensor {name}: expected the shape {_words(value.shape)} of floats, found {found}")
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return network.eval().requires_grad_(False)


def _norm(width: int) -> nn.GroupNorm:
    if width % GROUPS:
        raise ModelError(f"expected widths that are multiples of {GROUPS}, found {width}; it is of another network")
    return nn.GroupNorm(GROUPS, width, eps=1e-6)


def _levels(tensors: Tensors, side: str) -> tuple[list[int], int, list[bool]]:
    """(width of each level, blocks of a level, whether it attends), of "up" or "down". Raises ModelError."""
    found = [m for m in (re.match(rf"{side}\.(\d+)\.block\.(\d+)\.conv1\.weight$", name) for name in tensors) if m]
    levels = max((int(m[1]) for m in found), default=-1) + 1
    blocks = max((int(m[2]) for m in found), default=-1) + 1
    if not 1 <= levels <= 8 or not 1 <= blocks <= 16:
        raise ModelError(f"expected 1 to 8 levels of 1 to 16 blocks, found {levels} of {blocks}")
    widths = [_shape(tensors, f"{side}.{i}.block.0.conv1.weight", 4)[0] for i in range(levels)]
    return widths, blocks, [f"{side}.{i}.attn.0.norm.weight" in tensors for i in range(levels)]


def _shape(tensors: Tensors, name: str, dimensions: int) -> Sequence[int]:
    """A tensor's shape. Raises ModelError."""
    if name not in tensors:
        raise ModelError(f"the checkpoint has no tensor {name}; it is of another network")
    shape = tensors[name].shape
    if len(shape) != dimensions or min(shape) < 1:
        raise ModelError(f"tensor {name}: expected {dimensions} dimensions, found the shape {_words(shape)}")
    return shape


def _words(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "of a single number"
