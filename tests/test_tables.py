"""What the mixer declares in tables: FORMAT.md has the same rows, and every number lies within its size."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vqcomp
from vqcomp.runtime.contexts import CONFIDENCES, CONTEXTS, MATCHES, SETS, Decisions, Past
from vqcomp.runtime.mixed import GivenMixer
from vqcomp.runtime.mixing import OPINIONS
from vqcomp.runtime.opinions import LOGIT_MAX
from vqcomp.runtime.spec import TokenSpec

FORMAT = (Path(vqcomp.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")
LATER = ", if f > 0"


def table(first_header: str) -> list[list[str]]:
    """The cells of the one table in FORMAT.md whose first header this is."""
    (rows,) = re.findall(rf"^\| {first_header} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", FORMAT, re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()]


def test_contexts_are_those_of_the_document_in_its_order():
    found = [(name.removesuffix(LATER), name.endswith(LATER)) for name, *_ in table("kind of context")]
    assert found == [(context.name, context.later) for context in CONTEXTS]


def test_sets_are_those_of_the_document_in_its_order_and_of_its_sizes():
    past = Past(TokenSpec(3, 5, (700,)), 0, 1)
    values = {"L": past.levels, "S": past.positions}
    found = []
    for name, _, size in table("kind of set"):
        product = 1
        for word in size.split():
            product *= values[word] if word in values else int(word)
        found.append((name, product))
    assert found == [(kind.name, kind.size(past) * (past.levels if kind.by_level else 1)) for kind in SETS]


def test_opinions_and_their_first_weights_are_those_of_the_document_in_its_order():
    found = [(name, int(alone or 0), int(beside)) for name, _, alone, beside in table("opinion")]
    assert found == [tuple(opinion) for opinion in OPINIONS]


def test_a_set_is_chosen_either_before_the_frame_or_during_it():
    assert all((kind.before is None) != (kind.during is None) for kind in SETS)


def test_no_more_is_mixed_than_the_bounds_of_the_document_allow():
    mixer = GivenMixer(TokenSpec(2, 2, (5, 6)), 1, 1, np.zeros((6, 2)))
    assert len(mixer.weights[0]) <= 1 << 8 and len(SETS) <= 8


@given(st.data(), st.lists(st.integers(2, 9), min_size=1, max_size=3), st.integers(1, 3))
def test_numbers_of_contexts_and_sets_lie_within_their_sizes(data, factors, segments):
    spec = TokenSpec(2, 3, tuple(factors))
    f = data.draw(st.integers(0, len(factors) - 1))
    past = Past(spec, f, segments)
    for time in range(4):
        going = data.draw(st.integers(1, segments)) if time == 3 else segments
        frame = np.array([[[data.draw(st.integers(0, n - 1)) for n in factors]] * 6] * going)  # (G, S, F)
        past.begin(frame[:, :, :f])
        numbers = {c.name: (c.number(past), c.size(past)) for c in CONTEXTS if f or not c.later}
        numbers |= {kind.name: (kind.before(past), kind.size(past)) for kind in SETS if kind.before}
        for name, (number, size) in numbers.items():
            assert number.shape == (going * 6,) and number.dtype == np.int64, name
            assert number.min() >= 0 and number.max() < size, name
        past.push(frame[:, :, f])


@pytest.mark.parametrize("logit", [-LOGIT_MAX, -1, 0, LOGIT_MAX, None])
@pytest.mark.parametrize("match", [0, MATCHES - 1])
def test_numbers_of_sets_that_are_chosen_during_a_frame_lie_within_their_sizes(logit, match):
    past = Past(TokenSpec(1, 1, (2,)), 0, 1)
    decisions = Decisions(np.array([[match]]), None if logit is None else np.array([[float(logit)]]))
    for kind in SETS:
        if kind.during:
            number = np.broadcast_to(kind.during(decisions), (1, 1))
            assert 0 <= number.item() < kind.size(past), kind.name


def test_confidence_tells_all_its_steps_apart():
    (kind,) = (kind for kind in SETS if kind.name == "confidence")
    logits = np.arange(-LOGIT_MAX, LOGIT_MAX + 1.0)
    assert np.unique(kind.during(Decisions(logits.astype(np.int64), logits))).tolist() == list(range(CONFIDENCES))
