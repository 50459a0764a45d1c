"""Small networks of the GPT-2 family, as files that are read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from vqcomp.runtime.spec import TokenSpec
from vqcomp.runtime.token_config import TokenConfig
from vqcomp.training.gpt2 import GPT2

SPEC = TokenSpec(3, 4, (70,))
CONFIG = TokenConfig(layers=2, heads=4, dim=64, positions=6 * 13, vocabulary=71, hidden=256)
CONFIG_JSON = {"n_layer": 2, "n_head": 4, "n_embd": 64, "n_positions": 78, "vocab_size": 71, "n_inner": None}


def network(config=CONFIG, spread=0.15):
    """A float network whose logits spread by about two bits, as a trained one's do."""
    random = torch.Generator().manual_seed(0)
    model = GPT2(config).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            center = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
            weights.copy_(center + spread * torch.randn(weights.shape, generator=random))
    return model


def arrays(model):
    return {name: x.numpy() for name, x in model.state_dict().items()}


def save(folder: Path, tensors, config=CONFIG_JSON):
    """As torch.save writes it."""
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(tensors, folder / "pytorch_model.bin")


def safetensors(tensors, dtype="F32", code=lambda x: x.astype("<f4").tobytes()):
    """A file of them, written from its description."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, x in tensors.items():
        piece = code(x)
        header[name] = {"dtype": dtype, "shape": x.shape, "data_offsets": [len(data), len(data) + len(piece)]}
        data += piece
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def segment(frames, seed=0):
    """Every frame is nearly the one before."""
    random = np.random.RandomState(seed)
    tokens = np.repeat(random.randint(0, 70, (1, 12, 1)), frames, 0)
    change = random.rand(*tokens.shape) < 0.1
    return np.where(change, random.randint(0, 70, tokens.shape), tokens).astype(np.int32)
