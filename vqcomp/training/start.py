"""Starting from a model that there is: integer weights back into the float weights that they came from."""

from __future__ import annotations

import numpy as np
import torch

from ..runtime.engine import Tensors
from .model import FrameGPT
from .quantise import multiplier


@torch.no_grad()
def load_integers(model: FrameGPT, tensors: Tensors) -> None:
    """Set the weights to what the codes of a .vqm stand for; tensors as `read_model` gives them.

    Quantised again they are the same but where a row's step is rounded to a neighbouring one.
    """
    # In file order: what a code of `stack` stands for depends on `embed`, which comes before it.
    for name in model.config.tensor_shapes():
        codes, scales = (torch.from_numpy(np.array(a)) for a in tensors[name])
        weight = model.get_parameter(name)
        rows = codes.float().reshape(len(scales), -1) * multiplier(scales)[:, None]
        weight.copy_(rows.reshape(weight.shape) / model.unit(name))
        if model.learned_steps:
            deviation = codes.float().reshape(len(scales), -1).square().mean(1, keepdim=True).sqrt()
            model.get_parameter(f"steps.{name}").copy_(deviation.clamp_min(2.0**-4).log2())
