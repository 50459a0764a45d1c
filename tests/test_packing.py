"""Which modules of the runtime a zip carries, and how."""

from __future__ import annotations

import bz2
import hashlib
import traceback
import zlib

import pytest
from conftest import REPOSITORY
from shipped import EVERYTHING, EXTERNAL, PACKAGE, imported, write_decoder

from vqcomp.archive import packing
from vqcomp.archive.packing import bootstrap, roots, runtime_archive, runtime_modules
from vqcomp.runtime.kinds import ADAPTIVE, MIXED, TOKEN, TOKEN_MIXED
from vqcomp.runtime.layout import LARGE_MODEL

RUNTIME = REPOSITORY / "vqcomp/runtime"


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A function that puts other modules in place of the runtime's."""
    caches = [packing.stripped_modules, packing._imports, runtime_archive, bootstrap]

    def write(**modules):
        for name, source in modules.items():
            (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.setattr(packing, "RUNTIME_FOLDER", tmp_path)
        for cache in caches:
            cache.cache_clear()

    yield write
    monkeypatch.undo()
    for cache in caches:
        cache.cache_clear()


def test_modules_are_followed_by_their_imports_as_python_sees_them(sources):
    sources(
        __init__='"""Empty."""\n',
        main=(
            '"""from .docstring import x"""\n'
            "from __future__ import annotations\n"
            "from typing import TYPE_CHECKING\n"
            "from .direct import (\n    f as g,\n)\n"
            "from .types import Shape\n"
            "if TYPE_CHECKING:\n    from .checked import y\n"
            "try:\n    from .tried import h\nexcept ImportError:\n    h = None\n"
            "def main(shape: Shape):\n    from .late import z\n    return g(), h, z()\n"
        ),
        direct="from . import further\ndef f(): return further.f()\n",
        further="def f(): pass\n",
        tried="def h(): pass\n",
        late="from .later import z\n",
        later="def z(): pass\n",
        types="class Shape: pass\n",
        checked="y = 1\n",
        docstring="x = 1\n",
    )
    assert runtime_modules({"main"}) == ["__init__", "direct", "further", "main", "tried"]
    assert runtime_modules({"main", "late"}) == ["__init__", "direct", "further", "late", "later", "main", "tried"]


def test_an_archive_without_a_network_carries_nothing_of_it():
    alone = set(runtime_modules(roots([ADAPTIVE], files=False, workers=False)))
    assert {"main", "reader", "adapt", "mixing", "online"} <= alone
    assert not alone & {"gpt", "engine", "exact", "weights", "config", "workers", "files", "mixed"}
    assert alone < set(runtime_modules(roots([MIXED], files=False, workers=False)))


def test_archives_of_large_networks_alone_carry_other_kinds_of_products():
    small, large = (roots([MIXED], files=False, workers=False, model=n) for n in (LARGE_MODEL - 1, LARGE_MODEL))
    assert set(runtime_modules(large)) - set(runtime_modules(small)) == {"products"}


def test_encoders_are_not_shipped():
    texts = packing.stripped_modules()
    assert not any(
        "RangeEncoder" in text or "def encode" in text or "def write_model" in text for text in texts.values()
    )


@pytest.mark.parametrize("modules", [EVERYTHING, EXTERNAL], ids=["", "external"])
def test_the_runtime_is_bzip2_of_named_texts(modules):
    text = bz2.decompress(runtime_archive(modules)).decode()
    found = dict(module.split("\n", 1) for module in text.split("\0"))
    assert list(found) == runtime_modules(modules)
    assert found == packing.stripped_modules(modules == EXTERNAL)


def test_modules_for_external_networks_change_nothing_of_other_archives(sources):
    kept = {path.stem: path.read_text("utf-8") for path in RUNTIME.glob("*.py")}
    before = runtime_archive(EVERYTHING)
    kept["token_config"] += (
        '\n\ndef close():\n    """One more use of some names."""\n    return VERBOSE\n\n\nVERBOSE = EXTRA = 1\n'
    )
    sources(**kept)
    assert runtime_archive(EVERYTHING) == before
    assert not any(name.startswith("token") for name in runtime_modules(EVERYTHING))


def test_the_bootstrap_knows_the_hash_of_its_runtime(sources):
    sources(decompress='RUNTIME_SHA256 = ""\n"""Of the next entry."""\nprint(RUNTIME_SHA256)\n')
    assert hashlib.sha256(b"runtime").hexdigest() in bootstrap(b"runtime").decode()


def test_line_ends_of_a_checkout_do_not_matter(sources):
    kept = {path.stem: path.read_text("utf-8") for path in RUNTIME.glob("*.py")}
    before = runtime_archive(EVERYTHING), bootstrap(b"")
    sources(**{name: source.replace("\n", "\r\n") for name, source in kept.items()})
    assert (runtime_archive(EVERYTHING), bootstrap(b"")) == before


@pytest.mark.parametrize(
    ("kind", "limit"), [(ADAPTIVE, 13_000), (MIXED, 20_500), (TOKEN, 18_500), (TOKEN_MIXED, 24_000)]
)
def test_the_decoder_stays_small(kind, limit):
    runtime = runtime_archive(roots([kind], files=False, workers=False))
    start = len(zlib.compress(bootstrap(runtime), 9)) - 6  # without zlib's header and checksum, as in a zip
    assert start <= 1300
    assert start + len(runtime) <= limit


def test_a_traceback_of_the_shipped_decoder_names_module_function_and_line(tmp_path):
    with imported(write_decoder(tmp_path, roots([ADAPTIVE], files=False, workers=False))) as module:
        spec = module("spec").TokenSpec(2, 3, (20,))
        with pytest.raises(TypeError) as caught:
            module("adapt").AdaptiveCodec(spec).decode([None, b""], [[1], [1]])
        report = "".join(traceback.format_exception(caught.type, caught.value, caught.tb))
    del caught
    assert f"{PACKAGE}.adapt" in report and "in _decode_group" in report
    line = report[report.index("in _decode_group") :].splitlines()[1].strip()
    assert line in packing.stripped_modules()["adapt"]
