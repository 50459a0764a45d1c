"""Every command in the README works as written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
INDENTED = re.findall(r"(?:^    \S.*\n)+", README, re.MULTILINE)
COMMANDS = [line.strip() for block in INDENTED for line in block.splitlines()]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with some tokens, in which commands run one after another as a reader would type them."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "tokens").mkdir()
    random = np.random.default_rng(0)
    np.save(folder / "tokens" / "drive.npy", random.integers(0, 1024, (4, 8, 16)).astype(np.int16))
    return folder


@pytest.mark.skipif(os.name == "nt", reason="the README's commands are for a POSIX shell")
def test_commands_and_python_run_in_order(folder):
    # `unzip` is not on every machine; Python's own does the same.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    unzip = 'unzip() { python -m zipfile -e "$1" .; }; python() { ' + sys.executable + ' "$@"; }; '
    run = [command for command in COMMANDS if command.startswith("vqcomp")]
    assert len(run) >= 10
    for command in run:
        command = command.replace("# or, where there is no vqcomp: ", "&& ")
        done = subprocess.run(
            ["bash", "-c", unzip + command], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    for code in PYTHON:
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{code}\n{done.stderr}"


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_targets_exist():
    targets = {word for c in COMMANDS if c.startswith("make ") for word in c.split("#")[0].split()[1:]}
    assert {"demo", "test", "check", "bench"} <= targets
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_files_that_the_readme_names_exist():
    for name in re.findall(r"\]\(([\w/.-]+)\)", README) + re.findall(r"`((?:vqcomp|models)/[\w/.-]*)`", README):
        assert (ROOT / name).exists(), name
