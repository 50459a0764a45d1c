"""What becomes of files in the output folder: older ones of lost names, and names that the system cannot have."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import tokens

import vqcomp
from vqcomp.runtime import disk
from vqcomp.runtime.restore import restore


@pytest.fixture
def archive(tmp_path):
    """A zip of two segments in two streams, the first of which is damaged."""
    data = {"a.npy": tokens((4, 2, 3)), "b.npy": tokens((4, 3, 2))}
    vqcomp.compress(data, tmp_path / "out.zip", model="none", group_size=1)
    with vqcomp.open(tmp_path / "out.zip") as opened:
        position = opened._start
    content = bytearray((tmp_path / "out.zip").read_bytes())
    content[position] ^= 1
    (tmp_path / "out.zip").write_bytes(content)
    return tmp_path / "out.zip"


def test_an_older_file_of_a_lost_name_is_set_aside_and_that_is_said(archive, tmp_path):
    out = tmp_path / "back"
    out.mkdir()
    (out / "a.npy").write_text("older")
    (out / "a.npy.old").write_text("oldest")
    with vqcomp.open(archive) as opened:
        lost = restore(opened, out)
    assert list(lost) == ["a.npy"]
    assert "a.npy.old2" in lost["a.npy"]
    assert (out / "a.npy.old2").read_text() == "older"
    assert (out / "a.npy.old").read_text() == "oldest"
    assert not (out / "a.npy").exists()
    assert np.load(out / "b.npy").shape == (4, 3, 2)


def test_a_name_that_the_system_cannot_have_loses_that_file_alone(tmp_path, monkeypatch):
    data = {"a.npy": tokens((4, 2, 3)), "b.npy": tokens((4, 2, 3), seed=1)}
    vqcomp.compress(data, tmp_path / "out.zip", model="none")
    replace = os.replace

    def picky(source, target):
        if Path(target).name == "a.npy":
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        replace(source, target)

    monkeypatch.setattr(disk.os, "replace", picky)
    with vqcomp.open(tmp_path / "out.zip") as opened:
        lost = restore(opened, tmp_path / "back")
    assert list(lost) == ["a.npy"] and "name" in lost["a.npy"]
    assert os.listdir(tmp_path / "back") == ["b.npy"]
