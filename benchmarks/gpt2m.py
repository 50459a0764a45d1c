"""A small network of gpt2m's family: bits per token in float, exactly and with learning on top, and speed.

    vqcomp sample-data drawn --from commavq-nano --segments 16 --frames 1000
    python benchmarks/gpt2m.py --drawn drawn [--minutes M] [--layers N] [--dim D] [--window W] [--folder DIR]

Trains on frames 0..749 of the example and on segments drawn from a network that has not seen the last 300 frames
either; frames 750..899 choose the weights; frames 900..1199 are measured. (Synthetic tokens where there is no example.)
DIR gets the checkpoint; one that is there is measured and not trained again. Uses one thread; minutes and speeds are of
its processor's time.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import example, synthetic

from vqcomp.runtime.codec import Codec
from vqcomp.runtime.exact import NumpyOps, TorchOps, make_ops
from vqcomp.runtime.spec import TokenSpec
from vqcomp.runtime.token_codec import TokenCodec
from vqcomp.runtime.token_config import Precision, TokenConfig
from vqcomp.runtime.token_engine import TokenGPT
from vqcomp.runtime.token_mixed import TokenMixedCodec
from vqcomp.runtime.token_weights import Load, find_weights, open_weights, read_config
from vqcomp.runtime.token_windows import TokenWindows
from vqcomp.training.gpt2 import GPT2
from vqcomp.training.optim import Muon

SPEC = TokenSpec(8, 16, (1024,))
TRAINED, CHOSEN, BATCH = 750, 900, 4
"""Frames to train on; the end of those that choose the weights; windows in a step."""
REAL, HIDDEN, DROPOUT = 0.3, 0.08, 0.1
"""Share of windows that are real, of ids that are hidden, of residual updates that are dropped."""


def ids_of(frames: np.ndarray, bos: int) -> np.ndarray:
    """(T, S) -> (T * (1 + S),)"""
    return np.concatenate([np.full_like(frames[:, :1], bos), frames], 1).reshape(-1)


class Tied(GPT2):
    """A GPT2 that learns more from little: its head is its embedding, and a position's embedding is the sum of its
    place's and its frame's. Places start as waves, so that a linear map turns one into its neighbour's.
    """

    def __init__(self, config: TokenConfig, dropout: float) -> None:
        super().__init__(config, dropout)
        self.lm_head.weight = self.transformer["wte"].weight
        del self.transformer["wpe"]
        steps = SPEC.positions + 1
        angles = 2 * math.pi / steps * torch.arange(1, config.dim // 2, 2) * torch.arange(steps)[:, None]
        waves = torch.cat([angles.cos(), angles.sin()], 1)  # (places, about D / 2)
        self.place = torch.nn.Parameter(0.1 * torch.nn.functional.pad(waves, (0, config.dim - waves.shape[1])))
        self.frame = torch.nn.Parameter(0.05 * torch.randn(config.frames(SPEC), config.dim))
        torch.nn.init.normal_(self.transformer["wte"].weight, std=0.05)

    def positions(self) -> torch.Tensor:
        """What a plain GPT2 has as wpe."""
        return (self.frame[:, None] + self.place).flatten(0, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.transformer["wte"](ids) + self.positions()[: ids.shape[1]]
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))

    def plain(self) -> GPT2:
        """The same network without ties."""
        model = GPT2(self.config).eval()
        state = {name: x for name, x in self.state_dict().items() if name in model.state_dict()}
        model.load_state_dict(state | {"transformer.wpe.weight": self.positions().detach()})
        return model


def loss_of(model: GPT2, frames: np.ndarray) -> torch.Tensor:
    """Nats per token of windows (B, W, S); some of the ids that the network sees are hidden."""
    bos = model.config.bos
    ids = torch.from_numpy(np.stack([ids_of(window, bos) for window in frames])).long()
    seen = torch.where(torch.rand(ids.shape) < HIDDEN, bos, ids)
    logits = model(seen).reshape(*frames.shape[:2], -1, bos + 1)[:, :, :-1, :bos]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 2), torch.from_numpy(frames).long().flatten())


def train(config: TokenConfig, real: np.ndarray, drawn: Sequence[np.ndarray], seconds: float) -> GPT2:
    """A network after so many seconds: on the first frames of `real` (T, S), chosen by the rest, and on drawn ones."""
    torch.manual_seed(0)
    random = np.random.RandomState(0)
    model = Tied(config, DROPOUT)
    average = copy.deepcopy(model).eval()
    matrices = [p for n, p in model.named_parameters() if ".h." in n and p.ndim > 1]
    embeddings = [p for n, p in model.named_parameters() if ".h." not in n and p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": embeddings, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizers = [(torch.optim.AdamW(groups, betas=(0.9, 0.95)), 0.01), (Muon(matrices, 0.0, 0.1), 0.015)]
    window, start, step, best = config.frames(SPEC), time.process_time(), 0, (math.inf, 0, average.plain())
    looks = iter(np.linspace(0.05, 1, 20))
    look = next(looks)
    while (share := (time.process_time() - start) / seconds) < 1:
        rate = min(1, (step + 1) / 50, 1.1 * (1 - share))
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
        sources = [drawn[random.randint(len(drawn))] if drawn and random.rand() > REAL else real[:TRAINED]
                   for _ in range(BATCH)]  # fmt: skip
        starts = [random.randint(len(source) - window + 1) for source in sources]
        loss = loss_of(model, np.stack([source[i : i + window] for source, i in zip(sources, starts, strict=True)]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        with torch.no_grad():
            for mean, now in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(now, max(0.01, 1 / step))
        if share >= look:
            look = next(looks, 2.0)
            bits = float_bits(average.plain(), real[TRAINED:], window // 2)
            best = min(best, (bits, step, average.plain()), key=lambda item: item[0])
            print(f"step {step}, {100 * share:.0f} %: {loss.item() / math.log(2):.3f} bits/token in training, "
                  f"{bits:.4f} on frames {TRAINED}..{len(real) - 1}", flush=True)  # fmt: skip
    print(f"trained for {step} steps, {step * BATCH * window * SPEC.positions:,} tokens, {seconds:.0f} s; "
          f"best after step {best[1]}: {best[0]:.4f}")  # fmt: skip
    return best[2]


def float_bits(model: GPT2, frames: np.ndarray, keep: int) -> float:
    """Bits per token of frames (T, S) as TokenCodec would code them, of the true probabilities of the 1024 ids."""
    window, t, nats = model.config.frames(SPEC), 0, 0.0
    while t < len(frames):
        first = max(0, t - keep)
        shown = frames[first : first + window]
        ids = torch.from_numpy(ids_of(shown, model.config.bos)).long()[None]
        with torch.no_grad():
            logits = model(ids)[0, :, : model.config.bos].reshape(len(shown), -1, model.config.bos)[:, :-1]
        new = torch.from_numpy(shown[t - first :]).long()
        nats += torch.nn.functional.cross_entropy(
            logits[t - first :].flatten(0, 1), new.flatten(), reduction="sum"
        ).item()
        t = first + len(shown)
    return nats / math.log(2) / frames.size


def exact_bits(codec: Codec, frames: np.ndarray) -> tuple[float, float]:
    """(bits per token of the stream, tokens per second of encoding)."""
    start = time.process_time()
    (stream,) = codec.encode([[frames[:, :, None]]])
    return 8 * len(stream) / frames.size, frames.size / (time.process_time() - start)


def decoding(codec: TokenCodec, frames: np.ndarray) -> Iterator[tuple[int, float]]:
    """(segments side by side, tokens per second of decoding two frames of each)."""
    for batch in (1, 8, 64):
        groups = [[frames[i : i + 2, :, None]] for i in range(batch)]
        streams = codec.encode(groups)
        start = time.process_time()
        decoded = codec.decode(streams, [[2]] * batch)
        seconds = time.process_time() - start
        assert all((a[0] == b[0]).all() for a, b in zip(decoded, groups, strict=True))
        yield batch, 2 * batch * SPEC.positions / seconds


class Timed:
    """Operations that add up the seconds of processing that matrix products take."""

    def __init__(self, ops: NumpyOps | TorchOps) -> None:
        self._ops, self.seconds = ops, 0.0

    def __getattr__(self, name: str) -> Any:
        made = getattr(self._ops, name)
        if name not in ("linear", "bmm"):
            return made

        def timed(*arguments: Any) -> Any:
            start = time.process_time()
            result = made(*arguments)
            self.seconds += time.process_time() - start
            return result

        return timed


def get_checkpoint(
    folder: Path, config: TokenConfig, real: np.ndarray, drawn: Sequence[np.ndarray], minutes: float
) -> tuple[TokenConfig, Load]:
    """The shape and the weights of the checkpoint in `folder`; trained first if there is none."""
    if not (folder / "pytorch_model.bin").exists():
        folder.mkdir(parents=True, exist_ok=True)
        model = train(config, real, drawn, 60 * minutes)
        shape = {"n_layer": config.layers, "n_head": config.heads, "n_embd": config.dim,
                 "n_positions": config.positions, "vocab_size": config.vocabulary}  # fmt: skip
        (folder / "config.json").write_text(json.dumps(shape))
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    config = read_config(folder)
    return config, open_weights(find_weights(folder), config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--window", type=int, default=4, help="frames that the network sees")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--drawn", type=Path, help="a folder of segments to train on, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    real = example()
    data = (synthetic(1200, 0) if real is None else real).reshape(1200, -1).astype(np.int32)
    positions = arguments.window * (SPEC.positions + 1)
    config = TokenConfig(
        arguments.layers, arguments.dim // 32, arguments.dim, positions=positions, hidden=4 * arguments.dim
    )
    with tempfile.TemporaryDirectory() as temporary:
        drawn = (
            [
                np.load(path).reshape(-1, SPEC.positions).astype(np.int32)
                for path in sorted(arguments.drawn.glob("*.npy"))
            ]
            if arguments.drawn
            else []
        )
        config, load = get_checkpoint(
            arguments.folder or Path(temporary), config, data[:CHOSEN], drawn, arguments.minutes
        )
        model = GPT2(config).eval()
        model.load_state_dict({name: torch.from_numpy(load(name)) for name in config.tensor_shapes()})
        print(
            f"{config.layers} layers, width {config.dim}, {config.parameters():,} weights, "
            f"{config.frames(SPEC)} frames; {'synthetic tokens' if real is None else 'the example'}"
        )
        new = data[-min(arguments.frames, 1200 - CHOSEN) :]
        measure(model, load, new, f"last {len(new)} frames, new")


def measure(model: GPT2, load: Load, frames: np.ndarray, label: str) -> None:
    """Print bits per token and speed on frames (T, S)."""
    config, ops = model.config, Timed(make_ops("cpu", 1))
    window = config.frames(SPEC)
    print(label)
    for keep in range(window):
        print(f"  float, {keep} frames kept: {float_bits(model, frames, keep):.4f} bits/token", flush=True)
    for precision in (Precision(w, a) for w in (1, 2) for a in (1, 2)):
        windows = TokenWindows(TokenGPT(config, load, ops, precision), SPEC, window // 2)  # type: ignore[arg-type]
        ops.seconds, start = 0.0, time.process_time()
        bits, speed = exact_bits(TokenCodec(windows), frames)
        share = ops.seconds / (time.process_time() - start)
        mixed, slower = exact_bits(TokenMixedCodec(windows), frames)
        name = f"exact, weights of {7 * precision.weights} bits, activations of {7 * precision.activations + 1}"
        # Tokens that the network does not predict are coded uniformly, and then it does not run.
        rates = decoding(TokenCodec(windows), frames) if bits < SPEC.bits else ()
        speeds = ", ".join(f"{rate:,.0f} ({batch})" for batch, rate in rates)
        print(
            f"  {name}: {bits:.4f} bits/token, with learning {mixed:.4f}; tokens/s: encoding {speed:,.0f} "
            f"({100 * share:.0f} % of it products), with learning {slower:,.0f}, decoding {speeds or None}",
            flush=True,
        )
    for keep in range(window):
        windows = TokenWindows(windows.engine, SPEC, keep)
        bits, speed = exact_bits(TokenCodec(windows), frames)
        print(f"  {name}, {keep} frames kept: {bits:.4f} bits/token, encoding {speed:,.0f} tokens/s", flush=True)


if __name__ == "__main__":
    main()
