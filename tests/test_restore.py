"""What becomes of files in the output folder: older ones of lost names, and names that the system cannot have."""

from __future__ import annotations

import errno
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import tokens

import vqcomp
from vqcomp import InputError, UnsafeNameError
from vqcomp.runtime import disk
from vqcomp.runtime.reader import Reader
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


@pytest.mark.parametrize("name", ["../out.npy", "a/../../out.npy", "/{tmp}/elsewhere/out.npy", "link/out.npy"])
def test_nothing_is_written_or_made_outside_of_the_folder_even_where_the_manifest_says_so(tmp_path, name):
    """The decoder in a zip does not check names when it opens an archive."""
    vqcomp.compress({"a.npy": tokens((4, 2, 3))}, tmp_path / "out.zip", model="none")
    zipfile.ZipFile(tmp_path / "out.zip").extractall(tmp_path / "unpacked")
    back = tmp_path / "home" / "back"
    back.mkdir(parents=True)
    (tmp_path / "target").mkdir()
    (back / "link").symlink_to(tmp_path / "target", target_is_directory=True)
    before = sorted(tmp_path.rglob("*"))
    with Reader(tmp_path / "unpacked") as opened:
        (segment,) = opened.manifest.segments
        segment = segment._replace(name=name.format(tmp=tmp_path))
        opened.manifest = opened.manifest._replace(segments=(segment,))
        with pytest.raises(UnsafeNameError, match="link leads out of"):
            restore(opened, back)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_exists_is_refused_before_anything_is_decoded(tmp_path, monkeypatch):
    vqcomp.compress({"a.npy": tokens((4, 2, 3))}, tmp_path / "out.zip", model="none")
    (tmp_path / "back").mkdir()
    (tmp_path / "back/a.npy").write_text("mine")
    monkeypatch.setattr("vqcomp.api.restore", None)
    with pytest.raises(InputError, match="exists already; -f"):
        vqcomp.decompress(tmp_path / "out.zip", tmp_path / "back")


def test_too_little_disk_is_found_before_anything_is_made(tmp_path, monkeypatch):
    vqcomp.compress({"a.npy": tokens((4, 2, 3))}, tmp_path / "out.zip", model="none")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("vqcomp.data.outputs.shutil.disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(InputError, match="too little disk: 176 bytes are needed, 100 are free"):
        vqcomp.decompress(tmp_path / "out.zip", tmp_path / "new/back")
    assert not (tmp_path / "new").exists()
