"""A decoder of archives that was written from vqcomp/FORMAT.md alone, in plain Python: slow, and short.

It shares no code with vqcomp and no library but the standard one, so where both agree, the text is what the code does.
Section numbers are those of FORMAT.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any

Frame = list[list[int]]
"""Of each position, its factors."""
Vector = list[int]
Matrix = list[Vector]

MASK = 2**32 - 1


def clip(a: int, b: int) -> int:
    return min(max(a, -b), b)


def dot(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(map(mul, a, b))


# Sections 2 and 3: archive and manifest.


def decode_archive(path: Path) -> dict[str, list[int]]:
    """The ids of every segment, frame by frame and row by row. AssertionError where a check fails."""
    with zipfile.ZipFile(path) as archive:
        data, streams = archive.read("vqcomp/manifest.json"), archive.read("vqcomp/streams.bin")
        manifest = json.loads(data)
        assert manifest["format"] == 2
        body = data[: data.rindex(b',"check"')]
        assert hashlib.sha256(body).hexdigest() == manifest["check"]
        model = None
        if manifest["model"] is not None:
            model = archive.read("vqcomp/model.vqm")
            assert len(model) == manifest["model"]["bytes"]
            assert hashlib.sha256(model).hexdigest() == manifest["model"]["sha256"]
    names, groups = manifest["segments"]["name"], manifest["groups"]

    def column(table: dict[str, Any], key: str, count: int) -> list[Any]:
        return table[key] if isinstance(table[key], list) else [table[key]["all"]] * count

    shapes = column(manifest["segments"], "shape", len(names))
    crcs = column(manifest["segments"], "crc32", len(names))
    network = Network(model) if model else None
    found: dict[str, list[int]] = {}
    whole, offset = hashlib.sha256(), 0
    for spec_index, count, size, crc in zip(
        *(column(groups, key, groups["count"]) for key in ("spec", "segments", "bytes", "crc32"))
    ):
        spec, stream = manifest["specs"][spec_index], streams[offset : offset + size]
        offset += size
        assert zlib.crc32(stream) == crc
        coder = RangeDecoder(struct.unpack(f"<{size // 4}I", stream))
        first = len(found)
        lengths = [shape[0] for shape in shapes[first : first + count]]
        segments = decode_group(coder, spec, lengths, network)
        for i, frames in enumerate(segments, first):
            tokens = [f for frame in frames for token in frame for f in token]
            token_bytes = struct.pack(f"<{len(tokens)}i", *tokens)
            assert zlib.crc32(token_bytes) == crcs[i]
            whole.update(token_bytes)
            found[names[i]] = [token_id(token, spec["factors"]) for frame in frames for token in frame]
    assert whole.hexdigest() == manifest["sha256"] and offset == len(streams)
    return found


def decode_group(
    coder: RangeDecoder, spec: dict[str, Any], lengths: Sequence[int], network: Network | None
) -> list[list[Frame]]:
    """By the codec, or uniformly: section 4."""
    if coder.bit(1):
        return decode_uniform(coder, spec, lengths)
    if spec["codec"] == "gpt":
        assert network and len(lengths) == 1
        return [decode_gpt(coder, network, lengths[0])]
    return decode_adaptive(coder, spec, lengths, network if spec["codec"] == "mixed" else None)


def token_id(token: Sequence[int], factors: Sequence[int]) -> int:
    """Section 1."""
    result = 0
    for factor, size in reversed(list(zip(token, factors))):
        result = result * size + factor
    return result


# Section 4: the range coder and alphabet tables.


class RangeDecoder:
    def __init__(self, words: Sequence[int]) -> None:
        self.words = iter(words)
        self.lower, self.range = 0, 2**64 - 1
        self.point = next(self.words, 0) << 32 | next(self.words, 0)

    def symbol(self, bounds: Sequence[int]) -> int:
        """The i whose interval [bounds[i], bounds[i + 1]) comes next."""
        scale = self.range >> 24
        q = (self.point - self.lower) % 2**64 // scale
        assert bounds[0] <= q < bounds[-1], "damaged"
        i = bisect_right(bounds, q) - 1
        self.lower = (self.lower + scale * bounds[i]) % 2**64
        self.range = scale * (bounds[i + 1] - bounds[i])
        if self.range < 2**32:
            self.lower = (self.lower << 32) % 2**64
            self.range <<= 32
            self.point = (self.point << 32) % 2**64 | next(self.words, 0)
        return i

    def bit(self, p: int) -> int:
        """A decision."""
        return self.symbol((0, 2**24 - 256 * p, 2**24))


def decode_uniform(coder: RangeDecoder, spec: dict[str, Any], lengths: Sequence[int]) -> list[list[Frame]]:
    positions, factors = spec["height"] * spec["width"], spec["factors"]
    segments = [[[[0] * len(factors) for _ in range(positions)] for _ in range(length)] for length in lengths]
    for f, size in enumerate(factors):
        step = 2**24 // size
        bounds = [step * v for v in range(size)] + [2**24]
        for frames in segments:
            for frame in frames:
                for token in frame:
                    token[f] = coder.symbol(bounds)
    return segments


def alphabet(weights: Sequence[int]) -> list[int]:
    n = len(weights)
    m = 2**24 - n - 2
    factor = m / sum(weights)
    sums = [0, *accumulate(weights)]
    return [math.floor(sums[i] * factor) + i + 1 for i in range(n)] + [m + n + 1]


# Section 5: frequency tables.


def frequencies(logits: Vector) -> Vector:
    top = max(logits)
    steps = (divmod(max(x - top + 18 * 64, 0), 64) for x in logits)
    return [(2**e * (64 + r)) // 64 for e, r in steps]


def decode_gpt(coder: RangeDecoder, network: Network, length: int) -> list[Frame]:
    state = Past(network)
    for _ in range(length):
        frame: Frame = [[] for _ in range(network.positions)]
        for logits in state.predict():
            rows = [frequencies(row) for row in logits]
            parts = [[row[i : i + 32] for i in range(0, len(row), 32)] for row in rows]
            one = len(parts[0]) == 1
            chosen = [0 if one else coder.symbol(alphabet([sum(part) for part in row])) for row in parts]
            for token, row, group in zip(frame, parts, chosen):
                weights = row[group] + [0] * (32 - len(row[group]))
                member = coder.symbol(alphabet(weights))
                assert member < len(row[group]), "damaged"
                token.append(32 * group + member)
        state.frames.append(frame)
    return state.frames


# Section 6: exact arithmetic. Products and quotients of two float32 that are rounded to float64 first, and then to
# float32, are what they would be if rounded once.


def f32(x: float) -> float:
    return struct.unpack("<f", struct.pack("<f", x))[0]


def bits(pattern: int) -> float:
    return struct.unpack("<f", struct.pack("<I", pattern))[0]


def rnd(a: float, m: float = 1.0) -> int:
    return round(f32(a * m))


QUARTERS = [bits(b) for b in (0x3F800000, 0x3F9837F0, 0x3FB504F3, 0x3FD744FD)]


def multiplier(code: int) -> float:
    return QUARTERS[code % 4] * 2.0 ** (code // 4)


# Section 7 and 8: the network and its file.


class Tensor:
    """Rows of codes, and the multiplier of each."""

    def __init__(self, rows: Matrix, scales: Vector) -> None:
        self.rows = rows
        self.m = [multiplier(c) for c in (scales * len(rows) if len(scales) == 1 else scales)]

    def times(self, x: Vector) -> Vector:
        """rnd((rows @ x) * m)"""
        return [rnd(dot(row, x), m) for row, m in zip(self.rows, self.m)]

    def scaled(self, row: int, column: int) -> int:
        return rnd(self.rows[row][column], self.m[row])


class Network:
    def __init__(self, data: bytes) -> None:
        assert data[:4] == b"VQM\x02"
        assert struct.unpack("<I", data[-4:])[0] == zlib.crc32(data[:-4])
        (n,) = struct.unpack_from("<I", data, 4)
        self.config = c = json.loads(zlib.decompress(data[8 : 8 + n]))
        (check,) = struct.unpack_from("<I", data, 8 + n)
        words = data[12 + n : -4]
        self.coder = RangeDecoder(struct.unpack(f"<{len(words) // 4}I", words))
        self.counts: dict[str, Vector] = {}
        self.code_counts = [[1 + 2 ** (q + 13) // (2**q + 16 * abs(k)) ** 2 for k in range(-63, 64)] for q in range(12)]
        self.tensors: dict[str, Tensor] = {}
        self.positions = c["height"] * c["width"]
        self.bound = min(32767, (2**24 - 1) // c["dim"])
        heads = c["spatial_heads"] + c["temporal_heads"]
        d, r, a = c["dim"], c["rank"], heads * c["head_dim"]
        for f, size in enumerate(c["factors"]):
            self.read(f"embed.{f}", size + 1, r, 1)
            for k in range(c["stack"] + c.get("within_frame", False)):
                self.read(f"stack.{k}.{f}", d, r)
        self.read("position", d, self.positions)
        if c["flags"]:
            self.read("flags", d, len(c["flags"]))
        for i in range(c["blocks"]):
            self.read(f"blocks.{i}.qkv", 3 * a, d)
            if c["spatial_heads"]:
                self.read(f"blocks.{i}.bias_s", c["spatial_heads"], (2 * c["height"] - 1) * (2 * c["width"] - 1))
            if c["temporal_heads"]:
                self.read(f"blocks.{i}.bias_t", c["temporal_heads"], c["window"])
            self.read(f"blocks.{i}.proj", d, a)
            self.read(f"blocks.{i}.up", c["hidden"], d)
            self.read(f"blocks.{i}.down", d, c["hidden"])
        for f, size in enumerate(c["factors"]):
            self.read(f"head.{f}", r + len(c["copies"]), d)
            self.read(f"bias.{f}", 1, size, 1)
        assert self.self_test() == check

    def read(self, name: str, rows: int, columns: int, scales: int | None = None) -> None:
        kind = ".".join(part for part in name.split(".") if not part.isdigit())
        codes = accumulate(self.symbols(f"{kind} scales", 256, scales or rows))
        multipliers = [(c + 128) % 256 - 128 for c in codes]
        spreads = self.symbols(f"{kind} spreads", 12, rows)
        step = max(1, 512 // columns)
        found, expected = [64] * columns, 64
        matrix: Matrix = []
        for first in range(0, rows, step):
            told = spreads[first : first + step]
            contexts = [min((2**r * a // (3 * expected)).bit_length(), 11) for r in told if r > 0 for a in found]
            flat = iter(self.codes(contexts))
            block = [[next(flat) if r > 0 else 0 for _ in range(columns)] for r in told]
            for j in range(columns):
                found[j] += 16 * sum(abs(row[j]) for row in block)
            expected += sum(2**r // 2 for r in told if r > 0)
            matrix += block
        self.tensors[name] = Tensor(matrix, multipliers)

    def codes(self, contexts: Sequence[int]) -> Vector:
        found: Vector = []
        for i in range(0, len(contexts), 128):
            block = contexts[i : i + 128]
            bounds = [alphabet(counts) for counts in self.code_counts]
            new = [self.coder.symbol(bounds[q]) for q in block]
            for q, x in zip(block, new):
                self.code_counts[q][x] += 16
            found += [x - 63 for x in new]
        return found

    def symbols(self, kind: str, size: int, count: int) -> Vector:
        counts = self.counts.setdefault(kind, [1] * size)
        found: Vector = []
        while len(found) < count:
            bounds = alphabet(counts)
            new = [self.coder.symbol(bounds) for _ in range(min(16, count - len(found)))]
            for x in new:
                counts[x] += 16
            found += new
        return found

    def self_test(self) -> int:
        factors = self.config["factors"]
        frames: list[Frame] = []
        x = 1
        for t in range(2):
            frames.append([])
            for s in range(self.positions):
                x = (1103515245 * x + 12345) % 2**31
                frames[t].append(frames[0][s] if t == 1 and s % 2 else [x // 256 % v for v in factors])
        state = Past(self)
        predictions = [state.predict()]
        for frame in frames:
            state.frames.append(frame)
            predictions.append(state.predict())
        crc = 0
        for several in (predictions[:2], predictions[2:]):
            for f, size in enumerate(factors):
                for prediction in several:
                    for logits in prediction[f]:
                        row = frequencies(logits) + [0] * (-size % 32)
                        crc = zlib.crc32(struct.pack(f"<{len(row)}i", *row), crc)
        return crc


class Past:
    """A segment's frames so far, and what the network's temporal heads keep of them."""

    def __init__(self, network: Network) -> None:
        self.network, self.config = network, network.config
        self.frames: list[Frame] = []
        self.kept: list[list[list[tuple[Vector, Vector]]]] = [[] for _ in range(network.config["blocks"])]

    def at(self, s: int, offset: Sequence[int]) -> list[int] | None:
        """The token at an offset from position s of the next frame; None if it does not exist."""
        height, width = self.config["height"], self.config["width"]
        dt, y, x = offset[0], s // width + offset[1], s % width + offset[2]
        if dt > len(self.frames) or not (0 <= y < height and 0 <= x < width):
            return None
        return self.frames[-dt][y * width + x]

    def predict(self) -> list[Matrix]:
        """Of each factor, the logits of each position (S, V) of the next frame. Call it once for each frame."""
        c, net, w = self.config, self.network, self.network.tensors
        h = [self.embed(s) for s in range(net.positions)]
        for i in range(c["blocks"]):
            self.attend(h, i)
            up, down = w[f"blocks.{i}.up"], w[f"blocks.{i}.down"]
            for s, a in enumerate(map(self.norm, h)):
                u = [min(max(f32(dot(row, a) * m), 0.0), bits(0x41344F93)) for row, m in zip(up.rows, up.m)]
                self.add(h[s], down.times([rnd(x, x) for x in u]))
        return [[self.logits(self.norm(h[s]), s, f) for s in range(net.positions)] for f in range(len(c["factors"]))]

    def embed(self, s: int) -> Vector:
        c, b, w = self.config, self.network.bound, self.network.tensors
        h = [clip(w["position"].scaled(d, s), b) for d in range(c["dim"])]
        for k in range(c["stack"] + c.get("within_frame", False)):
            token = self.at(s, (k + 1, 0, 0)) if k < c["stack"] else None
            for f, size in enumerate(c["factors"]):
                row = w[f"embed.{f}"].rows[token[f] if token else size]
                h = [x + clip(y, b) for x, y in zip(h, w[f"stack.{k}.{f}"].times(row))]
        if c["flags"]:
            pairs = [(self.at(s, one), self.at(s, other)) for one, other in c["flags"]]
            flags = [int(one is not None and one == other) for one, other in pairs]
            h = [x + y for x, y in zip(h, w["flags"].times(flags))]
        return [clip(x, b) for x in h]

    def add(self, h: Vector, x: Vector) -> None:
        h[:] = [clip(a + b, self.network.bound) for a, b in zip(h, x)]

    def norm(self, h: Vector) -> Vector:
        factor = f32(25 * len(h) / max(sum(map(abs, h)), 1))
        return [clip(rnd(x, factor), 127) for x in h]

    def attend(self, h: Matrix, i: int) -> None:
        c, w = self.config, self.network.tensors
        height, width, e = c["height"], c["width"], c["head_dim"]
        spatial, heads = c["spatial_heads"], c["spatial_heads"] + c["temporal_heads"]
        kept = self.kept[i]
        queries = []
        kept.append([])
        for row in h:
            qkv = [clip(x, 127) for x in w[f"blocks.{i}.qkv"].times(self.norm(row))]
            queries.append(qkv[: heads * e])
            kept[-1].append((qkv[heads * e : 2 * heads * e], qkv[2 * heads * e :]))
        for s in range(len(h)):
            out: Vector = []
            for n in range(heads):
                part = slice(n * e, (n + 1) * e)
                keys, biases = [], []
                if n < spatial:
                    for other in range(len(h)):
                        dy, dx = other // width - s // width, other % width - s % width
                        keys.append(kept[-1][other])
                        column = (dy + height - 1) * (2 * width - 1) + dx + width - 1
                        biases.append(clip(w[f"blocks.{i}.bias_s"].scaled(n, column), 2**20))
                else:
                    for age in range(min(c["window"], len(kept))):
                        keys.append(kept[-1 - age][s])
                        biases.append(clip(w[f"blocks.{i}.bias_t"].scaled(n - spatial, age), 2**20))
                scores = [dot(queries[s][part], k[part]) + b for (k, _), b in zip(keys, biases)]
                p = []
                for z in scores:
                    x = float(max(z - max(scores) + 2**15, 0))
                    for _ in range(3):
                        x = f32(x * x)
                    p.append(rnd(x, 127 * 2.0**-120))
                values = [v[part] for _, v in keys]
                share = f32(1 / sum(p))
                out += [rnd(dot(p, column), share) for column in zip(*values)]
            self.add(h[s], w[f"blocks.{i}.proj"].times(out))

    def logits(self, a: Vector, s: int, f: int) -> Vector:
        c, w = self.config, self.network.tensors
        y = w[f"head.{f}"].times(a)
        z = [clip(x, 127) for x in y[: c["rank"]]]
        gates = [clip(x, 2**11) for x in y[c["rank"] :]]
        logits = w[f"embed.{f}"].times(z)[:-1]
        for v in range(len(logits)):
            logits[v] += clip(w[f"bias.{f}"].scaled(0, v), 2**14)
        for gate, offset in zip(gates, c["copies"]):
            token = self.at(s, offset)
            if token is not None:
                logits[token[f]] += gate
        return logits


# Section 9: the adaptive model.


def decode_adaptive(
    coder: RangeDecoder, spec: dict[str, Any], lengths: Sequence[int], network: Network | None
) -> list[list[Frame]]:
    positions, factors = spec["height"] * spec["width"], spec["factors"]
    segments: list[list[Frame]] = [[] for _ in lengths]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    models = [FactorModel(spec, f, network) for f in range(len(factors))]
    pasts = [Past(network) if network else None for _ in lengths]
    for t in range(max(lengths)):
        order = [i for i in order if lengths[i] > t]
        predictions = [past.predict() for i in order if (past := pasts[i])]
        frame: Frame = [[] for _ in range(len(order) * positions)]
        for f, model in enumerate(models):
            given = [frequencies(row) for prediction in predictions for row in prediction[f]]
            model.begin([segments[i] for i in order], frame, given)
            nodes = [1] * len(frame)
            for level in range(model.levels):
                for p in range(len(frame)):
                    nodes[p] = 2 * nodes[p] + coder.bit(model.predict(p, level, nodes[p]))
            tokens = [node - 2**model.levels for node in nodes]
            assert max(tokens) < factors[f], "damaged"
            model.learn(tokens)
            for token, value in zip(frame, tokens):
                token.append(value)
        for g, i in enumerate(order):
            segments[i].append(frame[g * positions : (g + 1) * positions])
            if past := pasts[i]:
                past.frames = segments[i]
    return segments


def powers(count: int) -> list[int]:
    e = [2**64]
    for _ in range(count):
        e.append(e[-1] * 18374827034086858296 // 2**64)
    return e


E = powers(4096)
LOW = [max(1, 2**16 * E[i] // (2**64 + E[i])) for i in range(2816)]
SQUASH = [LOW[-x] if x <= 0 else 2**16 - LOW[x] for x in range(-2815, 2816)]


def squash(x: int) -> int:
    return SQUASH[x + 2815]


STRETCH = [max(bisect_right(SQUASH, p) - 1 - 2815, -2815) for p in range(2**16)]


def stretch(p: int) -> int:
    return STRETCH[p]


class Map:
    """Probabilities of states, whose first values `start` tells."""

    def __init__(self) -> None:
        self.states: dict[Any, tuple[int, int]] = {}
        self.seen: dict[Any, list[int]] = {}

    def opinion(self, state: Any, start: int) -> int:
        return stretch(self.states.setdefault(state, (start, 0))[0])

    def see(self, state: Any, bit: int) -> None:
        seen = self.seen.setdefault(state, [0, 0])
        seen[0] += 1
        seen[1] += bit

    def learn(self) -> None:
        for state, (d, o) in self.seen.items():
            q, n = self.states[state]
            q += round((2**16 * o - d * q) / (n + d + 1.5))
            self.states[state] = min(max(q, 16), 2**16 - 16), min(n + d, 1023)
        self.seen.clear()


class Counts:
    """One kind of context's counts, of which there are so many numbers."""

    def __init__(self, size: int, levels: int, numbers: int) -> None:
        self.size = 2**size
        self.step = 2**levels if numbers * 2**levels <= self.size else 0x9E3779B1
        self.words: dict[int, int] = {}
        self.map = Map()

    def look(self, context: int, node: int) -> tuple[int, Any, int]:
        """(slot, state of the map, opinion)"""
        slot = (context * self.step + node) % self.size
        word = self.words.get(slot, 0)
        n = word % 2**16
        k = 33 * (2**16 * (min(word >> 16, n) + 24) // (n + 48)) // 2**16
        state = bisect_right((1, 2, 3, 4, 6, 8, 12, 16, 24), n // 64), k
        return slot, state, self.map.opinion(state, 992 * (2 * k + 1))

    def learn(self, uses: Sequence[tuple[int, Any, int]]) -> None:
        """(slot, state, bit) of each decision."""
        for slot, state, bit in uses:
            self.map.see(state, bit)
            self.words[slot] = (self.words.get(slot, 0) + 2**22 * bit + 64) & MASK
        self.map.learn()
        for slot in {slot for slot, _, _ in uses}:
            word = self.words[slot]
            n = word % 2**16
            if n > 1920:
                self.words[slot] = 2**16 * (1920 * min(word >> 16, n) // n) + 1920


class Row:
    """One row of the online network's weights, and what it has learned."""

    def __init__(self, weights: Vector, rate: float) -> None:
        self.weights, self.rate, self.q = weights, rate, 0

    def step(self, gradient: Sequence[float]) -> None:
        g = [clip(round(x), 2**18 - 1) for x in gradient]
        if self.q == 0 and not any(g):
            return  # a step of 0
        h = sum(map(abs, g)) / len(g)
        self.q += round(h * h) - self.q // 512
        factor = f32(self.rate / (math.isqrt(self.q) + 256))
        self.weights = [clip(w + rnd(x, factor), 2**20 - 1) for w, x in zip(self.weights, g)]

    def codes(self, bound: int) -> Vector:
        return [clip(round(w / 2**8), bound) for w in self.weights]


def add_to(total: Vector, x: Vector, times: int = 1) -> None:
    if times:
        total[:] = [a + times * b for a, b in zip(total, x)]


def in_order(sums: Sequence[float]) -> float:
    """Added one after another in float32."""
    total = 0.0
    for x in sums:
        total = f32(total + x)
    return total


class OnlineNetwork:
    LAMBDA = bits(0x4338AA3B)

    def __init__(self, size: int, positions: int, before: Sequence[int], known: Matrix | None) -> None:
        self.size = size
        self.e = [Row([self.noise(64 * v + d) for d in range(64)], 7864.32) for v in range(size)]
        if known:
            for row, codes in zip(self.e, known):  # which is longer by one
                row.weights[: len(codes)] = [2**10 * code for code in codes[:64]]
                row.q = 2**22
        self.e.append(Row([0] * 64, 7864.32))
        diagonals = [2**16, 2**15, 2**15, 0, 0, 0, 0]
        self.m = [[Row([x * (k == d) for d in range(64)], 458.752) for k in range(64)] for x in diagonals]
        self.starts = list(accumulate([0, positions, 16, *(min(size, 4096) for size in before)]))
        self.c = [Row([0] * 64, 1310.72) for _ in range(self.starts[-1])]
        self.b = [Row([0], 7864.32) for _ in range(size)]
        self.g = [[Row([2**16 * (j == 0)], 7864.32) for j in range(3)] for _ in range(positions)]
        self.r = [[Row([0], 458.752) for j in range(3)] for _ in range(16)]
        self.trace: list[tuple[Any, ...]] = []

    @staticmethod
    def noise(x: int) -> int:
        for m in (0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F):
            x ^= x >> 16
            x = (x * m + 0x9E3779B9) & MASK
        x ^= x >> 15
        return x % 9001 - 4500

    def predict(self, u: Vector, s: int, run: int, before: Vector) -> list[float]:
        if not self.trace:  # of a frame
            self.e_codes = [row.codes(480) for row in self.e]
            self.m_codes = [[row.codes(511) for row in m] for m in self.m]
        r = min(run, 15)
        rows = [start + i % 4096 for start, i in zip(self.starts, (s, r, *before))]
        x = [self.e_codes[t] for t in u]
        parts = [[dot(xj, column) for column in zip(*mj)] for xj, mj in zip(x, self.m_codes)]
        parts.append([sum(self.c[row].weights[d] for row in rows) for d in range(64)])
        y = [clip(round(in_order(column) / 2**9), 511) for column in zip(*parts)]
        z = [
            f32(f32(dot(y, codes) * 2 * self.LAMBDA) + f32(b.weights[0] * self.LAMBDA))
            for codes, b in zip(self.e_codes, self.b)
        ]
        for j in range(3):
            if u[j] < self.size:
                z[u[j]] = f32(z[u[j]] + f32((self.g[s][j].weights[0] + self.r[r][j].weights[0]) * self.LAMBDA))
        top = max(z)
        w = [bits(int(f32(max(f32(a - top), -22 * 2**23) + 127 * 2**23))) for a in z]
        self.trace.append((u, s, r, rows, x, y, w))
        return w

    def learn(self, tokens: Vector, totals: Sequence[float]) -> None:
        """The tokens and W of all positions."""
        outputs: list[list[Vector]] = []  # of each block, as gradients of E
        matrices: list[list[Matrix]] = []
        inputs = [[0] * 64 for _ in range(self.size + 1)]
        gc = [[0] * 64 for _ in self.c]
        gb = [0] * self.size
        gg: dict[tuple[int, int], int] = {}
        gr: dict[tuple[int, int], int] = {}
        for p, ((u, s, r, rows, x, y, w), t, total) in enumerate(zip(self.trace, tokens, totals)):
            if p % 64 == 0:
                outputs.append([[0] * 64 for _ in range(self.size)])
                matrices.append([[[0] * 64 for _ in range(64)] for _ in range(7)])
            share = f32(-(2**14) / total)
            d = [rnd(a, share) + 2**14 * (v == t) for v, a in enumerate(w)]
            k = [clip(round(dot(d, column) / 2**15), 511) for column in zip(*self.e_codes[:-1])]
            coarse = [clip(round(a / 2**4), 15) for a in y]
            for v in range(self.size):
                add_to(outputs[-1][v], coarse, d[v])
                gb[v] += d[v]
            for j in range(7):
                add_to(inputs[u[j]], [round(dot(k, row) / 2) for row in self.m_codes[j]])
                for i, a in enumerate(x[j]):
                    add_to(matrices[-1][j][i], k, a)
            for row in rows:
                add_to(gc[row], k, 2**7)
            for j in range(3):
                change = d[u[j]] if u[j] < self.size else 0
                gg[s, j] = gg.get((s, j), 0) + change
                gr[r, j] = gr.get((r, j), 0) + change
        for v in range(self.size):
            sums = zip(*(block[v] for block in outputs))
            self.e[v].step([f32(in_order(a) / 2**3 + f32(b)) for a, b in zip(sums, inputs[v])])
            self.b[v].step([f32(gb[v])])
        for j in range(7):
            for i in range(64):
                self.m[j][i].step([in_order(a) / 2 for a in zip(*(block[j][i] for block in matrices))])
        for row, total in zip(self.c, gc):
            row.step([f32(a) for a in total])
        for table, changes in ((self.g, gg), (self.r, gr)):
            for i, gates in enumerate(table):
                for j, gate in enumerate(gates):
                    gate.step([f32(changes.get((i, j), 0))])
        self.trace.clear()


class Tree:
    """The masses of a network's weights."""

    def __init__(self, weights: Sequence[float], levels: int) -> None:
        size = 2**levels
        self.m = [0.0] * size + [*weights] + [0.0] * (size - len(weights))
        for node in range(size - 1, 0, -1):
            self.m[node] = f32(self.m[2 * node] + self.m[2 * node + 1])

    def opinion(self, node: int) -> int:
        share = f32(self.m[2 * node + 1] / max(self.m[node], 2.0**-64))
        return stretch(math.floor(min(max(2**16 * share, 1), 2**16 - 1)))


class FactorModel:
    def __init__(self, spec: dict[str, Any], f: int, network: Network | None) -> None:
        given = network is not None
        known = network.tensors[f"embed.{f}"].rows if network else None
        self.height, self.width, self.f, self.size = spec["height"], spec["width"], f, spec["factors"][f]
        self.levels = (self.size - 1).bit_length()
        self.positions = positions = self.height * self.width
        before = spec["factors"][:f]
        numbers = [1, positions, self.size + 1]
        if f:
            numbers += [math.prod(before), math.prod(before) * (self.size + 1)]
        size = 22 - (len(spec["factors"]) - 1).bit_length()
        self.before = before
        self.counts = [Counts(size, self.levels, n) for n in numbers]
        self.match = Map()
        self.online = OnlineNetwork(self.size, positions, before, known) if self.size <= 4096 else None
        online = self.online is not None
        start = [0 if given else 1049] * len(numbers) + [0, 0]
        start += [0 if given else 6554] * online + [13107] * given
        sizes = [8 * self.levels, positions, 10, 24 * self.levels, 27]
        self.sets = [[list(start) for _ in range(size)] for size in sizes]
        self.time = 0
        self.runs: list[Vector] = []

    def begin(self, segments: list[list[Frame]], frame: Frame, given: list[Vector]) -> None:
        """Prepare the next frame of these segments, of which `frame` holds the factors known already."""
        none = self.size

        def at(frames: list[Frame], s: int, dt: int, dy: int, dx: int) -> int:
            y, x = s // self.width + dy, s % self.width + dx
            if dt > len(frames) or not (0 <= y < self.height and 0 <= x < self.width):
                return none
            return frames[-dt][y * self.width + x][self.f]

        if not self.runs:
            self.runs = [[0] * self.positions for _ in segments]
        self.runs = self.runs[: len(segments)]
        for frames, runs in zip(segments, self.runs):
            for s in range(self.positions):
                same = len(frames) > 1 and at(frames, s, 1, 0, 0) == at(frames, s, 2, 0, 0)
                runs[s] = min(runs[s] + 1, 255) if same else 0
        self.places: list[dict[str, Any]] = []
        for p, before in enumerate(frame):
            s, frames, runs = p % self.positions, segments[p // self.positions], self.runs[p // self.positions]
            u = [
                at(frames, s, *o)
                for o in ((1, 0, 0), (2, 0, 0), (3, 0, 0), (1, 0, 1), (1, 0, -1), (1, 1, 0), (1, -1, 0))
            ]
            contexts = [0, s, u[0]]
            if self.f:
                number = token_id(before, self.before)
                contexts += [number, number * (self.size + 1) + u[0]]
            y, x = divmod(s, self.width)
            still = sum(
                runs[i * self.width + j] > 0
                for i in range(max(y - 1, 0), min(y + 2, self.height))
                for j in range(max(x - 1, 0), min(x + 2, self.width))
            )
            weights = [self.online.predict(u, s, runs[s], list(before))] if self.online else []
            self.places.append(
                {
                    "s": s,
                    "run": runs[s],
                    "still": still,
                    "contexts": contexts,
                    "last": u[:3],
                    "trees": [Tree(w, self.levels) for w in weights + ([given[p]] if given else [])],
                }
            )
        self.trace: list[tuple[Any, ...]] = []

    def predict(self, p: int, level: int, node: int) -> int:
        place = self.places[p]
        looks = [counts.look(context, node) for counts, context in zip(self.counts, place["contexts"])]
        c = []
        for t in place["last"]:
            below = (2**self.levels + t) >> (self.levels - level - 1)
            c.append(1 + below % 2 if t < self.size and below >> 1 == node else 0)
        match = level, min(place["run"], 7), *c
        networks = [tree.opinion(node) for tree in place["trees"]]
        x = [*(opinion for _, _, opinion in looks), self.match.opinion(match, 2**15), 256, *networks]
        sure = min(max(x[-1] // 192 + 12, 0), 23) if networks else 0
        code = c[0] + 3 * c[1] + 9 * c[2]
        chosen = (8 * level + min(place["run"], 7), place["s"], place["still"], 24 * level + sure, code)
        weights = [sum(w) for w in zip(*(sets[i] for sets, i in zip(self.sets, chosen)))]
        result = squash(clip(round(dot(weights, x) / 2**16), 2815))
        self.trace.append((p, level, [look[:2] for look in looks], match, x, chosen, result))
        return result

    def learn(self, tokens: Vector) -> None:
        uses: list[list[tuple[int, Any, int]]] = [[] for _ in self.counts]
        sums: list[dict[int, tuple[int, Vector]]] = [{} for _ in self.sets]
        for p, level, looks, match, x, chosen, result in self.trace:
            bit = tokens[p] >> (self.levels - 1 - level) & 1
            for use, (slot, state) in zip(uses, looks):
                use.append((slot, state, bit))
            self.match.see(match, bit)
            for total, i in zip(sums, chosen):
                n, vector = total.get(i, (0, [0] * len(x)))
                total[i] = n + 1, [a + b * (2**16 * bit - result) for a, b in zip(vector, x)]
        for counts, use in zip(self.counts, uses):
            counts.learn(use)
        self.match.learn()
        for sets, total in zip(self.sets, sums):
            for i, (n, vector) in total.items():
                rate = min(64 / n, 1) * (2.0**-18 * (1 + 128 / (64 + self.time)))
                sets[i] = [clip(w + round(a * rate), 2**20) for w, a in zip(sets[i], vector)]
        self.time += 1
        if self.online:
            self.online.learn(tokens, [place["trees"][0].m[1] for place in self.places])
