"""Archives are decoded by Pythons for which there is NumPy alone: on aarch64, and by the newest one."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from conftest import tokens
from foreign import COMMANDS, FOLDER, command

import vqcomp

PYTHONS = {"aarch64": "aarch64 3.11", "newest": "x86_64 3.14"}


def run(name, *arguments, **variables):
    """A foreign Python with its NumPy; skips the test where it is not."""
    python = command(name)
    if not python:
        pytest.skip(f"no foreign Python {name!r}; `{sys.executable} tests/foreign.py` fetches it")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment |= {"PYTHONPATH": str(FOLDER / name / "packages"), "VQCOMP_NO_PIP": "1", **variables}
    return subprocess.run([*python, *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("codec", ["adaptive", "gpt", "mixed"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_zip_decodes_where_there_is_numpy_and_no_constriction(tmp_path, tiny_model, name, codec):
    found = run(name, "-c", "import platform, sys; print(platform.machine(), '%d.%d' % sys.version_info[:2])")
    assert found.stdout.strip() == PYTHONS[name], found.stderr
    array = tokens((6, 3, 4), 70)
    model = "none" if codec == "adaptive" else tiny_model
    vqcomp.compress({"a.npy": array}, tmp_path / "a.zip", model=model, adapt=codec != "gpt")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path)
    done = run(name, str(tmp_path / "decompress.py"), "--jobs", "1", OUTPUT_DIR=str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("note: constriction 0.5.0 is not here")
    restored = np.load(tmp_path / "out/a.npy")
    assert restored.dtype == array.dtype
    np.testing.assert_array_equal(restored, array)
