"""The report: what it tells adds up, and its page is one that stands alone."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from vqcomp import api, seeing
from vqcomp.archive.reader import Archive
from vqcomp.cli import run
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.errors import DamageError, InputError
from vqcomp.runtime.spec import TokenSpec
from vqcomp.world import page
from vqcomp.world import report as told
from vqcomp.world.page import write_page
from vqcomp.world.palette import Palette
from vqcomp.world.pictures import Painter

CPU = Compute("cpu", 1, 1)
SPEC = TokenSpec(3, 4, (70,))


class Page(HTMLParser):
    """Checks that tags are closed in order, and gathers what is in them."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.ids, self.links = [], [], set(), []
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        table = dict(attributes)
        if "id" in table:
            assert table["id"] not in self.ids
            self.ids.add(table["id"])
        if "href" in table:
            self.links.append(table["href"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    for i, frames in enumerate((90, 50, 1)):
        np.save(path / f"drive & <b>{i}.npy", tokens((frames, 3, 4), seed=i))
    return path


@pytest.fixture(scope="module")
def archive(folder: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "a.zip"
    api.compress(folder, path, model=tiny_model, verify=False, compute=CPU)
    return path


def test_costs_of_tokens_add_up_to_the_payload(archive):
    with Archive(archive, CPU) as opened:
        found = told.measure(opened, "a", 100)
    assert len(found.measured) == len(found.rows) == 3
    total = sum(float(part.bits.sum()) for part in found.measured)
    assert abs(total - 8 * found.summary.payload_bytes) <= 64
    assert sum(row.bytes for row in found.rows) == pytest.approx(found.summary.payload_bytes)
    assert all(part.alone is not None and len(part.alone) == len(part.bits) for part in found.measured)


def test_the_page_stands_alone_and_is_whole(archive, tmp_path):
    seeing.report(archive, tmp_path / "r.html", compute=CPU)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"(https?:|//)\S", re.sub(r"data:image/png;base64,[\w+/=]+", "", text))
    assert not any(tag in ("script", "link", "iframe") for tag, _ in page.tags)
    images = [table["src"] for tag, table in page.tags if tag == "img"]
    assert images
    for source in images:
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert all(link[1:] in page.ids for link in page.links)
    assert all("alt" in table for tag, table in page.tags if tag == "img")


def test_names_are_told_as_they_are_and_never_as_tags(archive, tmp_path):
    seeing.report(archive, tmp_path / "r.html", compute=CPU)
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    for i in range(3):
        assert f"drive & <b>{i}.npy" in page.words


def test_the_page_tells_the_rate_that_list_does(archive, tmp_path):
    told_here = seeing.report(archive, tmp_path / "r.html", compute=CPU)
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert f"{told_here.summary.rate:.3f}" in page.words
    for size in (told_here.summary.zip_bytes, told_here.summary.weights_bytes, told_here.summary.runtime_bytes):
        assert f"{size:,}" in page.words


def test_data_are_told_of_as_the_archive_they_would_be(folder, tiny_model, archive, tmp_path):
    arguments = ["report", str(folder), "-o", str(tmp_path / "r.html"), "--model", str(tiny_model), "--device", "cpu"]
    assert run([*arguments, "-q"]) == 0
    of_data = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    seeing.report(archive, tmp_path / "a.html", compute=CPU)
    of_archive = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    strip = lambda words: words.split("What the zip is made of")[1]  # noqa: E731
    assert strip(of_data.words) == strip(of_archive.words)


def test_fewer_segments_can_be_looked_at(tmp_path):
    data = {f"{i}.npy": tokens((30, 3, 4), seed=i) for i in range(20)}
    api.compress(data, tmp_path / "a.zip", model="none", verify=False, compute=CPU)
    found = seeing.report(tmp_path / "a.zip", tmp_path / "r.html", segments=3, compute=CPU)
    assert len(found.rows) == 20 and 3 <= len(found.measured) <= 8
    assert "more segments were looked at" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_damaged_archive_is_said(archive, tmp_path):
    data = bytearray(archive.read_bytes())
    with Archive(archive) as opened:
        at = opened._start + 20
    data[at] ^= 1
    (tmp_path / "bad.zip").write_bytes(data)
    with pytest.raises(DamageError):
        seeing.report(tmp_path / "bad.zip", tmp_path / "r.html", compute=CPU)
    assert not (tmp_path / "r.html").exists()


def test_a_page_that_is_there_is_not_overwritten(archive, tmp_path):
    (tmp_path / "r.html").write_text("mine")
    with pytest.raises(InputError, match="-f overwrites"):
        seeing.report(archive, tmp_path / "r.html", compute=CPU)
    assert seeing.report(archive, tmp_path / "r.html", force=True, compute=CPU)


def test_frames_are_drawn_by_a_decoder_where_there_is_one(archive, tmp_path):
    torch = pytest.importorskip("torch")
    import checkpoints

    torch.save(checkpoints.comma_decoder(vocabulary=70), tmp_path / "decoder.bin")
    seeing.report(archive, tmp_path / "r.html", decoder=tmp_path / "decoder.bin", compute=CPU)
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert {(t["width"], t["height"]) for tag, t in page.tags if tag == "img"} == {("64", "48")}


# --- what stands out


def part(by_frame: np.ndarray) -> told.Part:
    bits = np.repeat(np.asarray(by_frame, np.float32), SPEC.positions).reshape(-1, 3, 4)
    return told.Part("x", SPEC, np.zeros(bits.shape, np.int64), bits)


def test_moments_are_where_the_bits_rise_over_what_is_usual_there():
    quiet, loud = np.full(300, 2.0), np.full(300, 6.0)
    quiet[120], quiet[10], loud[200] = 4, 9, 7  # frame 10 is in the first second
    quiet[121] = 3.9  # part of the same moment
    found = told.moments([part(quiet), part(loud)])
    assert [(m.part, m.frame) for m in found[:2]] == [(0, 120), (1, 200)]
    assert len(found) == 10 and (0, 10) not in [(m.part, m.frame) for m in found]
    assert found[0].usual == 2


def test_the_dearest_and_the_cheapest_frames_leave_out_first_ones():
    bits = np.linspace(3, 4, 100)
    bits[0], bits[40], bits[70] = 10, 8, 1
    dearest, cheapest = told.extremes([part(bits)])
    assert dearest[0].frame == 40 and cheapest[0].frame == 70


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(0, 16, width=32), min_size=1, max_size=120), min_size=1, max_size=4))
def test_any_costs_make_a_page(costs):
    parts = [part(np.array(values)) for values in costs]
    for moment in (*told.moments(parts), *told.extremes(parts)[0], *told.extremes(parts)[1]):
        assert 0 <= moment.frame < len(costs[moment.part])
    frames = [m.frame for m in told.moments(parts) if m.part == 0]
    assert all(abs(a - b) >= told.APART for a in frames for b in frames if a != b)
    rows = [told.Row(p.name, len(p.ids), p.ids.size, p.ids.size, float(p.bits.sum()) / 8, "gpt") for p in parts]
    whole = told.Report("t", SUMMARY, "0", rows, parts, False, True)
    Page(write_page(whole, {SPEC: Painter(Palette(SPEC))}))


SUMMARY = told.Summary(1, 12, 11, 10, 4, 0, 5, 0, 1.1, 2.0, 0.0, 0.0)


def test_the_learning_curve_is_a_mean_over_segments_by_frame():
    curve = told.learning_curve([part(np.full(50, 2.0)), part(np.full(100, 4.0))])
    assert curve[0][1] == pytest.approx(3) and curve[-1][1] == pytest.approx(4)
    assert [f for f, *_ in curve] == sorted(f for f, *_ in curve)
    assert told.learning_curve([part(np.full(1, 2.0))]) == []


def test_time_is_told_where_the_frames_a_second_are_known():
    from vqcomp.data.specs import COMMAVQ
    from vqcomp.world.page import _clock

    comma = replace(part(np.ones(3)), spec=COMMAVQ)
    assert _clock(comma, 1230) == "1:01.5" and _clock(part(np.ones(3)), 1230) == "1,230"


def test_numbers_of_moments_near_each_other_lie_one_above_the_other():
    chart = page._chart([("main", [(0, 1), (100, 1)])], [], 0, 2, [(x, 1, str(x), "#") for x in (10, 90, 12, 91, 11)])
    assert re.findall(r"--lift:(\d)|>(\d+)</a>", chart) == [
        ("", "10"), ("", "90"), ("1", ""), ("", "12"), ("1", ""), ("", "91"), ("2", ""), ("", "11"),
    ]  # fmt: skip
