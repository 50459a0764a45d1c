"""The card of a model: what it is, what it was trained on, how well it predicts, and the command that made it."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence

import torch

from ..runtime.config import ModelConfig
from .config import TrainConfig
from .evaluation import count_frames, evaluate
from .result import TrainResult


def describe(
    name: str, data: bytes, result: TrainResult, config: TrainConfig, segments: Sequence[str], command: str
) -> str:
    """The card of a .vqm of these bytes, in Markdown.

    segments: the names of what it was trained on. command: what made it, "" if that was no command.
    """
    n, feed = result.model.config, result.feed
    s = "s" if feed.segments != 1 else ""
    names = ", ".join(f"`{name}`" for name in segments[:3]) + (", ..." if len(segments) > 3 else "")
    rows = [
        ("weights", f"{n.parameters():,}"),
        ("file", f"{len(data):,} bytes, {8 * len(data) / n.parameters():.2f} bits a weight, everything counted"),
        ("sha256", f"`{hashlib.sha256(data).hexdigest()}`"),
        ("network", _network(n)),
        (
            "trained on",
            f"{feed.trained_frames:,} of {feed.frames:,} frames of {feed.segments:,} segment{s} ({names}): "
            f"{feed.trained_frames * n.positions:,} tokens",
        ),
        ("chosen by", _chosen_by(result, config)),
        (
            f"{'held-out frames, given their past' if feed.held_out else 'in training'}",
            f"{result.bits_per_token:.4f} bits/token" + _in_float(result, config),
        ),
    ]
    last = result.rows[-1]
    served = config.for_segments or feed.segments
    together = len(data) + round(result.bits_per_token * served * feed.segment_tokens / 8)
    rows.append(("weights and coded tokens", f"about {together:,} bytes for {served:,.0f} such segments"))
    made_on = f"torch {torch.__version__} on {platform.machine()}, {torch.get_num_threads()} threads"
    table = "\n".join(f"| {key} | {value} |" for key, value in rows)
    grid = f"{n.height} x {n.width} ids of {' x '.join(f'{size:,}' for size in n.factors)}"
    return f"""# {name}

A FrameGPT for frames of {grid}. vqcomp's FORMAT.md says what the file holds.

| | |
|---|---|
{table}

    {command or "from Python: vqcomp.api.train"}

with {made_on}: {last.seconds / 60:.1f} minutes, best at step {result.step} of {last.step}. Training
is float arithmetic, so another machine or number of threads gives other weights, about as good. All settings:

```json
{json.dumps(config.to_dict(), indent=1)}
```
"""


def _network(n: ModelConfig) -> str:
    return (
        f"{n.blocks} blocks, dim {n.dim}, {n.spatial_heads} spatial and {n.temporal_heads} temporal heads of "
        f"{n.head_dim}, MLP {n.hidden}, rank {n.rank}, window {n.window}, stack {n.stack}, {len(n.flags)} flags, "
        f"{len(n.copies)} copies" + (", sees known tokens of the predicted frame" if n.within_frame else "")
    )


def _chosen_by(result: TrainResult, config: TrainConfig) -> str:
    if not result.feed.held_out:
        return "nothing: the last weights"
    what = f"the last {config.held_out:,} frames"
    if config.every > 1:
        what += f" (every {config.every}th)"
    whole = f"{result.feed.whole} whole segments" if result.feed.whole else "every segment"
    what += f" of {whole}, which it was not trained on"
    every, looked = sum(min(config.held_out, len(s)) for s in result.feed.held_out), count_frames(result.spans)
    return what if looked == every else f"{looked:,} of {every:,} frames: {what}"


def _in_float(result: TrainResult, config: TrainConfig) -> str:
    """What the held-out frames take without any rounding; not where it would take time that is not given."""
    if not result.spans or config.time:
        return ""
    model = result.model
    model.quantised = False
    bits = evaluate(model, result.spans)
    model.quantised = True
    return f"; the same weights in float {bits:.4f}"
