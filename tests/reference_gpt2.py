"""External networks, and the streams that they code: written from FORMAT.md, section 11, alone.

It knows nothing of vqcomp; the other sections are those of reference_decoder.py. NumPy adds up integers, and rounds
single operations on float32 as IEEE 754 has it. It is slow, and takes every window from its beginning for each token.
"""

from __future__ import annotations

import math
import zlib
from decimal import Decimal, localcontext
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from reference_decoder import FactorModel, RangeDecoder, Tree, alphabet, frequencies

F = np.float32
LOG2_E = 1.4426950408889634


def nearest(x: Decimal) -> int:
    return int((x + Decimal("0.5")).to_integral_value(rounding="ROUND_FLOOR"))


@lru_cache
def powers() -> np.ndarray:
    with localcontext() as context:
        context.prec = 40
        return np.array([nearest(Decimal(2) ** (12 - Decimal(i) / 1024)) for i in range(13313)] + [0], F)


@lru_cache
def gelu(i: int) -> int:
    with localcontext() as context:
        context.prec = 40
        y = Decimal(i) / 4096
        pi = Decimal("3.14159265358979323846264338327950288419717")
        g = y / (1 + (-(8 / pi).sqrt() * (y + Decimal("0.044715") * y**3)).exp())
        return nearest(2**14 * (g - y))


def within(x: np.ndarray, bound: int) -> np.ndarray:
    return np.clip(x, F(-bound), F(bound))


class Reference:
    def __init__(self, table: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        """The description, and the float tensors of the file of weights."""
        self.t, self.w = table, tensors
        self.parts = table["weight_bits"] // 7, table["activation_bits"] // 8 + (table["activation_bits"] == 15)
        self.tops = {1: 63, 2: 8127}[self.parts[0]], {1: 127, 2: 16319}[self.parts[1]]
        self.size = table["vocab_size"] - 1
        self.positions = table["height"] * table["width"]
        self.window = table["n_positions"] // (1 + self.positions)
        self.matrices: dict[str, Any] = {}

    def codes(self, x: np.ndarray, top: int) -> tuple[np.ndarray, F]:
        m = max(np.abs(x).max(), F(1))
        return np.rint(x * (F(top) / m)).astype(np.int64), m

    def split(self, c: np.ndarray, parts: int) -> list[np.ndarray]:
        high = (c + 64) // 128
        return [c] if parts == 1 else [high, c - 128 * high]

    def put_together(self, sums: list[Any]) -> Any:
        return sums[0] if len(sums) == 1 else sums[0] * F(128) + sums[1]

    def matrix(self, name: str, u: float) -> Any:
        """(parts, each output's m k, bias), of rows of outputs."""
        if name not in self.matrices:
            w = self.w[f"{name}.weight"] if name == "lm_head" else self.w[f"{name}.weight"].T
            w, bias = (w[:-1], None) if name == "lm_head" else (w, self.w[f"{name}.bias"])
            m = np.abs(w).max(1)
            with np.errstate(over="ignore"):
                f = F(self.tops[0]) / np.where(m > 0, m, F(1))
            f = np.where(np.isinf(f), F(0), f)
            c = np.clip(np.rint(w * f[:, None]), -self.tops[0], self.tops[0]).astype(np.int64)
            scale = m * F(u / (self.tops[0] * self.tops[1] * 2.0**14))
            b = F(0) if bias is None else within(np.rint(bias * F(u)), 2**23)
            self.matrices[name] = self.split(c, self.parts[0]), scale, b
        return self.matrices[name]

    def linear(self, x: np.ndarray, name: str, u: float) -> np.ndarray:
        parts, scale, bias = self.matrix(name, u)
        c, m = self.codes(x, self.tops[1])
        rows = []
        for a in self.split(c, self.parts[1]):
            sums = []
            for w in parts:
                total = F(0)
                for k in range(0, len(x), 2048):
                    total = total + (w[:, k : k + 2048] @ a[k : k + 2048]).astype(F)
                sums.append(total)
            rows.append(self.put_together(sums))
        y = self.put_together(rows)
        return within(np.rint((y * scale) * m), 2**23) + bias

    def norm(self, h: np.ndarray, name: str) -> np.ndarray:
        d, whole = len(h), [int(x) for x in h]
        mean = (2 * sum(whole) + d) // (2 * d)
        x = [a - mean for a in whole]
        q = sum(a * a for a in x) + round(d * self.t["layer_norm_epsilon"] * 2**24)
        length = F(math.isqrt(q << 20)) * F(2.0**-10) if q < 1 << 42 else F(math.isqrt(q))
        y = np.rint(np.array(x, F) * (F(math.isqrt(d << 28)) / max(length, F(2.0**-10))))
        y = within(np.rint(y * self.w[f"{name}.weight"]), 2**23)
        return y + within(np.rint(self.w[f"{name}.bias"] * F(2**14)), 2**23)

    def attention(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        """Queries, keys and values of all ids so far -> what each of them gets."""
        d, heads = self.t["n_embd"], self.t["n_head"]
        e = d // heads
        top = math.isqrt((2**24 - 1) // e)
        kappa = F(1024 * LOG2_E / (top**2 * math.sqrt(e) * 2.0**28))
        out = [np.empty(d, F) for _ in rows]
        for head in range(heads):
            part = slice(head * e, (head + 1) * e)
            coded = []
            for row in rows:
                q, k, v = (row[i * d : (i + 1) * d][part] for i in range(3))
                coded.append((self.codes(q, top), self.codes(k, top), self.codes(v, self.tops[1])))
            for i, ((q, m_q), _, _) in enumerate(coded):
                z = [np.rint((F(int(q @ k)) * (m_q * kappa)) * m_k) for _, (k, m_k), _ in coded[: i + 1]]
                w = [powers()[int(min(max(z) - x, F(13313)))] for x in z]
                most = max(m_v for _, _, (_, m_v) in coded[: i + 1])
                shared = [np.rint((a * m_v) * (F(1) / most)) for a, (_, _, (_, m_v)) in zip(w, coded)]
                s = max(F(sum(map(int, shared))), F(1))
                shares = [int(np.rint(a * (F(2**16) / s))) for a in shared]
                sums = []
                for n in range(self.parts[1]):
                    values = [self.split(v, self.parts[1])[n] for _, _, (v, _) in coded[: i + 1]]
                    sums.append(sum(a * v for a, v in zip(shares, values)).astype(F))
                o = self.put_together(sums) * (s / F(sum(map(int, w))))
                out[i][part] = within(np.rint((o * most) * F(1 / (self.tops[1] << 16))), 2**23)
        return out

    def activate(self, x: np.ndarray) -> np.ndarray:
        index = np.minimum(np.rint(np.abs(x) * F(0.25)), F(32768))
        return np.maximum(x, F(0)) + np.array([gelu(int(i)) for i in index], F)

    def logits(self, ids: list[int]) -> list[list[int]]:
        """Of each id."""
        residual = 2**24 - 1
        place, token = (within(np.rint(self.w[f"transformer.{n}.weight"] * F(4096)), 2**23 - 1) for n in ("wpe", "wte"))
        h = [token[i] + place[p] for p, i in enumerate(ids)]
        for layer in range(self.t["n_layer"]):
            at = f"transformer.h.{layer}"
            mixed = self.attention([self.linear(self.norm(x, f"{at}.ln_1"), f"{at}.attn.c_attn", 2.0**14) for x in h])
            h = [within(x + self.linear(y, f"{at}.attn.c_proj", 2.0**12), residual) for x, y in zip(h, mixed)]
            inside = [self.linear(self.norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc", 2.0**14) for x in h]
            h = [
                within(x + self.linear(self.activate(y), f"{at}.mlp.c_proj", 2.0**12), residual)
                for x, y in zip(h, inside)
            ]
        return [[int(x) for x in self.linear(self.norm(x, "transformer.ln_f"), "lm_head", 64 * LOG2_E)] for x in h]

    def next(self, frames: list[list[int]], tokens: list[int]) -> list[int]:
        """Weights of the token after `tokens` of the frame after `frames`."""
        first, end = 0, self.window
        while len(frames) >= end:
            first = end - self.t["keep"]
            end = first + self.window
        ids = [i for frame in frames[first:] for i in (self.size, *frame)] + [self.size, *tokens]
        return frequencies(self.logits(ids)[-1])

    def self_test(self) -> int:
        ids, x = [], 1
        for _ in range(min(26, self.t["n_positions"])):
            x = (1103515245 * x + 12345) % 2**31
            ids.append(x // 256 % (self.size + 1))
        rows = [frequencies(row) + [0] * (-self.size % 32) for row in self.logits(ids)]
        return zlib.crc32(np.array(rows, "<i4").tobytes())

    def embeddings(self) -> list[list[int]]:
        """c, and a row for no token."""
        e = within(np.rint(self.w["transformer.wte.weight"] * F(4096)), 2**23 - 1)[: self.size]
        s = [[sum(int(x) for x in row[d::64]) for d in range(min(len(row), 64))] for row in e]
        factor = 127 / max(1, *(abs(x) for row in s for x in row))
        return [[round(x * factor) for x in row] for row in s] + [[0] * len(s[0])]


def decode(reference: Reference, codec: str, stream: bytes, lengths: list[int]) -> list[list[list[int]]]:
    """A group's tokens, frame by frame. AssertionError for a stream that is uniform."""
    coder = RangeDecoder(np.frombuffer(stream, "<u4").tolist())
    assert not coder.bit(1)
    if codec == "token":
        return [decode_token(reference, coder, lengths[0])]
    return decode_mixed(reference, coder, lengths)


def decode_token(reference: Reference, coder: RangeDecoder, length: int) -> list[list[int]]:
    frames: list[list[int]] = []
    for _ in range(length):
        tokens: list[int] = []
        for _ in range(reference.positions):
            weights = reference.next(frames, tokens)
            groups = [weights[i : i + 32] for i in range(0, len(weights), 32)]
            group = coder.symbol(alphabet([sum(g) for g in groups])) if len(groups) > 1 else 0
            tokens.append(32 * group + coder.symbol(alphabet(groups[group] + [0] * (32 - len(groups[group])))))
        frames.append(tokens)
    return frames


def decode_mixed(reference: Reference, coder: RangeDecoder, lengths: list[int]) -> list[list[list[int]]]:
    table = reference.t
    spec = {"height": table["height"], "width": table["width"], "factors": [reference.size]}
    known: Any = SimpleNamespace(tensors={"embed.0": SimpleNamespace(rows=reference.embeddings())})
    model = FactorModel(spec, 0, known)
    segments: list[list[list[int]]] = [[] for _ in lengths]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for t in range(max(lengths)):
        order = [i for i in order if lengths[i] > t]
        frames: list[list[int]] = [[] for _ in order]
        past = [[[[token] for token in frame] for frame in segments[i]] for i in order]
        model.begin(past, [[] for _ in range(len(order) * reference.positions)], [])
        for s in range(reference.positions):
            nodes = [1 for _ in order]
            places = [g * reference.positions + s for g in range(len(order))]
            for p, i, frame in zip(places, order, frames):
                model.places[p]["trees"].append(Tree(reference.next(segments[i], frame), model.levels))
            for level in range(model.levels):
                nodes = [
                    2 * node + coder.bit(model.predict(p, level, node)) for p, node in zip(places, nodes, strict=True)
                ]
            for frame, node in zip(frames, nodes):
                frame.append(node - 2**model.levels)
        model.learn([token for frame in frames for token in frame])
        for i, frame in zip(order, frames):
            segments[i].append(frame)
    return segments
