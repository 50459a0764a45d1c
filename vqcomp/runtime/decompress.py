"""Restores the token files in this archive. Needs Python 3.10 or newer, and nothing else that it cannot install.

python decompress.py            writes into $OUTPUT_DIR, or ./decompressed
VQCOMP_NO_PIP=1                 never install anything
"""

import atexit
import bz2
import importlib.abc
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
RUNTIME = os.path.join(HERE, "vqcomp", "runtime.bz2")
PACKAGE = "vqcomp_runtime"
NUMPY, CONSTRICTION = "numpy==2.2.6", "constriction==0.5.0"
"""Any NumPy will do if one is there; the format relies on this very version of constriction."""


class Runtime(importlib.abc.ExecutionLoader, importlib.abc.MetaPathFinder):
    """Imports the modules in runtime.bz2 from memory, as a package; no file is written."""

    def __init__(self, path):
        with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
            modules = [module.split("\n", 1) for module in file.read().split("\0")]
        self.sources = {f"{PACKAGE}.{name}".replace(".__init__", ""): source for name, source in modules}

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name in self.sources else None

    def is_package(self, name):
        return name == PACKAGE

    def get_filename(self, name):
        return f"{RUNTIME}:{name}"  # for tracebacks

    def get_source(self, name):
        return self.sources[name]


def missing():
    """Requirements that this Python does not meet."""
    found = []
    if importlib.util.find_spec("numpy") is None:
        found.append(NUMPY)
    try:
        version = importlib.metadata.version("constriction")
    except importlib.metadata.PackageNotFoundError:
        version = None
    if f"constriction=={version}" != CONSTRICTION:
        found.append(CONSTRICTION)
    return found


def install(requirements):
    """Install into a private temporary folder that goes away when Python ends."""
    folder = tempfile.mkdtemp(prefix="vqcomp-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # Without dependencies: constriction has NumPy alone, and a second NumPy would not fit the torch that may be here.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--target", folder, *requirements]
    print("installing", *requirements, "into", folder, file=sys.stderr)
    if subprocess.run(command, check=False, stdout=sys.stderr, env={**os.environ, "PIP_USER": "0"}).returncode:
        return False
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    return True


def main():
    if sys.version_info < (3, 10):
        sys.exit("error: expected Python 3.10 or newer, found " + sys.version.split()[0])
    # Restored files may lie beside this script; none of them may be taken for a module.
    # Many small products: threads that wait for each other cost more than they save.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.path[:] = [p for p in sys.path if os.path.realpath(p or os.curdir) != os.path.realpath(HERE)]
    needed = missing()
    if needed and (os.environ.get("VQCOMP_NO_PIP", "0") not in ("", "0") or not install(needed)):
        print("error: missing packages; install them with", file=sys.stderr)
        print("   ", sys.executable, "-m pip install", *needed, file=sys.stderr)
        return 1
    try:
        use_runtime()
    except (OSError, EOFError, ValueError) as error:
        print(f"error: {RUNTIME} is damaged or missing: {error}", file=sys.stderr)
        return 3
    return importlib.import_module(PACKAGE + ".main").main(HERE)


def use_runtime():
    sys.meta_path.insert(0, Runtime(RUNTIME))


if __name__ == "__mp_main__":  # a process that the main one has started
    use_runtime()
if __name__ == "__main__":
    sys.exit(main())
