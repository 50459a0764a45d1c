"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from networks import random_tensors, tiny_config

from vqcomp.runtime.engine import Engine
from vqcomp.runtime.exact import make_ops
from vqcomp.runtime.loading import self_test
from vqcomp.runtime.weights import write_model

REPOSITORY = Path(__file__).parent.parent

# A shell that runs the tests in the background has SIGINT ignored, and vqcomp leaves it at that; some tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def example() -> Path:
    """The real segment, (1200, 8, 16) int16; tests that need it are skipped where it is missing."""
    path = Path(os.environ.get("VQCOMP_DATA", REPOSITORY.parent / "shared")) / "data/commavq/example.npy"
    if not path.exists():
        pytest.skip(f"no real data: {path} is missing (VQCOMP_DATA is the folder that holds data/commavq)")
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .vqm file for frames of 3 x 4 tokens of 70 ids."""
    config = tiny_config()
    tensors = random_tensors(config)
    path = tmp_path_factory.mktemp("model") / "tiny.vqm"
    path.write_bytes(write_model(config, tensors, self_test(Engine(config, tensors, make_ops("numpy")))))
    return path


def tokens(shape: tuple[int, ...], vocabulary: int = 70, dtype: str = "<i2", seed: int = 0) -> np.ndarray:
    """Ids of which most repeat the frame before."""
    random = np.random.RandomState(seed)
    array = random.randint(0, vocabulary, shape)
    for t in range(1, shape[0]):
        stay = random.rand(*shape[1:]) < 0.7
        array[t][stay] = array[t - 1][stay]
    return array.astype(dtype)


def files_in(folder: Path) -> set[str]:
    """Names of all files at any depth, hidden ones too."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def told() -> Callable[..., type]:
    """A function that makes a class to stand for `Estimator`: it is told its estimates."""

    def make(plain: Any, others: dict[str, Any], decoder: int) -> type:
        class Told:
            sample, streams = SimpleNamespace(numbers=None), {}

            def __init__(self, *_: Any, **__: Any) -> None:
                self.plain = plain

            def decoder(self, _: Any) -> int:
                return decoder

            def by_itself(self, model: Any) -> Any:
                return others[model.name]

            def in_full(self, models: Any) -> Any:
                return others[models[0].name]

        return Told

    return make
