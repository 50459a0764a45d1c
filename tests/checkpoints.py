"""Checkpoints of the very layout of comma's and 1X's, but small; and where the real ones are, if they are here.

Names and shapes are written out here once more, by the architectures' descriptions, so that the networks are held
against something.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

REAL = {
    "decoder": ("VQCOMP_COMMA_DECODER", "VQCOMP_COMMA_DECODER_ONNX"),
    "encoder": ("VQCOMP_COMMA_ENCODER", "VQCOMP_COMMA_ENCODER_ONNX"),
    "magvit2": ("VQCOMP_MAGVIT2",),
}
"""Environment variables that name the published files; tests that need them run where they are set."""


def real(kind: str) -> list[str]:
    return [os.environ[name] for name in REAL[kind] if os.environ.get(name)]


class Layout:
    """Random tensors by name."""

    def __init__(self, seed: int = 0) -> None:
        self.random, self.tensors = torch.Generator().manual_seed(seed), {}

    def norm(self, name: str, width: int) -> None:
        self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"] = torch.ones(width), torch.zeros(width)

    def conv(self, name: str, inside: int, outside: int, side: int, bias: bool = True) -> None:
        weight = torch.randn(outside, inside, side, side, generator=self.random)
        self.tensors[f"{name}.weight"] = weight * (inside * side * side) ** -0.5
        if bias:
            self.tensors[f"{name}.bias"] = torch.randn(outside, generator=self.random) * 0.1

    def block(self, name: str, inside: int, outside: int, bias: bool = True) -> None:
        self.norm(f"{name}.norm1", inside)
        self.conv(f"{name}.conv1", inside, outside, 3, bias)
        self.norm(f"{name}.norm2", outside)
        self.conv(f"{name}.conv2", outside, outside, 3, bias)
        if inside != outside:
            self.conv(f"{name}.nin_shortcut", inside, outside, 1, bias)

    def attention(self, name: str, width: int) -> None:
        self.norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            self.conv(f"{name}.{part}", width, width, 1)

    def middle(self, width: int) -> None:
        self.block("mid.block_1", width, width)
        self.attention("mid.attn_1", width)
        self.block("mid.block_2", width, width)


WIDTHS, Z, VOCABULARY = (32, 32, 32, 32, 64), 8, 64


def comma_decoder(widths=WIDTHS, blocks: int = 1, z: int = Z, vocabulary: int = VOCABULARY) -> dict:
    made = Layout(1)
    made.conv("post_quant_conv", z, z, 1)
    made.tensors["quantize._embedding.weight"] = torch.randn(vocabulary, z, generator=made.random)
    made.conv("conv_in", z, widths[-1], 3)
    made.middle(widths[-1])
    width = widths[-1]
    for i in reversed(range(len(widths))):
        for j in range(blocks):
            made.block(f"up.{i}.block.{j}", width, widths[i])
            width = widths[i]
            if i == len(widths) - 1:
                made.attention(f"up.{i}.attn.{j}", width)
        if i:
            made.conv(f"up.{i}.upsample.conv", width, width, 3)
    made.norm("norm_out", width)
    made.conv("conv_out", width, 3, 3)
    return made.tensors


def comma_encoder(widths=WIDTHS, blocks: int = 1, z: int = Z, vocabulary: int = VOCABULARY) -> dict:
    made = Layout(2)
    made.conv("conv_in", 3, widths[0], 3)
    width = widths[0]
    for i in range(len(widths)):
        for j in range(blocks):
            made.block(f"down.{i}.block.{j}", width, widths[i])
            width = widths[i]
            if i == len(widths) - 1:
                made.attention(f"down.{i}.attn.{j}", width)
        if i < len(widths) - 1:
            made.conv(f"down.{i}.downsample.conv", width, width, 3)
    made.middle(width)
    made.norm("norm_out", width)
    made.conv("conv_out", width, z, 3)
    made.conv("quant_conv", z, z, 1)
    made.tensors["quantize._embedding.weight"] = torch.randn(vocabulary, z, generator=made.random)
    return made.tensors


def magvit2(widths=WIDTHS, blocks: int = 1, bits: int = 6) -> dict:
    made = Layout(3)
    made.conv("conv_in", bits, widths[-1], 3)
    for j in range(blocks):
        made.block(f"mid_block.{j}", widths[-1], widths[-1], False)
    width = widths[-1]
    for i in reversed(range(len(widths))):
        for j in range(blocks):
            made.block(f"up.{i}.block.{j}", width, widths[i], False)
            width = widths[i]
        if i:
            made.conv(f"up.{i}.upsample.conv1", width, 4 * width, 3)
    made.norm("norm_out", width)
    made.conv("conv_out", width, 3, 3)
    whole = {f"decoder.{name}": tensor for name, tensor in made.tensors.items()}
    # What lies beside it in a training's checkpoint.
    whole["encoder.conv_in.weight"] = torch.zeros(32, 3, 3, 3)
    whole["model_ema.decay"] = torch.zeros(())
    whole["loss.logvar"] = torch.zeros(())
    return {"state_dict": whole, "epoch": 3}


def export(network, example, path: Path, names: tuple[str, str]) -> Path:
    """As ONNX, with a free batch size."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (example,), str(path), input_names=names[:1], output_names=names[1:], dynamo=False,
            dynamic_axes={name: {0: "b"} for name in names},
        )  # fmt: skip
    return path
