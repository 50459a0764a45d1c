"""Damaged and forged archives, model files and checkpoints, opened by vqcomp in this very process."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import damage
import numpy as np
import verdicts
from conftest import files_in
from specimens import COMPUTE, Specimen
from verdicts import EXACT, Outcome, Verdict

import vqcomp
from vqcomp import api
from vqcomp.cli import run
from vqcomp.runtime import layout, weights
from vqcomp.runtime.loading import load_engine

ENTRIES = (layout.MODEL, layout.STREAMS, layout.FILES, layout.MANIFEST)
"""What vqcomp reads; the decoder's entries are another's concern."""


# ---- ways to open an archive


def decode(random: Random, path: Path, whole: Specimen) -> Outcome:
    """Through the library: everything that can be had, and what was lost."""
    lost: dict[str, str] = {}
    with vqcomp.open(path, COMPUTE) as archive:
        if random.random() < 0.2:
            found: dict[str, Any] = {name: archive[name] for name in archive}
        else:
            found = dict(archive.decode(damaged=lost))
        archive.sizes()
        for file in archive.kept:
            try:
                found[file.name] = b"".join(archive.contents(file))
            except vqcomp.DamageError as error:
                lost[file.name] = str(error)
    return verdicts.of_parts(found, {**whole.arrays, **whole.kept}, lost)


def check(random: Random, path: Path, whole: Specimen) -> Outcome:
    """As `vqcomp test` does."""
    summary = api.check(path, compute=COMPUTE)
    if summary.tokens != sum(a.size for a in whole.arrays.values()):
        return Outcome(Verdict.SILENT, "another number of tokens is said to be well")
    return EXACT


def restore(random: Random, path: Path, whole: Specimen) -> Outcome:
    """Into a folder, over an older file now and then."""
    out = path.parent / "inner/out"
    out.mkdir(parents=True)
    old = random.choice(list(whole.files))
    if force := random.random() < 0.3:
        (out / old).parent.mkdir(parents=True, exist_ok=True)
        (out / old).write_bytes(b"older")
    try:
        _, lost = api.restore_files(path, out, force=force, compute=COMPUTE)
    except vqcomp.VqcompError:
        if stray := {n: d for n, d in contents(out).items() if d not in (b"older", whole.files.get(n))}:
            return Outcome(Verdict.SILENT, f"left behind after an error: {sorted(stray)[:3]}")
        raise
    if outside := [n for n in files_in(path.parent / "inner") if not n.startswith("out/")]:
        return Outcome(Verdict.SILENT, f"written outside of the folder: {outside[0]!r}")
    found = {n: d for n, d in contents(out).items() if d != b"older"}
    return verdicts.of_parts(found, whole.files, lost)


def command(random: Random, path: Path, whole: Specimen) -> Outcome:
    """By a command's exit code and what it prints."""
    out = path.parent / "inner/out"
    arguments = random.choice(
        (["test"], ["list"], ["list", "--json"], ["test", "--json"], ["decompress", "-o", str(out)], ["evaluate"])
    )
    arguments = [arguments[0], str(path), *arguments[1:]]
    if arguments[0] == "evaluate":
        arguments += [str(whole.data), "--grid", "3x4"]
    if arguments[0] != "list":
        arguments += ["--device", "numpy", "-T", "1", "-j", "1"] + ["-q"] * (arguments[0] != "evaluate")
    code, _, errors = call(arguments)
    found = contents(out)
    failed = verdicts.of_command(code, errors)
    if arguments[0] == "decompress":
        lost = {n: "said" for n in whole.files if n not in found} if failed else {}
        outcome = verdicts.of_parts(found, whole.files, lost)
        if outcome.verdict is Verdict.SILENT:
            return outcome
    return failed or EXACT


VERBS: tuple[Callable[[Random, Path, Specimen], Outcome], ...] = (decode, decode, check, restore, command)


def call(arguments: list[str]) -> tuple[int, str, str]:
    """Run a command here: (exit code, standard output, standard error)."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = run(arguments)
    return code, out.getvalue(), errors.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_in(folder)} if folder.is_dir() else {}


def opened(random: Random, path: Path, whole: Specimen) -> Outcome:
    try:
        return random.choice(VERBS)(random, path, whole)
    except Exception as error:
        return verdicts.of_error(error)


# ---- kinds of damage


def _zip_case(change: Callable[[Random, bytes], bytes]) -> Callable[[Random, Path, list[Specimen]], Outcome]:
    def case(random: Random, folder: Path, specimens: list[Specimen]) -> Outcome:
        whole, path = random.choice(specimens), folder / "damaged.zip"
        path.write_bytes(_focused(random, change, whole.zip))
        return opened(random, path, whole)

    return case


def _focused(random: Random, change: Callable[[Random, bytes], bytes], data: bytes) -> bytes:
    """Change the zip somewhere (a range of it); mostly behind the decoder, which makes up most of these small zips."""
    if random.random() < 0.3:
        return change(random, data)
    start = data.index(layout.RUNTIME.encode()) + len(layout.RUNTIME)
    start = data.index(b"PK\3\4", start)
    return data[:start] + change(random, data[start:])


def other_methods(random: Random, folder: Path, specimens: list[Specimen]) -> Outcome:
    """Packed anew by other programs' methods, then damaged."""
    whole, path = random.choice(specimens), folder / "damaged.zip"
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    chosen = {name: random.choice(methods) for name in whole.entries}
    if random.random() < 0.5:  # what vqcomp can read: streams have to be stored
        chosen[layout.STREAMS] = chosen[layout.FILES] = zipfile.ZIP_STORED
    data = damage.pack(whole.entries, chosen)
    if random.random() < 0.1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = damage.append_entry(random, data)
    if random.random() < 0.85:
        data = _focused(random, random.choice((*damage.ANYHOW, damage.zip_field)), data)
    path.write_bytes(data)
    return opened(random, path, whole)


def folders(random: Random, folder: Path, specimens: list[Specimen]) -> Outcome:
    """Unpacked, with entries that are damaged, missing, or no regular files."""
    whole, path = random.choice(specimens), folder / "unpacked"
    for name, data in whole.entries.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    entry = path / random.choice([name for name in whole.entries if name in ENTRIES])
    way = random.randrange(10)
    if way < 6:
        entry.write_bytes(random.choice(damage.ANYHOW)(random, entry.read_bytes() or b"\0"))
    else:
        entry.unlink()
        if way == 7:
            entry.mkdir()
        elif way == 8:
            os.mkfifo(entry)
        elif way == 9:
            entry.symlink_to(random.choice((entry.name, "/dev/zero", "/dev/null", "nowhere", path)))
    return opened(random, path, whole)


def manifests(random: Random, folder: Path, specimens: list[Specimen]) -> Outcome:
    """Forged: fields of the manifest are something else, and its checksum is right.

    Whoever forges can also rename; so what comes back must be some segment's values, under whatever name.
    """
    whole = random.choice(specimens)
    table = json.loads(whole.entries[layout.MANIFEST])
    del table["check"]
    table = _aimed(random, table) if random.random() < 0.35 else damage.forge(random, table)
    manifest = damage.seal(table, damage.literal) if isinstance(table, dict) else json.dumps(table).encode()
    return forged(random, folder, whole, manifest)


def _aimed(random: Random, table: dict[str, Any]) -> dict[str, Any]:
    """What an attacker would try: lengths, counts and shapes that ask for more than there is."""
    n, m, big = len(table["segments"]["name"]), table["groups"]["count"], random.choice(damage.NUMBERS[8:])
    spec = table["specs"][0]
    way = random.randrange(12)
    if way == 0:
        table["groups"]["count"] = big
        table["groups"] = {
            k: v if k == "count" else {"all": v[0] if isinstance(v, list) else v["all"]}
            for k, v in table["groups"].items()
        }
    elif way == 1:
        spec["factors"] = random.choice(([2] * 100_000, [65536] * 64, spec["factors"] * 65, [2] * 64, [65536] * 4))
    elif way == 2:
        table["segments"]["shape"] = {"all": [_frames(random), spec["height"], spec["width"]]}
    elif way == 3:
        spec["height"], spec["width"] = random.choice(((big, big), (1, big), (big, 1), (2**20, 2**10)))
        table["segments"]["shape"] = {"all": [1, spec["height"], spec["width"]]}
    elif way == 4:
        table["model"] = {"bytes": big, "sha256": "0" * 64}
    elif way == 5:
        table["groups"].update(segments=[n] + [0] * (m - 1), bytes=[big] * m)
    elif way == 6:
        table["segments"] = {**table["segments"], "name": [f"x{i}" for i in range(200_000)]}
    elif way == 7:
        table["files"] = {
            "count": 1,
            "name": ["bomb"],
            "bytes": [big],
            "crc32": [0],
            "stored": [random.choice((1, 100, big))],
        }
    elif way == 8:
        table["raw"] = {
            "count": 1,
            "name": ["raw"],
            "first": [random.choice((0, big))],
            "segments": [random.choice((n, n + 1, big))],
        }
    elif way == 9:
        table["specs"] = [spec] * random.choice((0, 1000, 100_000))
    elif way == 10:
        spec["codec"] = random.choice(("gpt", "mixed", "adaptive", "lzma", "__class__", 7, ["gpt"]))
    else:
        table["segments"]["dtype"] = {
            "all": random.choice(("|u1", "|i1", "<u2", ">i8", "<f4", "|O", "|b1", "<u16", "|V8", "<i3"))
        }
    return table


def _frames(random: Random) -> int:
    """T of a forged shape: a little more than there are, or more than any stream could hold.

    What lies between is decoded, at the usual speed, and found to be damaged at the end.
    """
    return random.choice((4, 5, 9, 30, 10**8, 2**31 - 1, 2**31, 2**40, 10**18))


def forged(random: Random, folder: Path, whole: Specimen, manifest: bytes) -> Outcome:
    """Open an archive whose manifest is `manifest`: what comes back must be some segment's values."""
    entries = {**whole.entries, layout.MANIFEST: manifest}
    path = folder / "forged.zip"
    if random.random() < 0.5:
        path.write_bytes(damage.pack(entries))
    else:
        path = folder / "forged"
        for name, data in entries.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    try:
        outcome = _open_forged(random, path, whole)
    except MemoryError:
        # A frame may honestly have 2^18 positions, which take gigabytes; commands say so in a line.
        return Outcome(Verdict.ERROR)
    except Exception as error:
        return verdicts.of_error(error)
    return outcome


def _open_forged(random: Random, path: Path, whole: Specimen) -> Outcome:
    verb = random.randrange(4)
    if verb == 0:
        code, _, errors = call([random.choice(("list", "test")), str(path)])
        return verdicts.of_command(code, errors) or EXACT
    out = path.parent / "inner/out"
    if verb == 1:
        out.mkdir(parents=True)
        try:
            _, lost = api.restore_files(path, out, compute=COMPUTE)
        except vqcomp.VqcompError as error:
            lost = {"all": str(error)}
        if outside := [n for n in files_in(path.parent / "inner") if not n.startswith("out/")]:
            return Outcome(Verdict.SILENT, f"written outside of the folder: {outside[0]!r}")
        return verdicts.of_message(next(iter(lost.values())), "reason of a loss") if lost else EXACT
    lost = {}
    with vqcomp.open(path, COMPUTE) as archive:
        found = dict(archive.decode(damaged=lost))
        pieces = {file.name: _contents(archive, file, lost) for file in archive.kept}
    true = {tuple(a.reshape(-1).tolist()) for a in whole.arrays.values()}
    for array in found.values():
        if tuple(array.reshape(-1).tolist()) not in true:
            return Outcome(Verdict.SILENT, "values came back that were never there")
    for data in pieces.values():
        if data is not None and data not in whole.kept.values():
            return Outcome(Verdict.SILENT, "a file came back that was never there")
    return verdicts.of_message(next(iter(lost.values())), "reason of a loss") if lost else EXACT


def _contents(archive: Any, file: Any, lost: dict[str, str]) -> bytes | None:
    try:
        return b"".join(archive.contents(file))
    except vqcomp.DamageError as error:
        lost[file.name] = str(error)
        return None


HOSTILE_NAMES = (
    "..",
    "../outside",
    "a/../../outside",
    "/etc/vqcomp-trial",
    "/",
    "C:/outside",
    "c:outside",
    "\\\\host\\share",
    "a\\b",
    "",
    ".",
    "a//b",
    "a/",
    "./a",
    "decompress.py",
    "vqcomp/manifest.json",
    "VQCOMP/x",
    "con",
    "nul.npy",
    "a\0b",
    "a\nb",
    "\x1b[2J",
    "\x7f",
    "\ud800",
    "\u202egpj.exe",
    "x" * 255,
    "x" * 256,
    "漢" * 86,
    "y/" * 300 + "z",
    "y/" * 3000 + "z",
    "é",
    "e\u0301",
    "A",
    "a",
    "a/b",
    "ＡＢ",
    "ß",
    "SS",
    "trailing ",
    "dot.",
    "a:b",
    "*",
    "-rf",
    "~",
    "a\u2028b",
    "\ufeffbom",
    "$(x)",
    "%s%n",
    "x.npy\u0000.txt",
    5,
    None,
    1.5,
    True,
    ["a"],
    {"a": 1},
)


def names(random: Random, folder: Path, specimens: list[Specimen]) -> Outcome:
    """Forged names of segments and files; and arrays of such names to compress."""
    if random.random() < 0.3:
        return _compress_names(random, folder)
    whole = random.choice(specimens)
    table = json.loads(whole.entries[layout.MANIFEST])
    del table["check"]
    place = random.choice([table[key]["name"] for key in ("segments", "files", "raw") if key in table])
    for _ in range(random.choice((1, 1, 2))):
        place[random.randrange(len(place))] = random.choice(HOSTILE_NAMES)
    return forged(random, folder, whole, damage.seal(table))


def _compress_names(random: Random, folder: Path) -> Outcome:
    data = {
        random.choice([n for n in HOSTILE_NAMES if not isinstance(n, list | dict)]): np.full((1, 3, 4), i)
        for i in range(random.choice((1, 2)))
    }
    out = folder / "out.zip"
    try:
        vqcomp.compress(data, out, model="none", compute=COMPUTE)
        with vqcomp.open(out, COMPUTE) as archive:
            outcome = verdicts.of_parts(dict(archive.decode()), data, {})
        if outcome.verdict is not Verdict.EXACT:
            return outcome
        (folder / "inner").mkdir()
        vqcomp.decompress(out, folder / "inner/out", compute=COMPUTE)
    except Exception as error:
        if out.exists() and "restored" not in str(error) and "name" not in str(error):
            return verdicts.of_error(error)
        return verdicts.of_error(error)
    stray = [n for n in files_in(folder / "inner") if not n.startswith("out/")]
    return Outcome(Verdict.SILENT, "written outside") if stray else EXACT


# ---- models and checkpoints


def models(random: Random, folder: Path, specimens: list[Specimen]) -> Outcome:
    """A .vqm: its bytes damaged, or fields of its config forged and the checksum made right."""
    whole = next(s for s in specimens if s.name == "gpt")
    data = whole.entries[layout.MODEL]
    config, check, start = weights.read_config(data)
    if random.random() < 0.4:
        data = random.choice(damage.ANYHOW)(random, data)
        if random.random() < 0.5 and len(data) > 4:
            data = damage.with_crc(data[:-4])
    else:
        table: Any = json.loads(json.dumps(config.to_dict()))
        if random.random() < 0.3:
            table.update(random.choice(_LARGE))
        else:
            table = damage.forge(random, table)
        text = damage.literal(json.dumps(table).encode())
        header = zlib.compress(text, 9)
        length = random.choice((len(header),) * 8 + (0, len(header) + 1, 2**32 - 1))
        data = damage.with_crc(
            weights.MAGIC + struct.pack("<I", length) + header + struct.pack("<I", check) + data[start:-4]
        )
    path = folder / "model.vqm"
    path.write_bytes(data)
    try:
        if random.random() < 0.5:
            spec = weights.read_config(data)[0].spec
            load_engine(spec, data, COMPUTE)
            return EXACT
        arguments = [
            "compress",
            str(whole.data),
            str(folder / "out.zip"),
            "--model",
            str(path),
            "--grid",
            "3x4",
            "--device",
            "numpy",
            "-q",
            "-T",
            "1",
            "-j",
            "1",
        ]
        code, _, errors = call(arguments)
        if failed := verdicts.of_command(code, errors):
            return failed
        with vqcomp.open(folder / "out.zip", COMPUTE) as archive:
            return verdicts.of_parts(dict(archive.decode()), whole.arrays, {})
    except Exception as error:
        return verdicts.of_error(error)


_LARGE = (
    {"stack": 65536, "factors": [2] * 5000},
    {"blocks": 65536},
    {"factors": [65536] * 64, "dim": 1000},
    {"factors": [2] * 100_000},
    {"height": 40, "width": 40, "spatial_heads": 1000},
    {"stack": 65536},
    {"dim": 2000, "hidden": 2000, "blocks": 2000},
    {"flags": [[[1, 0, 0], [2, 0, 0]]] * 10_000},
    {"copies": [[1, 0, 0]] * 10_000},
    {"window": 10**9},
    {"head_dim": 10**9},
    {"dim": -1},
)


def checkpoints(random: Random, folder: Path, specimens: list[Specimen]) -> Outcome:
    """A .ckpt: its bytes damaged, or saved anew with other fields."""
    import torch

    from vqcomp.training.checkpoint import FORMAT, read_checkpoint, write_checkpoint

    path = folder / "model.ckpt"
    same = {"settings": {"dim": 16, "seed": 0}, "data": {"sha": "x"}}
    state: dict[str, Any] = {**same, "step": 3, "weights": {f"w{i}": torch.arange(40.0) + i for i in range(3)}}
    write_checkpoint(path, state)
    if random.random() < 0.6:
        path.write_bytes(random.choice((*damage.ANYHOW, damage.zip_field))(random, path.read_bytes()))
    else:
        key = random.choice((*state, "format", "vqcomp"))
        other = {"format": FORMAT, "vqcomp": "1", **state}
        odd = damage.odd_value(random, other[key] if key != "weights" else 1)
        if random.random() < 0.3:
            del other[key]
        else:
            other[key] = odd
        torch.save(other if random.random() < 0.9 else odd, path)
        path.write_bytes(path.read_bytes() + hashlib.sha256(path.read_bytes()).digest())
    try:
        found = read_checkpoint(path, same)
    except Exception as error:
        return verdicts.of_error(error)
    if isinstance(found.get("weights"), dict) and set(found["weights"]) == set(state["weights"]):
        for name, tensor in state["weights"].items():
            if not torch.equal(found["weights"][name], tensor):
                return Outcome(Verdict.SILENT, "weights came back wrong")
    return EXACT


KINDS = {
    "zip: bits": _zip_case(damage.flip_bits),
    "zip: bytes": _zip_case(damage.set_bytes),
    "zip: cut, inserted": _zip_case(damage.cut),
    "zip: ranges": _zip_case(damage.move_ranges),
    "zip: headers": _zip_case(damage.zip_field),
    "zip: other methods": other_methods,
    "unpacked folders": folders,
    "forged manifests": manifests,
    "hostile names": names,
    "models (.vqm)": models,
    "checkpoints (.ckpt)": checkpoints,
}
"""Name -> case(random, empty folder, specimens)."""
