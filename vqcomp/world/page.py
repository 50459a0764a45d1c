"""The page of a report: one HTML file, with its charts as SVG and its frames as PNG inside; it fetches nothing."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from math import log
from pathlib import Path

import numpy as np

from ..runtime.spec import TokenSpec
from .palette import heat
from .pictures import HEAT_BITS, Painter, overlay
from .report import Moment, Part, Report, extremes, grid_costs, learning_curve, moments
from .video import png

ROWS_MAX = 200
"""Rows of the table of segments; `vqcomp list` has all."""
CHARTS_MAX = 6
AROUND = (-10, -5, 0, 5, 10)
"""Frames that are shown of a moment."""
DOT = 6.0
"""Per cent of a chart's width that a number in it takes on a phone."""

Painters = Mapping[TokenSpec, Painter]


def write_page(report: Report, painters: Painters) -> str:
    """The page, as text. painters: one for each kind of frame that was measured."""
    found = moments(report.measured)
    body = [
        _header(report),
        _sizes(report),
        _over_time(report, found),
        _moments(report, found, painters),
        _where(report),
        _extremes(report, painters),
        _segments(report),
        _footer(report),
    ]
    title, style = escape(report.title), Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}: where the bits go</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


# --- sections


def _header(report: Report) -> str:
    s = report.summary
    codec = {
        (True, True): "a network, with learning on top",
        (True, False): "a network",
        (False, True): "what is learned on the way",
    }[report.has_network, report.learns]
    facts = [
        ("rate", f"{s.rate:.3f}", f"{_bytes(s.raw_bytes)} raw in {_bytes(s.zip_bytes)} of zip"),
        ("bits/token", f"{s.payload_bits_per_token:.3f}", f"of {8 * s.raw_bytes / s.tokens:.0f} uncompressed"),
        ("segments", f"{s.segments:,}", _count(s.tokens, "token")),
    ]
    cards = "".join(
        f'<div class="fact"><div class="label">{label}</div><div class="value">{value}</div>'
        f'<div class="note">{note}</div></div>'
        for label, value, note in facts
    )
    return (
        f"<header><p class='kicker'>vqcomp report</p><h1>{escape(report.title)}</h1>"
        f"<p class='lead'>Coded by {codec}.</p></header><div class='facts'>{cards}</div>"
    )


def _sizes(report: Report) -> str:
    s = report.summary
    parts = [
        ("coded tokens", "payload", s.payload_bytes),
        ("weights", "weights", s.weights_bytes),
        ("decoder", "runtime", s.runtime_bytes),
        ("other files", "files", s.files_bytes),
        ("manifest and zip", "rest", s.rest_bytes),
    ]
    parts = [p for p in parts if p[2] > 0]
    bar = "".join(
        f'<span class="{kind}" style="flex-grow:{size}" title="{label}: {size:,} bytes"></span>'
        for label, kind, size in parts
    )
    legend = "".join(
        f'<tr><td><i class="{kind}"></i>{label}</td><td>{size:,}</td><td>{100 * size / s.zip_bytes:.1f} %</td></tr>'
        for label, kind, size in parts
    )
    return _section(
        "What the zip is made of",
        f'<div class="stack">{bar}</div><table class="legend"><tbody>{legend}'
        f"<tr class='sum'><td>the whole zip</td><td>{s.zip_bytes:,}</td><td>bytes</td></tr></tbody></table>",
    )


def _over_time(report: Report, found: Sequence[Moment]) -> str:
    parts = report.measured
    chosen = list(dict.fromkeys([*(m.part for m in found), *range(len(parts))]))[:CHARTS_MAX]
    # The first frame, which nothing predicts, would flatten all others.
    top = (
        max(float(np.quantile(parts[i].by_frame[1:], 0.999)) if len(parts[i].bits) > 1 else 1.0 for i in chosen) * 1.25
    )
    charts = []
    for i in sorted(chosen):
        part, bits = parts[i], parts[i].by_frame
        dots = [(m.frame, m.bits, str(n), f"#moment-{n}") for n, m in enumerate(found, 1) if m.part == i]
        lines = [("faint", list(enumerate(bits))), ("main", list(enumerate(_smooth(bits))))]
        ticks = [(t, _clock(part, t).removesuffix(".0")) for t in _ticks(0, max(len(bits) - 1, 1), 6)]
        chart = _chart(lines, ticks, 0, top, dots)
        charts.append(f"<h3>{escape(part.name)} <span>{bits.mean():.3f} bits/token</span></h3>{chart}")
    left = len(parts) - len(chosen)
    more = f"<p class='note'>{_count(left, 'more segment')} were looked at and are not drawn.</p>" if left else ""
    unit = "minutes:seconds" if all(parts[i].fps for i in chosen) else "frames"
    return _section(
        "Bits over time",
        "".join(charts) + more,
        f"Bits/token of each frame (thin) and over a second (bold), by {unit}. Numbers mark the moments below.",
    )


def _moments(report: Report, found: Sequence[Moment], painters: Painters) -> str:
    if not found:
        return _section("Most surprising moments", "<p class='note'>The segments are too short to tell.</p>")
    cards = []
    for n, m in enumerate(found, 1):
        part = report.measured[m.part]
        frames = [t for t in (m.frame + d for d in AROUND) if 0 <= t < len(part.ids)]
        pictures = [
            f"<figure{' class=now' if t == m.frame else ''}>{_picture(part, t, painters)}"
            f"<figcaption>{_offset(part, t - m.frame)}</figcaption></figure>"
            for t in frames
        ]
        pictures.append(f"<figure>{_picture(part, m.frame, painters, True)}<figcaption>cost</figcaption></figure>")
        times = m.bits / max(m.usual, 1e-9)
        cards.append(
            f'<article id="moment-{n}"><div class="what"><b class="number">{n}</b><div><b>{_clock(part, m.frame)}</b>'
            f" <span>frame {m.frame:,} of {escape(part.name)}</span><br>{m.bits:.2f} bits/token, "
            f"{times:.1f} times the usual {m.usual:.2f}</div></div>"
            f"<div class='strip'>{''.join(pictures)}</div></article>"
        )
    return _section(
        "Most surprising moments",
        "".join(cards),
        "Where tokens cost far more than around, something happens that the past did not foretell. "
        f"Each: the frames about it, and what its tokens cost. {_pictured(painters)}{_scale()}",
    )


def _where(report: Report) -> str:
    maps = []
    for (height, width), cost in grid_costs(report.measured).items():
        low, high = float(cost.min()), float(cost.max())
        colours = heat(cost - low, max(high - low, 1e-9))
        cells = "".join(
            f'<rect x="{x}" y="{y}" width="1.02" height="1.02" fill="{_hex(colours[y, x])}">'
            f"<title>row {y}, column {x}: {cost[y, x]:.2f} bits</title></rect>"
            for y in range(height)
            for x in range(width)
        )
        maps.append(
            f'<svg class="map" viewBox="0 0 {width} {height}" role="img" aria-label="mean bits of each place">{cells}'
            f"</svg><p class='note'>from {low:.2f} bits (dark) to {high:.2f} (bright), {cost.mean():.2f} on average</p>"
        )
    curve = learning_curve(report.measured)
    lines = [("main", [(log(f), bits) for f, bits, _ in curve])]
    alone = [(log(f), network) for f, _, network in curve if network is not None]
    if alone:
        lines.insert(0, ("second", alone))
    last = curve[-1][0] if curve else 2.0
    ticks = [(log(f), f"{f:,}") for f in (1, 3, 10, 30, 100, 300, 1000, 3000, 10000) if f <= last]
    values = [v for _, line in lines for _, v in line] or [0.0, 1.0]
    low, high = min(values), max(values)
    chart = _chart(lines, ticks, max(0.0, low - 0.1 * (high - low)), high + 0.05 * (high - low) + 1e-6)
    names = [("main", "as coded")] + ([("second", "by the network alone")] if alone else [])
    keys = " ".join(f'<span class="key {kind}">{name}</span>' for kind, name in names)
    about = "bits/token by frames since a segment's start" + (
        ", as the codec learns; segments of a group learn together" if report.learns else ""
    )
    return (
        '<div class="two">'
        + _section("Where in the frame", "".join(maps), "What a token costs at each place of the grid, on average.")
        + _section("Learning curve", f"{chart}<p class='note'>{keys}</p>", f"{about[0].upper()}{about[1:]}.")
        + "</div>"
    )


def _extremes(report: Report, painters: Painters) -> str:
    def gallery(found: Iterable[Moment]) -> str:
        figures = []
        for m in found:
            part = report.measured[m.part]
            figures.append(
                f"<figure>{_picture(part, m.frame, painters)}{_picture(part, m.frame, painters, True)}<figcaption>"
                f"<b>{m.bits:.2f}</b> bits/token · {_clock(part, m.frame)} · {escape(part.name)}</figcaption></figure>"
            )
        return f"<div class='gallery'>{''.join(figures)}</div>"

    dearest, cheapest = extremes(report.measured)
    if not dearest:
        return ""
    return _section(
        "Dearest and cheapest frames",
        f"<h3>Dearest</h3>{gallery(dearest)}<h3>Cheapest</h3>{gallery(cheapest)}",
        f"First frames aside, which nothing comes before. Each with what its tokens cost. {_scale()}",
    )


def _segments(report: Report) -> str:
    top = max(max(row.bits for row in report.rows), 1e-9)
    rows = []
    for row in report.rows[:ROWS_MAX]:
        share = 100 * row.bits / top
        rows.append(
            f"<tr><td>{escape(row.name)}</td><td>{row.frames:,}</td><td>{row.bytes:,.0f}</td>"
            f"<td>{row.raw_bytes / max(row.bytes, 1e-9):.3f}</td>"
            f'<td class="bar"><span style="width:{share:.1f}%"></span>{row.bits:.3f}</td></tr>'
        )
    left = len(report.rows) - ROWS_MAX
    more = f"<p class='note'>{_count(left, 'more segment')}: <code>vqcomp list</code> has all.</p>" if left > 0 else ""
    shared = " Segments that share a stream are told their part of it by their length." if report.learns else ""
    return _section(
        "Segments",
        "<div class='scroll'><table class='segments'><thead><tr><th>name</th><th>frames</th><th>bytes</th><th>rate</th>"
        f"<th>bits/token</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>{more}",
        f"Coded tokens alone, without weights and decoder.{shared}",
    )


def _footer(report: Report) -> str:
    n, all_ = len(report.measured), len(report.rows)
    which = "all segments" if n == all_ else f"{n:,} of {all_:,} segments, in groups from all over the archive"
    return (
        f"<footer>Sizes are those of the zip. Costs are -log2 of the probabilities that code the tokens, of {which}."
        f" Archive written by vqcomp {escape(report.version)}.</footer>"
    )


# --- pieces


def _section(title: str, body: str, about: str = "") -> str:
    lead = f"<p class='about'>{about}</p>" if about else ""
    return f"<section><h2>{title}</h2>{lead}{body}</section>"


def _picture(part: Part, frame: int, painters: Painters, cost: bool = False) -> str:
    """A frame as an inline PNG, in colours one pixel a token: the browser makes them larger."""
    painter, ids = painters[part.spec], part.ids[frame : frame + 1]
    film = painter.film(ids) if painter.decoder is not None else painter.palette.paint(ids)
    if cost:
        film = overlay(film, part.bits[frame : frame + 1])
    data = base64.b64encode(png(film[0])).decode()
    kind = "decoded" if painter.decoder is not None else "tokens"
    what = f"{'costs of ' if cost else ''}frame {frame}"
    height, width = film.shape[1:3]
    return (
        f'<img class="{kind}" style="aspect-ratio:{width}/{height}" width="{width}" height="{height}" alt="{what}" '
        f'src="data:image/png;base64,{data}">'
    )


def _pictured(painters: Painters) -> str:
    if all(p.decoder is not None for p in painters.values()):
        return "Pictures are decoded from the tokens. "
    if all(p.palette.by_model for p in painters.values()):
        return "A token is a square; codes that a model finds alike have colours that are alike. "
    return "A token is a square; its colour only tells it from others. "


def _scale() -> str:
    stops = heat(np.linspace(0, HEAT_BITS, 7), HEAT_BITS)
    colours = ", ".join(_hex(c) for c in stops)
    return (
        f"<span class='scale'>0 <i style='background:linear-gradient(90deg, {colours})'></i> "
        f"{HEAT_BITS:.0f} bits</span>"
    )


def _chart(
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    x_ticks: Sequence[tuple[float, str]],
    low: float,
    high: float,
    dots: Sequence[tuple[float, float, str, str]] = (),
) -> str:
    """A line chart: SVG for the lines, which stretch with the page, and HTML for words, which do not.

    lines: (class, points). dots: (x, y, text, link).
    """
    xs = [x for _, line in lines for x, _ in line] or [0.0, 1.0]
    high = max(high, low + 1e-3)  # all may cost nothing
    left, right = min(xs), max(max(xs), min(xs) + 1e-9)
    across: Callable[[float], float] = lambda x: 1000 * (x - left) / (right - left)  # noqa: E731
    up: Callable[[float], float] = lambda y: 1000 * min(max((high - y) / (high - low), 0.0), 1.0)  # noqa: E731
    y_ticks = _ticks(low, high, 4)
    grid = "".join(f'<line x1="0" x2="1000" y1="{up(y):.0f}" y2="{up(y):.0f}"/>' for y in y_ticks)
    paths = "".join(
        f'<path class="{kind}" d="M{" ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line)}"/>'
        for kind, line in lines
    )
    words = "".join(f'<span class="y" style="top:{up(y) / 10:.1f}%">{_short(y)}</span>' for y in y_ticks)
    words += "".join(f'<span class="x" style="left:{across(x) / 10:.1f}%">{text}</span>' for x, text in x_ticks)
    places = [across(x) / 10 for x, _, _, _ in dots]
    for i, (_, y, text, link) in enumerate(dots):
        lift = sum(abs(place - places[i]) < DOT for place in places[:i])  # else it would hide them
        style = f"left:{places[i]:.2f}%;top:{up(y) / 10:.1f}%" + (f";--lift:{lift}" if lift else "")
        words += f'<a class="dot" href="{link}" style="{style}">{text}</a>'
    return (
        f'<div class="chart"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">{grid}{paths}'
        f"</svg>{words}</div>"
    )


def _ticks(low: float, high: float, count: int) -> list[float]:
    """About so many round numbers in low..high."""
    step = 10.0 ** np.floor(np.log10(max(high - low, 1e-9) / count))
    step = next((step * m for m in (1, 2, 5) if (high - low) / (step * m) <= count), step * 10)
    first = np.ceil(low / step - 1e-9)
    return [float(step * (first + i)) for i in range(int((high - first * step) / step + 1e-9) + 1)]


def _short(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _smooth(values: np.ndarray, width: int = 20) -> np.ndarray:
    """Means over `width` values, fewer at the ends; the first value is left out of all but its own."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    at = np.arange(len(values))
    a, b = np.maximum(at - width // 2, np.minimum(at, 1)), np.minimum(at + width // 2, len(values))
    smooth: np.ndarray = (sums[np.maximum(b, a + 1)] - sums[a]) / np.maximum(b - a, 1)
    return smooth


def _clock(part: Part, frame: float) -> str:
    """When a frame is: minutes and seconds where their number is known."""
    if part.fps is None:
        return f"{frame:,.0f}"
    seconds = frame / part.fps
    return f"{int(seconds // 60)}:{seconds % 60:04.1f}"


def _offset(part: Part, frames: int) -> str:
    if not frames:
        return "now"
    sign = "+" if frames > 0 else "\u2212"
    return f"{sign}{abs(frames) / part.fps:g} s" if part.fps else f"{sign}{abs(frames)}"


def _bytes(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def _hex(colour: np.ndarray) -> str:
    return "#" + bytes(colour.tolist()).hex()
