"""The zip restores itself: with its own modules, where vqcomp has never been, as comma's evaluation runs it."""

from __future__ import annotations

import ast
import bz2
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, files_in, tokens
from shipped import EXTERNAL

import vqcomp
from vqcomp.archive import packing
from vqcomp.runtime import coder
from vqcomp.runtime import layout as format
from vqcomp.runtime.launch import NUMPY

LATE = ("torch", "huggingface_hub")
"""What decoding may use where it is there."""
RUNTIME = REPOSITORY / "vqcomp/runtime"
OWN = {"decompress.py", format.RUNTIME, format.MODEL, format.STREAMS, format.MANIFEST}


def arrays():
    # Names that would shadow modules, if their folder were searched for modules.
    return {
        "json.py": tokens((3, 3, 4), seed=1),
        "numpy/__init__.py": tokens((2, 12), seed=2, dtype=">i4"),
        "no extension": tokens((4, 3, 4), seed=3, dtype="<i8"),
        "other/wide.npy": tokens((2, 2, 3), 900, seed=4),
    }


@pytest.fixture(scope="module")
def archives(tmp_path_factory, tiny_model):
    """Zips by name of what they need: both codecs, or one."""
    folder = tmp_path_factory.mktemp("archives")
    data = {
        "both": arrays(),
        "gpt": {n: a for n, a in arrays().items() if a.max() < 70},
        "adaptive": {n: a for n, a in arrays().items() if a.max() >= 70},
    }
    data["mixed"] = data["gpt"]
    for name, items in data.items():
        model = "none" if name == "adaptive" else tiny_model
        vqcomp.compress(items, folder / f"{name}.zip", model=model, adapt=name == "mixed", grid=(3, 4))
    return {name: (folder / f"{name}.zip", items) for name, items in data.items()}


@pytest.fixture
def unpacked(archives, tmp_path):
    """A function that unpacks an archive into a folder and returns (that folder, the arrays)."""

    def unpack(name, folder="unpacked"):
        path, items = archives[name]
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path / folder)
        return tmp_path / folder, items

    return unpack


def run(folder, cwd, *arguments, without=(), before="", **variables):
    """Run decompress.py in `folder` as a program, on a Python that has no vqcomp nor what is named in `without`."""
    code = (
        # What Python does for a script: its folder is searched first, the working folder is not.
        "import sys; del sys.path[0]\n"
        "import os, runpy; sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[1])))\n"
        f"for name in {['vqcomp', *without]!r}: sys.modules[name] = None\n"
        f"{before}\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    harness = folder.parent / "harness.py"
    harness.write_text(code, "utf-8")
    environment = {k: v for k, v in os.environ.items() if k not in ("OUTPUT_DIR", "PYTHONPATH")}
    return subprocess.run(
        [sys.executable, harness, os.path.relpath(folder / "decompress.py", cwd), *arguments],
        cwd=cwd,
        env={**environment, "VQCOMP_NO_PIP": "1", **{k: str(v) for k, v in variables.items()}},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def check_files(folder, items, others=frozenset()):
    assert files_in(folder) == items.keys() | others
    for name, array in items.items():
        # Opened as bytes: np.load by a path would look the same if a suffix had been added.
        with open(folder / name, "rb") as handle:
            found = np.load(handle)
        assert (found.dtype.str, found.shape) == (array.dtype.str, array.shape)
        np.testing.assert_array_equal(found, array)


# ---- what is shipped


@pytest.mark.parametrize("name", ["both", "gpt", "mixed", "adaptive"])
def test_shipped_modules_are_the_repositorys_stripped(unpacked, name):
    folder, _ = unpacked(name)
    runtime = (folder / format.RUNTIME).read_bytes()
    assert (folder / "decompress.py").read_bytes() == packing.bootstrap(runtime)
    shipped = dict(module.split("\n", 1) for module in bz2.decompress(runtime).decode().split("\0"))
    assert shipped == {module: packing.stripped_modules()[module] for module in shipped}
    assert {"__init__", "main", "reader", "codec", "errors", "spec"} < shipped.keys()
    assert ("gpt" in shipped) == (name in ("both", "gpt"))
    assert ("adapt" in shipped) == (name != "gpt")


def test_every_runtime_module_is_shipped_by_some_archive():
    shipped = {"decompress", *packing.runtime_modules(EXTERNAL)}
    assert {path.stem for path in RUNTIME.glob("*.py")} == shipped


@pytest.mark.parametrize("path", sorted(RUNTIME.glob("*.py")), ids=lambda p: p.name)
def test_runtime_modules_import_only_each_other_numpy_constriction_and_perhaps_others(path):
    tree = ast.parse(path.read_text("utf-8"), feature_version=(3, 10))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level in (0, 1)
            names = [node.module] if node.level == 0 else []
            if node.level == 1:
                modules = [node.module] if node.module else [alias.name for alias in node.names]
                assert all((RUNTIME / f"{module}.py").exists() for module in modules)
        for name in names:
            root = name.partition(".")[0]
            assert root in sys.stdlib_module_names or root in ("numpy", "constriction", *LATE)
    at_once = [name for n in tree.body for name in ([n.module] if isinstance(n, ast.ImportFrom) else
               [a.name for a in n.names] if isinstance(n, ast.Import) else [])]  # fmt: skip
    assert not {*LATE} & {str(name).partition(".")[0] for name in at_once}, "imported inside functions only"


def test_the_package_pins_the_version_of_constriction_that_streams_rely_on():
    assert f'"constriction=={coder.CONSTRICTION};' in (REPOSITORY / "pyproject.toml").read_text("utf-8")


# ---- restoring


@pytest.mark.parametrize("without", [(), ("torch",)], ids=["with torch", "without torch"])
@pytest.mark.parametrize("name", ["both", "gpt", "mixed", "adaptive"])
def test_an_unpacked_archive_restores_itself_where_vqcomp_is_not_installed(unpacked, tmp_path, name, without):
    folder, items = unpacked(name)
    before = files_in(folder)
    done = run(folder, tmp_path, without=without)
    assert (done.returncode, done.stdout) == (0, "")
    assert f"restored {len(items)} file" in done.stderr
    check_files(tmp_path / "decompressed", items)
    assert files_in(folder) == before


def test_the_output_folder_may_be_the_unpacked_archive_itself_and_twice(unpacked, tmp_path):
    folder, items = unpacked("both", "compression_challenge_submission_decompressed")
    for _ in range(2):
        done = run(folder, tmp_path, OUTPUT_DIR="./compression_challenge_submission_decompressed/")
        assert done.returncode == 0, done.stderr
        check_files(folder, items, OWN)


@pytest.mark.parametrize("name", ["adaptive", "mixed"])
def test_processes_that_have_nothing_to_do_are_not_asked_for(unpacked, tmp_path, name):
    folder, items = unpacked(name)  # of one group
    done = run(folder, tmp_path, "-j", "2", OUTPUT_DIR=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    check_files(tmp_path / "out", items)


@pytest.mark.parametrize("cwd", ["unpacked", "elsewhere"])
def test_it_runs_from_any_folder(unpacked, tmp_path, cwd):
    folder, items = unpacked("both")
    (tmp_path / "elsewhere").mkdir()
    done = run(folder, tmp_path / cwd, OUTPUT_DIR=tmp_path / "out/put")
    assert done.returncode == 0, done.stderr
    check_files(tmp_path / "out/put", items)


def test_some_segments_alone_are_restored(unpacked, tmp_path):
    folder, items = unpacked("both")
    done = run(folder, tmp_path, "--only", "json.py", "other/wide.npy", "--device", "numpy")
    assert done.returncode == 0, done.stderr
    check_files(tmp_path / "decompressed", {n: items[n] for n in ("json.py", "other/wide.npy")})
    done = run(folder, tmp_path, "--only", "nothing")
    assert done.returncode == 1
    assert "no nothing in the archive" in done.stderr


# ---- what can go wrong


def test_damaged_segments_are_listed_and_the_others_restored(unpacked, tmp_path):
    folder, items = unpacked("both")
    with vqcomp.open(folder) as archive:
        group = archive.manifest.groups[archive._segments["json.py"].group]
    content = bytearray((folder / format.STREAMS).read_bytes())
    content[group.offset] ^= 1
    (folder / format.STREAMS).write_bytes(content)
    done = run(folder, tmp_path)
    assert done.returncode == 3
    assert "1 of 4 files are lost:\n  json.py: its stream's checksum does not match" in done.stderr
    check_files(tmp_path / "decompressed", {n: a for n, a in items.items() if n != "json.py"})


@pytest.mark.parametrize("entry", [format.RUNTIME, format.MANIFEST, format.MODEL])
def test_damage_elsewhere_is_an_integrity_error_without_a_traceback(unpacked, tmp_path, entry):
    folder, _ = unpacked("gpt")
    content = bytearray((folder / entry).read_bytes())
    for place in (len(content) // 2, 20):
        content[place] ^= 16
        (folder / entry).write_bytes(content)
        done = run(folder, tmp_path)
        assert done.returncode == 3
        assert "damaged" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "decompressed").exists() or files_in(tmp_path / "decompressed") == set()


@pytest.mark.parametrize("entry", [format.RUNTIME, format.MANIFEST, format.MODEL, format.STREAMS])
def test_a_missing_file_is_named(unpacked, tmp_path, entry):
    folder, _ = unpacked("gpt")
    (folder / entry).unlink()
    done = run(folder, tmp_path)
    assert done.returncode == 3
    assert entry in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "decompressed").exists() or files_in(tmp_path / "decompressed") == set()


def test_an_output_folder_that_cannot_be_written_is_an_error_that_names_it(unpacked, tmp_path):
    folder, _ = unpacked("gpt")
    (tmp_path / "file").write_text("")
    done = run(folder, tmp_path, OUTPUT_DIR="file")
    assert done.returncode == 1
    assert "error: file: expected a folder, found a file" in done.stderr


@pytest.mark.parametrize("place", range(0, 4000, 331))
def test_a_runtime_with_one_flipped_bit_is_not_run(unpacked, tmp_path, place):
    folder, _ = unpacked("adaptive")
    content = bytearray((folder / format.RUNTIME).read_bytes())
    content[place % len(content)] ^= 1 << place % 8
    (folder / format.RUNTIME).write_bytes(content)
    # Neither is it unpacked: what unpacks it may have flaws.
    done = run(folder, tmp_path, before="import bz2; bz2.BZ2Decompressor = bz2.BZ2File = bz2.open = None")
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert f"{format.RUNTIME} is damaged" in done.stderr


# ---- what is not there


@pytest.mark.parametrize("name", ["both", "gpt", "mixed", "adaptive"])
def test_without_constriction_it_goes_on_and_says_so_in_one_line(unpacked, tmp_path, name):
    folder, items = unpacked(name)
    done = run(folder, tmp_path, without=["constriction"])
    assert done.returncode == 0, done.stderr
    note, restored = done.stderr.splitlines()
    assert note == "note: constriction 0.5.0 is not here: decoding takes a little longer"
    assert restored.startswith("restored ")
    check_files(tmp_path / "decompressed", items)


@pytest.mark.parametrize("name", ["both", "gpt", "mixed", "adaptive"])
def test_without_constriction_archives_are_the_same_bytes(archives, tmp_path, tiny_model, monkeypatch, name):
    path, items = archives[name]
    monkeypatch.setattr(coder, "constriction", None)
    model = "none" if name == "adaptive" else tiny_model
    vqcomp.compress(items, tmp_path / "again.zip", model=model, adapt=name == "mixed", grid=(3, 4))
    assert (tmp_path / "again.zip").read_bytes() == path.read_bytes()


def test_another_version_of_constriction_counts_as_none(unpacked, tmp_path):
    folder, items = unpacked("adaptive")
    site = tmp_path / "site"
    (site / "constriction-0.4.2.dist-info").mkdir(parents=True)
    (site / "constriction-0.4.2.dist-info/METADATA").write_text("Metadata-Version: 2.1\nVersion: 0.4.2\n")
    (site / "constriction.py").write_text("raise SystemExit('another version was imported')")
    done = run(folder, tmp_path, PYTHONPATH=site)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("note: constriction 0.5.0 is not here")
    check_files(tmp_path / "decompressed", items)


def test_without_numpy_it_is_an_error_with_the_command_where_pip_is_forbidden(unpacked, tmp_path):
    folder, _ = unpacked("adaptive")
    done = run(folder, tmp_path, without=["numpy"], VQCOMP_NO_PIP="1")
    assert done.returncode == 1
    assert done.stderr == f'error: NumPy is missing: "{sys.executable}" -m pip install "{NUMPY}"\n'
    assert not (tmp_path / "decompressed").exists()


def test_help_and_wrong_options_need_nothing_and_install_nothing(unpacked, tmp_path):
    folder, _ = unpacked("adaptive")
    for arguments, code, found in (
        (["--help"], 0, "OUTPUT_DIR"),
        (["--nonsense"], 2, "--nonsense"),
        (["-j", "0"], 2, "positive"),
    ):
        done = run(folder, tmp_path, *arguments, without=["numpy", "constriction", "torch"], VQCOMP_NO_PIP="0")
        assert done.returncode == code
        assert found in done.stdout + done.stderr
        assert "installing" not in done.stderr


FAKE_PIP = """
import glob, os, subprocess, sys
sys.modules["numpy"] = None
def pip(command, **_):
    print("PIP", *command[1:], file=sys.stderr)
    target = command[command.index("--target") + 1]
    if {works}:
        for path in glob.glob({home!r} + "/numpy*"): os.symlink(path, os.path.join(target, os.path.basename(path)))
        del sys.modules["numpy"]
    return subprocess.CompletedProcess(command, 0 if {works} else 1)
subprocess.run = pip
import atexit
atexit.register(lambda: print("FROM", getattr(sys.modules["numpy"], "__path__", None), file=sys.stderr))
"""


@pytest.mark.parametrize("forbidden", ["", "0"])
def test_numpy_is_installed_into_a_private_folder_that_goes_away(unpacked, tmp_path, forbidden):
    folder, items = unpacked("adaptive")
    (tmp_path / "tmp").mkdir()
    before = FAKE_PIP.format(works=True, home=str(Path(np.__file__).parent.parent))
    done = run(folder, tmp_path, before=before, VQCOMP_NO_PIP=forbidden, TMPDIR=tmp_path / "tmp")
    assert done.returncode == 0, done.stderr
    first, command, *_, used = done.stderr.splitlines()
    private = Path(first.removeprefix(f"installing {NUMPY} into "))
    assert private.parent == tmp_path / "tmp"
    assert command.startswith("PIP -I -m pip install ")
    assert command.endswith(f" --no-deps --only-binary :all: --target {private} {NUMPY}")
    assert used == f"FROM {[str(private / 'numpy')]}"
    assert list((tmp_path / "tmp").iterdir()) == []
    check_files(tmp_path / "decompressed", items)


def test_a_failed_installation_is_an_error_with_the_command(unpacked, tmp_path):
    folder, _ = unpacked("adaptive")
    done = run(folder, tmp_path, before=FAKE_PIP.format(works=False, home=""), VQCOMP_NO_PIP="")
    assert done.returncode == 1
    assert f'-m pip install "{NUMPY}"' in done.stderr
    assert "Traceback" not in done.stderr


# ---- what lies around


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A zip of three groups, so that processes are worth starting, and its arrays."""
    path = tmp_path_factory.mktemp("many") / "many.zip"
    items = {f"{i:02}.npy": tokens((2, 3, 4), seed=i) for i in range(17)}
    vqcomp.compress(items, path, model="none")
    return path, items


def lay_traps(folder):
    """Modules of all the names that Python, NumPy or the decoder could import; running one is seen."""
    for name in {*sys.stdlib_module_names, "numpy", "constriction", "torch", "pip", "sitecustomize", "launch", "main"}:
        (folder / f"{name}.py").write_text("import sys; sys.stderr.write(f'TRAP {__name__}\\n'); raise SystemExit(9)")


@pytest.mark.parametrize("where", ["beside it", "in the working folder", "in both, which are one"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_no_file_that_lies_around_is_run(many, tmp_path, where, jobs):
    archive, items = many
    folder, cwd = tmp_path / "unpacked", tmp_path / "work"
    cwd.mkdir()
    with zipfile.ZipFile(archive) as handle:
        handle.extractall(folder)
    if where == "in both, which are one":
        cwd = folder
    lay_traps(folder if where == "beside it" else cwd)
    done = subprocess.run(
        [sys.executable, os.path.relpath(folder / "decompress.py", cwd), "--jobs", str(jobs)],
        env={**os.environ, "VQCOMP_NO_PIP": "1", "OUTPUT_DIR": str(tmp_path / "out")},
        cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "TRAP" not in done.stderr
    check_files(tmp_path / "out", items)


def test_pip_runs_no_file_that_lies_around(unpacked, tmp_path):
    folder, _ = unpacked("adaptive")
    (tmp_path / "work").mkdir()
    lay_traps(tmp_path / "work")
    done = run(folder, tmp_path / "work", without=["numpy"], VQCOMP_NO_PIP="0", PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert done.returncode == 1
    assert "installing" in done.stderr and "error: NumPy is missing" in done.stderr
    assert "TRAP" not in done.stderr


USELESS_TORCH = """
import sys
sys.stderr.write("A module that was compiled using NumPy 1.x cannot be run\\n" * 20)
__version__ = "2.2.2"
def from_numpy(array): raise RuntimeError("Numpy is not available")
"""


@pytest.mark.parametrize("name", ["gpt", "mixed"])
def test_a_torch_that_was_built_for_another_numpy_is_passed_over_in_one_line(unpacked, tmp_path, name):
    folder, items = unpacked(name)
    (tmp_path / "site/torch").mkdir(parents=True)
    (tmp_path / "site/torch/__init__.py").write_text(USELESS_TORCH)
    done = run(folder, tmp_path, PYTHONPATH=tmp_path / "site")
    assert done.returncode == 0, done.stderr
    note, restored = done.stderr.splitlines()
    assert note.startswith("note: torch 2.2.2 does not work with NumPy ")
    assert restored.startswith("restored ")
    check_files(tmp_path / "decompressed", items)


def test_an_older_python_is_told_so(unpacked, tmp_path):
    folder, _ = unpacked("adaptive")
    done = run(folder, tmp_path, before="sys.version_info = (3, 9, 18)")
    assert done.returncode == 1
    assert "expected Python 3.10 or newer" in done.stderr


def test_a_python_of_32_bits_is_told_so_in_one_line(unpacked, tmp_path):
    folder, _ = unpacked("adaptive")
    done = run(folder, tmp_path, before="sys.maxsize = 2**31 - 1")
    assert done.returncode == 1
    assert done.stderr == "error: expected a 64-bit Python, found one of 32 bits\n"
