"""Fetches Pythons that this machine does not have, for test_foreign.py: `python tests/foreign.py`.

aarch64    Debian's Python for aarch64, which an emulator (qemu) runs
newest     Debian's Python 3.14 of the unstable suite, with its own C library

Each comes with NumPy and nothing else, into .foreign/NAME in the repository: half a minute, 260 MB. Debian's packages
are fetched by apt-get from where this machine's come from, and unpacked; nothing is installed, no setting is changed.
Needs Debian on x86_64. A Python that cannot be fetched is named, and its tests are skipped.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent.parent / ".foreign"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SECONDS = 120
"""What a step may take."""
EMULATOR = "qemu-aarch64-static"


def run(*command: str | Path) -> str:
    return subprocess.run(
        [str(part) for part in command], check=True, timeout=SECONDS, stdout=subprocess.PIPE, text=True
    ).stdout


def fetch_packages(folder: Path, suite: str, architecture: str, packages: Sequence[str]) -> None:
    """Unpack these packages of Debian and all that they depend on into `folder`."""
    (source,) = {
        line.split()[1]
        for line in run("apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Origin: Debian").splitlines()
        if line.startswith("Debian ") and not line.rstrip("/").endswith("-security")
    }
    apt = folder.with_name(folder.name + ".apt")
    for part in ("lists/partial", "archives/partial"):
        (apt / part).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(f"deb [signed-by={KEYRING}] {source} {suite} main\n")
    options = {
        "Dir::State": apt, "Dir::State::status": apt / "status", "Dir::Cache": apt,
        "Dir::Etc::sourcelist": apt / "sources.list", "Dir::Etc::sourceparts": "-", "APT::Sandbox::User": "root",
        "APT::Architecture": architecture, "APT::Architectures": architecture, "APT::Install-Recommends": "0",
    }  # fmt: skip
    command = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in options.items())]
    run(*command, "update")
    run(*command, "install", "-y", "--download-only", *packages)
    for package in (apt / "archives").glob("*.deb"):
        run("dpkg", "-x", package, folder)
    shutil.rmtree(apt)


def fetch_numpy(folder: Path, python: str, machine: str) -> None:
    """Unpack NumPy for that version of Python into `folder`."""
    platforms = [f"--platform={name}_{machine}" for name in ("manylinux2014", "manylinux_2_28")]
    options = ["--no-deps", "--only-binary=:all:", f"--python-version={python}", *platforms, f"--dest={folder}"]
    run(sys.executable, "-m", "pip", "download", "--quiet", "numpy<3", *options)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    wheel.unlink()


def fetch_aarch64(folder: Path) -> None:
    fetch_packages(folder / "root", "bookworm", "arm64", ["python3.11", "libstdc++6"])
    fetch_packages(folder / "all", "bookworm", "amd64", ["qemu-user-static"])
    (folder / "all/usr/bin" / EMULATOR).rename(folder / EMULATOR)
    shutil.rmtree(folder / "all")
    fetch_numpy(folder / "packages", "3.11", "aarch64")


def fetch_newest(folder: Path) -> None:
    fetch_packages(folder / "root", "sid", "amd64", ["python3.14", "libstdc++6"])
    fetch_numpy(folder / "packages", "3.14", "x86_64")


COMMANDS = {
    "aarch64": [EMULATOR, "-L", "root", "root/usr/bin/python3.11"],
    "newest": [
        "root/usr/lib64/ld-linux-x86-64.so.2", "--library-path", "root/usr/lib/x86_64-linux-gnu",
        "root/usr/bin/python3.14",
    ],
}  # fmt: skip
"""How each is run; all but options are paths in its folder."""


def command(name: str) -> list[str] | None:
    """How to run that Python; None if it is not here."""
    folder = FOLDER / name
    parts = [part if part.startswith("-") else str(folder / part) for part in COMMANDS[name]]
    return parts if (folder / "complete").exists() else None


def main() -> None:
    for name, fetch in (("aarch64", fetch_aarch64), ("newest", fetch_newest)):
        folder = FOLDER / name
        if (folder / "complete").exists():
            continue
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            fetch(folder)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            print(f"{name}: cannot be fetched: {error}", file=sys.stderr)
        else:
            (folder / "complete").touch()


if __name__ == "__main__":
    main()
