"""Restores the files in this archive. Needs Python 3.10 or newer and NumPy, which it installs where that is missing.

python decompress.py            writes into $OUTPUT_DIR, or ./decompressed
python decompress.py --help     lists the options
VQCOMP_NO_PIP=1                 never install anything
"""

import sys

# Restored files may lie beside this script and in the working folder, under any name. None may be taken for a module:
# these folders are not searched, neither here nor in the processes that are started.
if __name__ == "__main__":
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        del sys.path[0]
    import _signal  # type: ignore[import-not-found]  # for signal itself takes a while to import
    import os

    # Until there is something to tidy up, an interrupt ends this at once.
    if _signal.getsignal(_signal.SIGINT) == _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

    os.environ["PYTHONSAFEPATH"] = "1"
    if sys.version_info < (3, 11):  # which does not know it
        from multiprocessing import util

        util._args_from_interpreter_flags = lambda: ["-I"]  # type: ignore[attr-defined]

import bz2
import hashlib
import importlib.abc
import importlib.util
import os

HERE = os.path.dirname(os.path.abspath(__file__))
RUNTIME = os.path.join(HERE, "vqcomp", "runtime.bz2")
RUNTIME_SHA256 = ""
PACKAGE = "vqcomp_runtime"


class Runtime(importlib.abc.ExecutionLoader, importlib.abc.MetaPathFinder):
    """Imports the modules in runtime.bz2 from memory, as a package; no file is written."""

    def __init__(self):
        with open(RUNTIME, "rb") as file:
            data = file.read()
        if hashlib.sha256(data).hexdigest() != RUNTIME_SHA256:
            raise ValueError("its checksum does not match")
        modules = [module.split("\n", 1) for module in bz2.decompress(data).decode().split("\0")]
        self.sources = {f"{PACKAGE}.{name}".replace(".__init__", ""): source for name, source in modules}

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name in self.sources else None

    def is_package(self, name):
        return name == PACKAGE

    def get_filename(self, name):
        return f"{RUNTIME}:{name}"  # for tracebacks

    def get_source(self, name):
        return self.sources[name]


def main():
    if sys.version_info < (3, 10):
        sys.exit("error: expected Python 3.10 or newer, found " + sys.version.split()[0])
    try:
        use_runtime()
    except (OSError, ValueError):
        print(f"error: {RUNTIME} is damaged or missing, fetch or unpack the archive again", file=sys.stderr)
        return 3
    return importlib.import_module(PACKAGE + ".launch").main(HERE)


def use_runtime():
    sys.meta_path.insert(0, Runtime())


if __name__ == "__mp_main__":  # a process that the main one has started
    use_runtime()
if __name__ == "__main__":
    sys.exit(main())
