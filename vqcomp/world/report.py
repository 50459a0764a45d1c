"""What a page about an archive tells: sizes of all, and token by token where the bits of some segments go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import NamedTuple

import numpy as np

from ..archive.reader import Archive
from ..archive.summary import Summary, summarize
from ..data.specs import COMMAVQ
from ..runtime.manifest import Group
from ..runtime.progress import Progress
from ..runtime.spec import TokenSpec
from .segment import read_model
from .surprise import costs

APART = 20
"""Frames that moments lie apart, at least: a second of comma's."""
USUAL = 30
"""Frames to either side whose median is what is usual there."""


class Row(NamedTuple):
    """One segment in the archive; of a shared stream it has the part that goes by its number of tokens."""

    name: str
    frames: int
    tokens: int
    raw_bytes: float
    bytes: float
    codec: str

    @property
    def bits(self) -> float:
        """Bits/token."""
        return 8 * self.bytes / self.tokens


@dataclass(frozen=True)
class Part:
    """A segment that was looked at token by token."""

    name: str
    spec: TokenSpec
    ids: np.ndarray = field(repr=False)
    """int64 (T, H, W)"""
    bits: np.ndarray = field(repr=False)
    """float32 (T, H, W): what each token costs."""
    alone: np.ndarray | None = field(default=None, repr=False)
    """float32 (T,): bits/token of each frame by the network alone, where learning comes on top of one."""

    @property
    def by_frame(self) -> np.ndarray:
        """(T,): bits/token of each frame."""
        frames: np.ndarray = self.bits.mean((1, 2), dtype=np.float64)
        return frames

    @property
    def fps(self) -> int | None:
        """Frames per second, where the tokens' kind tells."""
        return 20 if self.spec == COMMAVQ else None


class Moment(NamedTuple):
    """A frame that stands out."""

    part: int
    frame: int
    bits: float
    """Bits/token of the frame."""
    usual: float
    """Bits/token that are usual around it."""


@dataclass(frozen=True)
class Report:
    """What the page tells."""

    title: str
    summary: Summary
    version: str
    rows: Sequence[Row]
    measured: Sequence[Part]
    has_network: bool
    learns: bool


def measure(archive: Archive, title: str, segments: int, progress: Progress | None = None) -> Report:
    """Look into an archive: sizes of all segments, and the costs of at least so many, in whole groups.

    Raises DamageError where one of these is damaged.
    """
    progress, manifest = progress or Progress(), archive.manifest
    rows = []
    for segment in manifest.segments:
        group = manifest.groups[segment.group]
        together = sum(manifest.segments[i].tokens for i in group.segments)
        spec, kind = manifest.coding_of(segment)
        share = group.size * segment.tokens / together
        raw = segment.tokens * spec.bits / 8
        rows.append(Row(segment.name, segment.shape[0], segment.tokens, raw, share, kind.name))
    model, measured = read_model(archive), []
    groups = _spread(manifest.groups, segments)
    names = [manifest.segments[i].name for g in groups for i in g.segments]
    tokens = sum(prod(manifest.segments[i].shape) for g in groups for i in g.segments)
    progress.begin("decoding", len(names), tokens)
    try:
        arrays = dict(archive.decode(names, advance=lambda n: progress.advance(0, n)))
        progress.begin("measuring", len(names), tokens)
        for group in groups:
            spec, kind = manifest.codings[group.coding]
            data = model if kind.has_network else None
            inside = [manifest.segments[i].name for i in group.segments]
            ids = [arrays.pop(name).astype(np.int64).reshape(-1, spec.height, spec.width) for name in inside]
            parts = [spec.split(x.reshape(len(x), -1)) for x in ids]
            advance = lambda n: progress.advance(0, n)  # noqa: E731
            (bits,) = costs(spec, data, [parts], adapt=kind.learns, compute=archive.compute, advance=advance)
            alone: Sequence[np.ndarray | None] = [None] * len(parts)
            if data and kind.learns:
                (plain,) = costs(spec, data, [parts], adapt=False, compute=archive.compute)
                alone = [x.mean(1) for x in plain]
            for name, x, cost, network in zip(inside, ids, bits, alone):
                measured.append(Part(name, spec, x, cost.reshape(x.shape), network))
                progress.advance(1, 0)
    finally:
        progress.end()
    kinds = [kind for _, kind in manifest.codings]
    return Report(
        title, summarize(archive, 0.0), manifest.version, rows, measured,
        any(k.has_network for k in kinds), any(k.learns for k in kinds),
    )  # fmt: skip


def _spread(groups: Sequence[Group], segments: int) -> list[Group]:
    """Groups from all over the archive with so many segments, or a few more, in its order."""
    largest = max(len(g.segments) for g in groups)
    count = min(len(groups), max(1, -(-segments // largest)))
    return [groups[i * len(groups) // count] for i in range(count)]


def moments(parts: Sequence[Part], count: int = 10) -> list[Moment]:
    """The frames that cost most beyond what is usual around them, the most surprising first, APART at least.

    A segment's first second is left out: there everything is new.
    """
    found = []
    for index, part in enumerate(parts):
        bits = part.by_frame
        usual = _median(bits, USUAL)
        found += [
            Moment(index, t, float(bits[t]), float(usual[t]))
            for t in _peaks(bits - usual, APART, min(APART, len(bits)))
        ]
    return sorted(found, key=lambda m: m.usual - m.bits)[:count]


def extremes(parts: Sequence[Part], count: int = 6) -> tuple[list[Moment], list[Moment]]:
    """The dearest and the cheapest frames, APART at least; but for first frames, which have nothing before them."""
    found: tuple[list[Moment], list[Moment]] = [], []
    for index, part in enumerate(parts):
        bits = part.by_frame
        for sign, moments in zip((1, -1), found):
            moments += [Moment(index, t, float(bits[t]), float(bits.mean())) for t in _peaks(sign * bits, APART, 1)]
    return (
        sorted(found[0], key=lambda m: -m.bits)[:count],
        sorted(found[1], key=lambda m: m.bits)[:count],
    )


def _median(values: np.ndarray, reach: int) -> np.ndarray:
    """Of the values up to `reach` places away."""
    padded = np.pad(values, reach, "reflect" if len(values) > reach else "edge")
    median: np.ndarray = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1), -1)
    return median


def _peaks(values: np.ndarray, apart: int, first: int) -> list[int]:
    """Places from `first` on, the highest first, each at least `apart` from all before it; 24 at most."""
    left = values.astype(np.float64)  # a copy
    found: list[int] = []
    left[:first] = -np.inf
    while len(found) < 24 and left.size and (top := int(left.argmax())) >= 0 and left[top] > -np.inf:
        found.append(top)
        left[max(0, top - apart + 1) : top + apart] = -np.inf
    return found


def learning_curve(parts: Sequence[Part], bins: int = 60) -> list[tuple[float, float, float | None]]:
    """(frame, bits/token as coded, by the network alone if there is one) by frames since the start, over all parts.

    Ranges of frames grow in length, since most is learned at first; frame 0 is left out.
    """
    longest = max(len(p.bits) for p in parts)
    edges = np.unique(np.round(np.geomspace(1, max(longest, 2), bins + 1)).astype(int))
    coded = [p.by_frame for p in parts]
    curve = []
    for a, b in pairwise(edges.tolist()):
        here = [bits[a:b] for bits in coded if len(bits) > a]
        alone = [p.alone[a:b] for p in parts if p.alone is not None and len(p.alone) > a]
        if here:
            network = float(np.concatenate(alone).mean()) if len(alone) == len(here) else None
            curve.append((float(a + b - 1) / 2, float(np.concatenate(here).mean()), network))
    return curve


def grid_costs(parts: Sequence[Part]) -> dict[tuple[int, int], np.ndarray]:
    """Mean bits of each place of the grid, (H, W), by grid."""
    sums: dict[tuple[int, int], list[np.ndarray]] = {}
    for part in parts:
        sums.setdefault((part.spec.height, part.spec.width), []).append(part.bits)
    return {grid: np.concatenate(bits).mean(0, dtype=np.float64) for grid, bits in sums.items()}
