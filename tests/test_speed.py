"""benchmarks/speed.py runs, at sizes so small that its figures mean nothing: on a GPU it is the same code."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from conftest import REPOSITORY

DEVICES = [
    "numpy",
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
def test_the_benchmark_of_speed_measures_all_that_it_is_asked_for(tmp_path, monkeypatch, device):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    monkeypatch.delitem(sys.modules, "speed", raising=False)
    import speed

    found, picture = tmp_path / "speed.json", tmp_path / "speed.svg"
    threads = torch.get_num_threads()
    try:
        speed.main(
            f"--model pico --device {device} --batches 1,3 --frames 2 --threads 1 --repeats 1 "
            f"--json {found} --plot {picture}".split()
            + ([] if device == "numpy" else ["--train", "pico", "--tiny-steps"])
        )
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(found.read_text())
    assert [(row["what"], row["segments"]) for row in rows if row["what"] != "train"] == [
        ("encode", 1), ("decode", 1), ("encode", 3), ("decode", 3)
    ]  # fmt: skip
    assert len(rows) == (4 if device == "numpy" else 5)
    assert all(row["tokens/s"] > 0 and row["share"] > 0 for row in rows)
    assert picture.read_text().count("<path") > 10
