"""What the trial (tests/trial) has found, each as a property of its own."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
import zlib
from contextlib import suppress

import numpy as np
import pytest
from conftest import REPOSITORY, files_in, tokens

import vqcomp
from vqcomp import ArchiveError, FormatError, InputError, ModelError
from vqcomp.cli import run
from vqcomp.runtime import layout, weights
from vqcomp.runtime.compute import Compute
from vqcomp.runtime.manifest import CHECK

NUMPY = Compute("numpy", jobs=1)
posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A zip of ten segments in two streams, and of a file that is kept."""
    folder = tmp_path_factory.mktemp("trust")
    (folder / "data").mkdir()
    for i in range(10):
        np.save(folder / f"data/{i}.npy", tokens((2, 3, 4), seed=i))
    (folder / "data/notes").write_bytes(b"note " * 1000)
    vqcomp.compress(folder / "data", folder / "a.zip", model="none", keep_all=True, compute=NUMPY)
    return folder / "a.zip"


def entries(path):
    with zipfile.ZipFile(path) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def pack(path, parts, methods=None):
    with zipfile.ZipFile(path, "w") as opened:
        for name, data in parts.items():
            opened.writestr(name, data, (methods or {}).get(name, zipfile.ZIP_STORED))
    return path


def forged(archive, path, edit):
    """The archive with a manifest that `edit` has changed, its checksum made right."""
    parts = entries(archive)
    table = json.loads(parts[layout.MANIFEST])
    del table["check"]
    edit(table)
    body = json.dumps(table, separators=(",", ":")).encode()[:-1]
    parts[layout.MANIFEST] = body + CHECK.format(hashlib.sha256(body).hexdigest()).encode()
    return pack(path, parts)


def test_a_zip_that_lost_bytes_anywhere_is_called_damaged(archive, tmp_path, capsys):
    data, path = archive.read_bytes(), tmp_path / "lost.zip"
    for start in range(0, len(data) - 40, 257):
        path.write_bytes(data[:start] + data[start + 40 :])
        assert run(["test", str(path), "--device", "numpy", "-q"]) == 3, start
    assert not [line for line in capsys.readouterr().err.splitlines() if "Errno" in line]


@pytest.mark.parametrize("field", [16, 12, 10, 20], ids=["offset", "size", "count", "comment"])
@pytest.mark.parametrize("value", [1, 77, 0xFFFE])
def test_a_directory_that_lies_is_damage(archive, tmp_path, field, value):
    data = bytearray(archive.read_bytes())
    end = data.rindex(b"PK\5\6")
    struct.pack_into("<H", data, end + field, value)
    (tmp_path / "x.zip").write_bytes(data)
    assert run(["test", str(tmp_path / "x.zip"), "--device", "numpy", "-q"]) in (0, 3)


def test_a_forged_length_of_deflated_data_takes_no_memory(archive, tmp_path):
    data = bytearray(archive.read_bytes())
    at = data.index(b"PK\1\2")  # of decompress.py
    struct.pack_into("<I", data, at + 20, 0xFFFFFFF0)
    (tmp_path / "x.zip").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ArchiveError):
        vqcomp.check(tmp_path / "x.zip", compute=NUMPY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 << 20  # the tables of the codec are most of it


def test_a_zip_with_a_member_of_no_name_is_read_or_refused_in_words(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        opened.writestr("a.npy", b"x")
    data = bytearray((tmp_path / "x.zip").read_bytes())
    at = data.index(b"PK\1\2")
    struct.pack_into("<HH", data, at + 28, 0, 5)  # its name becomes an extra field
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(InputError):
        vqcomp.compress(tmp_path / "x.zip", tmp_path / "out.zip", model="none", compute=NUMPY)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_entries_packed_by_other_programs_and_then_damaged_are_called_damaged(archive, tmp_path, method):
    parts = entries(archive)
    path = pack(tmp_path / "x.zip", parts, {layout.MANIFEST: method, layout.BOOTSTRAP: method})
    assert run(["test", str(path), "--device", "numpy", "-q"]) == 0
    with zipfile.ZipFile(path) as opened:
        info = opened.getinfo(layout.MANIFEST)
    data = path.read_bytes()
    start = info.header_offset + 30 + len(info.filename)
    for at in range(start, start + info.compress_size, 7):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        code = run(["test", str(path), "--device", "numpy", "-q"])
        assert code == 3 or (code == 0 and entries(path) == parts), at  # LZMA has bytes that nobody looks at


def _frames(table, frames):
    table["segments"]["shape"] = {"all": [frames, 3, 4]}


@pytest.mark.parametrize(
    "edit",
    [
        lambda t: t["groups"].update(count=10**8),
        lambda t: t.update(groups={**{key: {"all": 1} for key in t["groups"]}, "count": 10**8}),
        lambda t: t["specs"][0].update(factors=[2] * 100_000),
        lambda t: _frames(t, 10**8),
        lambda t: _frames(t, 2**62),
        lambda t: t["files"].update(bytes=[10**15]),
        lambda t: t["groups"].update(bytes=[10**15, 0]),
        lambda t: t.update(model={"bytes": 10**18, "sha256": ""}),
        lambda t: t.update(segments=None),
        lambda t: t["segments"].update(crc32=["x"] * 10),
        lambda t: t.pop("groups"),
        lambda t: t.pop("format"),
        lambda t: t["segments"].update(name=[None] * 10),
    ],
    ids=[
        "count", "equals", "factors", "frames", "many", "file", "stream", "model", "kind", "text", "gone", "old",
        "none",
    ],
)  # fmt: skip
def test_a_forged_manifest_is_refused_when_it_is_read_in_words(archive, tmp_path, edit):
    with pytest.raises(FormatError) as error:
        vqcomp.open(forged(archive, tmp_path / "x.zip", edit), NUMPY)
    assert not any(python in str(error.value) for python in ("Error(", "None", "object"))


def test_a_stream_is_believed_as_many_tokens_as_it_could_hold_and_not_one_frame_more(archive, tmp_path):
    sizes = json.loads(entries(archive)[layout.MANIFEST])["groups"]["bytes"]
    most = (8 * sizes[1] + 96) << 16  # of the second stream's two segments

    def edit(table, extra):
        frames = most // 12 - 2 + extra
        table["segments"]["shape"] = [[2, 3, 4]] * 8 + [[frames, 3, 4], [2, 3, 4]]

    with vqcomp.open(forged(archive, tmp_path / "most.zip", lambda t: edit(t, 0)), NUMPY) as opened:
        assert len(opened) == 10
    with pytest.raises(FormatError, match="cannot hold"):
        vqcomp.open(forged(archive, tmp_path / "more.zip", lambda t: edit(t, 1)), NUMPY)


def test_tokens_are_never_squeezed_into_a_type_that_is_too_small(archive, tmp_path):
    wide = {"w": np.full((2, 3, 4), 300, "<i2")}
    vqcomp.compress(wide, tmp_path / "w.zip", model="none", compute=NUMPY)
    path = forged(tmp_path / "w.zip", tmp_path / "x.zip", lambda t: t["segments"].update(dtype=["|u1"]))
    with vqcomp.open(path, NUMPY) as opened, pytest.raises(FormatError, match="too small for its ids"):
        dict(opened.decode())


def test_a_file_of_constant_bytes_is_within_what_xz_may_hold(tmp_path):
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data/a.npy", tokens((1, 3, 4)))
    (tmp_path / "data/zeros").write_bytes(bytes(1 << 25))
    vqcomp.compress(tmp_path / "data", tmp_path / "a.zip", model="none", keep_all=True, compute=NUMPY)
    with vqcomp.open(tmp_path / "a.zip", NUMPY) as opened:
        assert opened.kept[0].size == 1 << 25


@posix
@pytest.mark.parametrize("entry", [layout.MANIFEST, layout.STREAMS, layout.FILES])
def test_a_named_pipe_or_a_device_in_an_unpacked_archive_is_refused(archive, tmp_path, entry):
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path / "pipe")
        opened.extractall(tmp_path / "device")
    for folder, make in (("pipe", os.mkfifo), ("device", lambda p: os.symlink("/dev/zero", p))):
        (tmp_path / folder / entry).unlink()
        make(tmp_path / folder / entry)
        with pytest.raises(ArchiveError, match="regular file"):
            vqcomp.check(tmp_path / folder, compute=NUMPY)


@posix
def test_a_named_pipe_in_the_place_of_an_archive_is_refused(tmp_path):
    os.mkfifo(tmp_path / "x.zip")
    assert run(["list", str(tmp_path / "x.zip")]) == 1


@posix
def test_a_link_to_itself_is_one_bad_file_among_good_ones(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data/a.npy", tokens((1, 3, 4)))
    (tmp_path / "data/loop.npy").symlink_to("loop.npy")
    arguments = ["compress", str(tmp_path / "data"), str(tmp_path / "a.zip"), "--model", "none", "--device", "numpy"]
    assert run(arguments) == 1
    assert "loop.npy" in capsys.readouterr().err
    assert run([*arguments, "--skip-bad"]) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"stack": 65536}, {"blocks": 65536}, {"factors": [2] * 100_000},
        {"dim": 2000, "hidden": 2000, "blocks": 1000},
        {"dim": None}, {"height": True}, {"dim": "@"}, {"copies": [[1, 0, "@"]]}, {"flags": 7},
        {"window": True, "rank": -1},
    ],
    ids=str,
)  # fmt: skip
def test_a_forged_model_config_is_refused_before_any_work(tiny_model, change):
    data = tiny_model.read_bytes()
    config, check, start = weights.read_config(data)
    text = json.dumps({**config.to_dict(), **change}).replace('"@"', "1e999")
    header = zlib.compress(text.encode())
    body = weights.MAGIC + struct.pack("<I", len(header)) + header + struct.pack("<I", check) + data[start:-4]
    with pytest.raises(ModelError) as error:
        weights.read_model(body + struct.pack("<I", zlib.crc32(body)))
    assert "None" not in str(error.value)


# ---- interrupts


def usual_seconds(command):
    start = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY)
    return time.monotonic() - start


@posix
@pytest.mark.parametrize("everywhere", [False, True], ids=["the process", "as a terminal does"])
def test_an_interrupt_at_any_moment_ends_in_one_line_and_leaves_nothing(archive, tmp_path, everywhere):
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "vqcomp",
        "decompress",
        str(archive),
        "-o",
        str(out),
        "--device",
        "numpy",
        "-j",
        "2",
    ]
    command.append("-q")
    seconds = usual_seconds(command)
    whole = {name: (out / name).read_bytes() for name in files_in(out)}
    codes = []
    for i in range(12):
        for name in files_in(out):
            (out / name).unlink()
        process = subprocess.Popen(
            [*command, "-f"], stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, start_new_session=True
        )
        time.sleep(seconds * (i + 1) / 12)
        with suppress(ProcessLookupError):
            (os.killpg if everywhere else os.kill)(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        codes.append(process.returncode)
        if "<frozen site>" in errors:  # Python itself had not started yet
            continue
        # A terminal's interrupt may end Python itself (-2), after the line or before; or come when all is restored.
        assert (process.returncode, errors.strip()) in ((130, "interrupted"), (-2, "interrupted"), (-2, ""), (0, ""))
        found = {name: (out / name).read_bytes() for name in files_in(out)}
        assert found == whole or (process.returncode != 0 and not found) or process.returncode == -2
    assert 130 in codes


@posix
def test_a_second_interrupt_does_not_disturb_the_tidying_up(tmp_path):
    code = (
        "import os, signal, sys, time\n"
        "from vqcomp.runtime.main import terminate\n"
        "signal.signal(signal.SIGINT, terminate)\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT); time.sleep(9)\n"
        "except KeyboardInterrupt:\n"
        "    os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGTERM); print('tidy')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.returncode, done.stdout, done.stderr) == (0, "tidy\n", "")


@posix
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupt_that_comes_where_no_exception_gets_out_is_not_lost(name, code):
    program = (
        "import os, signal, sys, time\n"
        "from vqcomp import cli\n"
        "class Last:\n"
        f"    def __del__(self): os.kill(os.getpid(), signal.{name}); time.sleep(0.01)\n"
        "def verb(*_, **__):\n    Last()\n    time.sleep(60)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "cli.cli.main = verb\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, timeout=50)
    assert (done.returncode, done.stderr) == (code, "interrupted\n" if code == 130 else "")


def test_a_checkpoint_with_any_byte_changed_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    from vqcomp.training.checkpoint import read_checkpoint, write_checkpoint

    path = tmp_path / "m.ckpt"
    write_checkpoint(path, {"w": torch.arange(40.0), "v": torch.ones(40)})
    data = path.read_bytes()
    assert read_checkpoint(path, {})["v"].sum() == 40
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x5A]) + data[at + 1 :])
        with pytest.raises(InputError, match="damaged"):
            read_checkpoint(path, {})


def test_the_package_is_there_at_once_and_names_all_that_it_offers():
    code = (
        "import sys, vqcomp\n"
        "assert 'numpy' not in sys.modules\n"
        "assert all(getattr(vqcomp, name) for name in vqcomp.__all__)\n"
        "assert vqcomp.open is vqcomp.api.open_archive\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


@pytest.mark.parametrize("policy", [None, "ACTIVE"])
def test_torchs_threads_soon_wait_instead_of_spinning_also_from_python(policy):
    pytest.importorskip("torch")
    environment = {name: value for name, value in os.environ.items() if "OMP_" not in name}
    environment |= {"OMP_WAIT_POLICY": policy} if policy else {}
    # The policy is what the environment says at the moment in which torch comes in.
    program = (
        "import importlib.abc, os, sys\n"
        "class Watch(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': print(os.environ['OMP_WAIT_POLICY'], os.environ.get('GOMP_SPINCOUNT'))\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import vqcomp\n"
        "from vqcomp.runtime.exact import make_ops\n"
        "make_ops('cpu')\n"
    )
    shown = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ([policy, "None"] if policy else ["PASSIVE", "10000"])
