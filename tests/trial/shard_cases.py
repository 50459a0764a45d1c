"""Hostile data to compress: shards with links, devices, holes and broken ends, .npy files and 1X's folders."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import tarfile
from pathlib import Path
from random import Random

import archive_cases
import damage
import layouts
import numpy as np
import verdicts
from specimens import COMPUTE, Specimen
from verdicts import EXACT, Outcome, Verdict

import vqcomp

_KINDS = (
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
    tarfile.GNUTYPE_SPARSE,
    tarfile.DIRTYPE,
    b"Z",
    b"7",
)
_NAMES = (
    "seg",
    "a/b",
    "..",
    "../outside",
    "/etc/x",
    "x" * 300,
    "a\nb",
    "漢字",
    "decompress.py",
    "con",
    "",
    5,
    None,
    ["x"],
    "\ud800",
)


def shards(random: Random, folder: Path, specimens: list[Specimen]) -> Outcome:
    """A shard as commaVQ publishes them, with members that it should not have, or with its bytes damaged.

    Where its bytes are checked (gzip), nothing but the very arrays may come back; a tar has no checksum of data.
    """
    arrays, members, special = _members(random)
    data = layouts.tar_bytes(members, special)
    if random.random() < 0.2:  # cat one.tar two.tar
        more = {"again": np.full((2, 8, 16), 9, "<i2")}
        arrays.update(more)
        data += layouts.tar_bytes(layouts.samples(more))
    name, sealed = random.choice(
        (("shard.tar", False), ("shard.tar.gz", True), ("shard.tgz", True), ("shard.zip", True))
    )
    if name == "shard.zip":
        arrays = {"plain.npy": np.ones((2, 8, 16), "<i2"), "in/two.npy": np.zeros((1, 8, 16), "<i2")}
        data = damage.pack({n: layouts.npy(a) for n, a in arrays.items()}, random.choice((0, 8, 12, 14)))
    broken = False
    if sealed and name != "shard.zip":
        pieces = [data] if random.random() < 0.7 else [data[:1000], data[1000:]]
        data = b"".join(gzip.compress(piece, 1, mtime=0) for piece in pieces)
    if random.random() < 0.6:
        broken = True
        data = random.choice((*damage.ANYHOW, damage.cut))(random, data)
    (folder / name).write_bytes(data)
    return _compress(random, folder, folder / name, arrays, exact=sealed or not broken)


def _members(random: Random) -> tuple[dict[str, np.ndarray], list[layouts.Member], list[tarfile.TarInfo]]:
    arrays = {f"segment_{i}": np.full((1 + i, 8, 16), i, "<i2") for i in range(random.choice((1, 2, 3)))}
    members = layouts.samples(arrays)
    special = []
    way = random.randrange(6)
    if way == 0:
        special = [
            layouts.special(
                random.choice(("link.token.npy", "link.json", "../x", "/dev/x", "other")),
                random.choice(_KINDS),
                random.choice((members[2][0], "/etc/passwd", "../..", "nowhere")),
            )
            for _ in range(random.choice((1, 3)))
        ]
    elif way == 1:
        name = random.choice(_NAMES)
        array = np.full((1, 8, 16), 5, "<i2")
        members += [("k.json", json.dumps({"file_name": name}).encode()), ("k.token.npy", layouts.npy(array))]
        if isinstance(name, str):
            arrays[name] = array
    elif way == 2:
        members.append((f"bad{random.randrange(9)}.token.npy", _odd_npy(random)))
        members.append((members[-1][0].split(".")[0] + ".json", b'{"file_name": "odd"}'))
        arrays = {**arrays, "odd": None}  # type: ignore[dict-item]
    elif way == 3:
        random.shuffle(members)
    elif way == 4:
        members.append(random.choice(members))
    return arrays, members, special


def _odd_npy(random: Random) -> bytes:
    header = random.choice(
        (
            "{'descr': '<i2', 'fortran_order': False, 'shape': (True, 8, 16), }",
            "{'descr': '|O', 'fortran_order': False, 'shape': (1, 8, 16), }",
            "{'descr': '<i2', 'fortran_order': False, 'shape': (1000000000000, 8, 16), }",
            "{'descr': '<i2', 'fortran_order': False, 'shape': (-1, 8, 16), }",
            "{'descr': [('a', '<i2')], 'fortran_order': False, 'shape': (1, 8, 16), }",
            "{'descr': '<i2', 'fortran_order': 7, 'shape': (1, 8, 16), }",
            "__import__('os').system('x')",
            "(" * 5000,
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 8, 16), }",
            "{'descr': '<i2', 'fortran_order': False, 'shape': (1e999, 8, 16), }",
            "{'descr': '<U999999999', 'fortran_order': False, 'shape': (1, 8, 16), }",
            "{'descr': '<i2', 'fortran_order': True, 'shape': (1, 8, 16), }",
            "",
        )
    ).encode()
    version = random.choice((b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\x09\0"))
    size = len(header).to_bytes(2 if version == b"\1\0" else 4, "little")
    return b"\x93NUMPY" + version + size + header + random.randbytes(random.choice((0, 256)))


def arrays(random: Random, folder: Path, specimens: list[Specimen]) -> Outcome:
    """A folder with a .npy file that is damaged, forged, a link, a named pipe or a folder; or a damaged one of 1X's."""
    whole = random.choice([s for s in specimens if s.name in ("adaptive", "gpt", "raw")])
    data = folder / "data"
    for name, content in whole.files.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(content)
    path = data / random.choice(list(whole.files))
    way = random.randrange(8)
    if way < 4:
        path.write_bytes(random.choice(damage.ANYHOW)(random, path.read_bytes() or b"x"))
    elif way == 4:
        path.write_bytes(_odd_npy(random))
    elif path.name == "metadata.json":
        path.write_bytes(damage.literal(json.dumps(damage.forge(random, json.loads(path.read_bytes()))).encode()))
    else:
        path.unlink()
        if way == 5:
            os.mkfifo(path)
        elif way == 6:
            path.symlink_to(random.choice((".", "/dev/zero", "nowhere", path.name)))
        else:
            path.mkdir()
    return _compress(random, folder, data, {}, exact=False)


def _compress(random: Random, folder: Path, data: Path, expected: dict[str, np.ndarray], exact: bool) -> Outcome:
    """Compress by the command; what comes back must be some of `expected`, what is not there must have been named."""
    out, skip, keep = folder / "out.zip", random.random() < 0.5, random.random() < 0.3
    arguments = [
        "compress",
        str(data),
        str(out),
        "--model",
        "none",
        "--grid",
        "3x4",
        "--device",
        "numpy",
        "-T",
        "1",
        "-j",
        "1",
        "-v",
    ]
    arguments += ["--skip-bad"] * skip + ["--keep-all"] * keep
    try:
        code, _, errors = archive_cases.call(arguments)
        if failed := verdicts.of_command(code, "\n".join(line for line in errors.splitlines() if line.strip())):
            return Outcome(Verdict.SILENT, "half an archive stands there") if out.exists() else failed
        with vqcomp.open(out, COMPUTE) as archive:
            found = dict(archive.decode())
        (folder / "inner").mkdir()
        with contextlib.suppress(vqcomp.DamageError):
            vqcomp.decompress(out, folder / "inner/out", compute=COMPUTE)
    except Exception as error:
        return verdicts.of_error(error)
    if [path for path in (folder / "inner").iterdir() if path.name != "out"]:
        return Outcome(Verdict.SILENT, "written outside of the folder")
    if not exact:
        return EXACT
    for name, array in found.items():
        before = expected.get(name)
        if name not in expected or (before is not None and not verdicts.same(array, before)):
            return Outcome(Verdict.SILENT, "an array came back wrong, or one that was never there")
    told = any(line.startswith(("skipped", "left out")) for line in errors.splitlines())
    if expected.keys() - found.keys() and not told:
        return Outcome(Verdict.SILENT, "an array is missing without a word")
    return Outcome(Verdict.ERROR) if expected.keys() - found.keys() else EXACT


KINDS = {"hostile shards": shards, "hostile arrays": arrays}
