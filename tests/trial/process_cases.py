"""Whole programs: decompress.py of damaged archives, and commands that are killed at random moments."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import damage
import verdicts
from archive_cases import contents
from conftest import REPOSITORY
from specimens import Specimen
from verdicts import EXACT, Outcome, Verdict

from vqcomp.runtime import layout

PATIENCE = 50.0
"""Seconds that a program may take."""
_TEMPORARY = re.compile(r"(.*/)?\.[0-9a-f]{12}\.tmp")
_usual: dict[str, float] = {}
"""Seconds that a command takes when nobody kills it."""


def decoders(random: Random, folder: Path, specimens: list[Specimen]) -> Outcome:
    """decompress.py, started as a stranger would, beside a damaged runtime, model, manifest, streams or files."""
    whole = random.choice(specimens)
    _unpack(whole, folder / "unpacked")
    entry = folder / "unpacked" / random.choice([name for name in whole.entries if name != layout.BOOTSTRAP])
    way = random.randrange(12)
    if way:
        entry.write_bytes(random.choice(damage.ANYHOW)(random, entry.read_bytes() or b"\0"))
    else:
        entry.unlink()
    process = _start(_decompress_py(folder), folder)
    code, errors = _wait(process)
    if code is None:
        return Outcome(Verdict.HANG, f"decompress.py: no end within {PATIENCE:.0f} s")
    found = contents(folder / "out")
    failed = verdicts.of_command(code, errors)
    if failed and failed.verdict is Verdict.TRACEBACK:
        return failed
    lost = dict.fromkeys(whole.files.keys() - found.keys(), "said") if failed else {}
    outcome = verdicts.of_parts(found, whole.files, lost)
    return outcome if outcome.verdict is Verdict.SILENT else failed or EXACT


def kill_compress(random: Random, folder: Path, specimens: list[Specimen]) -> Outcome:
    """`vqcomp compress` in two processes: the zip is whole, or not there."""
    whole = next(s for s in specimens if s.name == "adaptive")

    def judge(number: int) -> Outcome | None:
        zips = contents(folder / "out")
        if zips.pop("out.zip", whole.zip) != whole.zip:
            return Outcome(Verdict.SILENT, "half a zip stands under its final name")
        return _leftovers(number, zips.keys())

    (folder / "out").mkdir()
    arguments = [
        "compress",
        str(whole.data),
        str(folder / "out/out.zip"),
        "--model",
        "none",
        "--grid",
        "3x4",
        "--keep-all",
    ]
    return _killed(random, "compress", folder, _vqcomp(*arguments, "--device", "numpy", "-j", "2", "-q"), judge)


def kill_decompress(random: Random, folder: Path, specimens: list[Specimen]) -> Outcome:
    """`vqcomp decompress`, or decompress.py: each file is whole, or not there."""
    whole = random.choice([s for s in specimens if s.name in ("adaptive", "mixed")])

    def judge(number: int) -> Outcome | None:
        found = contents(folder / "out")
        for name, data in whole.files.items():
            if found.pop(name, data) != data:
                return Outcome(Verdict.SILENT, "half a file stands under its final name")
        return _leftovers(number, found.keys())

    if random.random() < 0.5:
        command = _vqcomp(
            "decompress", str(whole.path), "-o", str(folder / "out"), "--device", "numpy", "-j", "2", "-q"
        )
        return _killed(random, "decompress", folder, command, judge)
    _unpack(whole, folder / "unpacked")
    return _killed(random, "decompress.py", folder, [*_decompress_py(folder), "-j", "2"], judge)


def _vqcomp(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "vqcomp", *arguments]


def _decompress_py(folder: Path) -> list[str]:
    return [sys.executable, str(folder / "unpacked/decompress.py"), "--device", "numpy"]


def _unpack(whole: Specimen, folder: Path) -> None:
    for name, data in whole.entries.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    """In a session of its own, as in a terminal of its own; interrupts arrive, whoever ignores them here."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OUTPUT_DIR", "PYTHONPATH")}
    environment |= {"OUTPUT_DIR": str(folder / "out"), "VQCOMP_NO_PIP": "1", "PYTHONPATH": str(REPOSITORY)}
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)


def _wait(process: subprocess.Popen[str]) -> tuple[int | None, str]:
    """(exit code, standard error); None if it did not end, nor all that it started: they all hold standard error."""
    try:
        _, errors = process.communicate(timeout=PATIENCE)
        return process.returncode, errors
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None, ""


def _killed(
    random: Random, name: str, folder: Path, command: list[str], judge: Callable[[int], Outcome | None]
) -> Outcome:
    """Start the command, send a signal at a random moment, and judge what it leaves."""
    number = random.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGINT))
    if name not in _usual:
        start = time.monotonic()
        process = _start(command, folder)
        code, errors = _wait(process)
        _usual[name] = time.monotonic() - start
        if code != 0:
            return Outcome(Verdict.TRACEBACK, f"{name}, not killed: exit code {code}: {errors[-120:]!r}")
        return judge(0) or EXACT
    process = _start(command, folder)
    time.sleep(random.random() * 1.2 * _usual[name])
    for _ in range(random.choice((1, 1, 1, 2))):  # some press Ctrl-C again
        _send(process, number, everywhere=random.random() < 0.5)
        time.sleep(random.random() * 0.05)
    code, errors = _wait(process)
    told = f"{name}, {signal.Signals(number).name}"
    if code is None:
        return Outcome(Verdict.HANG, f"{told}: no end within {PATIENCE:.0f} s")
    # Those that it had only begun to start cannot know that it was killed outright.
    if number != signal.SIGKILL and ("Traceback" in errors or "Exception ignored" in errors):
        # While Python itself starts, and looks for the module to run, nothing of ours has run yet.
        ours = re.search(r'File "[^"]*(vqcomp/|decompress\.py|multiprocessing/|threading\.py)', errors)
        return (
            Outcome(Verdict.TRACEBACK, f"{told}: {_place(errors)}")
            if ours and not re.search('_get_module_details|decompress.py", line 0', errors)
            else Outcome(Verdict.ERROR)
        )
    if code not in (0, *{signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15), signal.SIGINT: (130, -2)}[number]):
        return Outcome(Verdict.TRACEBACK, f"{told}: exit code {code}: {errors.strip()[-120:]!r}")
    if code == 130 and errors.strip() != "interrupted" and name != "decompress.py":
        return Outcome(Verdict.TRACEBACK, f"{told}: expected one line, found {errors.strip()[-120:]!r}")
    return judge(number) or (EXACT if code == 0 else Outcome(Verdict.ERROR))


def _send(process: subprocess.Popen[str], number: int, everywhere: bool) -> None:
    """To the process alone, or, as a terminal does, to all that it started, too."""
    if process.poll() is None:
        (os.killpg if everywhere else os.kill)(process.pid, number)


def _place(errors: str) -> str:
    """Where a traceback ends, and with what."""
    places = re.findall(r'File "[^"]*?([^"/]+)", line (\d+)', errors)
    return f"{errors.strip().splitlines()[-1][:100]} at {':'.join(places[-1]) if places else '?'}"


def _leftovers(number: int, names: object) -> Outcome | None:
    """What a killed program may leave: files that are named as temporary, and only if it could not tidy up."""
    for name in names:  # type: ignore[attr-defined]
        if not _TEMPORARY.fullmatch(name):
            return Outcome(Verdict.SILENT, f"{name!r} is left behind")
        if number != signal.SIGKILL:
            return Outcome(Verdict.SILENT, f"a temporary file is left behind after {signal.Signals(number).name}")
    return None


KINDS = {"decompress.py": decoders, "kills: compress": kill_compress, "kills: decompress": kill_decompress}
