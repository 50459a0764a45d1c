"""External networks: forged descriptions in archives, and files of weights that are damaged or forged."""

from __future__ import annotations

import io
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import damage
import verdicts
from archive_cases import call, contents, forged
from specimens import COMPUTE, Specimen, sealed, tensors
from verdicts import EXACT, Outcome, Verdict

import vqcomp
from vqcomp.runtime import layout
from vqcomp.runtime.token_external import VARIABLE
from vqcomp.runtime.token_weights import CONFIG, NAMES

_LARGE: tuple[dict[str, Any], ...] = (
    {"n_layer": 65536},
    {"n_embd": 4096, "n_head": 4, "n_inner": 65536, "n_layer": 65536},
    {"n_positions": 4095, "vocab_size": 65536},
    {"n_head": 16},
    {"n_layer": 2},
    {"keep": 0},
    {"keep": 1},
    {"keep": 65535},
    {"height": 4, "width": 3},
    {"height": 65535, "width": 65535},
    {"weight_bits": 7},
    {"activation_bits": 8},
    {"weight_bits": 7.0},
    {"file": "../model.safetensors"},
    {"file": "/etc/passwd"},
    {"file": NAMES[1]},
    {"source": "hf://../.."},
    {"source": "http://localhost/x"},
    {"source": "hf://a/b@../../c"},
    {"bytes": 1 << 61},
    {"self_test": 0},
)


def descriptions(random: Random, folder: Path, specimens: list[Specimen]) -> Outcome:
    """Forged: what names the network is something else, and its checksums are right."""
    whole = random.choice([s for s in specimens if s.name.startswith("token")])
    data = whole.entries[layout.MODEL]
    way = random.randrange(10)
    if way < 5:
        data = damage.literal(json.dumps(damage.forge(random, json.loads(data))).encode())
    elif way < 8:
        data = json.dumps({**json.loads(data), **random.choice(_LARGE)}).encode()
    elif way < 9:
        data = random.choice(damage.ANYHOW)(random, data) or b"{"
    else:
        others = [s.entries[layout.MODEL] for s in specimens if layout.MODEL in s.entries]
        data = random.choice((b"{}", b"[" * 70_000, b'{"external":"gpt2"}', data + b" " * (1 << 20), *others))
    changed = replace(whole, entries={**whole.entries, layout.MODEL: data})
    return forged(random, folder, changed, sealed(json.loads(whole.entries[layout.MANIFEST]), data))


def weights(random: Random, folder: Path, specimens: list[Specimen]) -> Outcome:
    """A checkpoint of which a file is damaged, forged or no regular one: to decode by, or to compress with."""
    whole = random.choice([s for s in specimens if s.name.startswith("token")])
    given, place = Path(os.environ[VARIABLE]), folder / "network"
    place.mkdir()
    files = {name: (given / name).read_bytes() for name in (CONFIG, NAMES[0])}
    if random.random() < 0.3:
        files[NAMES[1]] = _pickled(random)
        if random.random() < 0.8:
            del files[NAMES[0]]
    if random.random() < 0.3:
        config = damage.forge(random, json.loads(files[CONFIG]))
        files[CONFIG] = damage.literal(json.dumps(config).encode())
    if NAMES[0] in files and random.random() < 0.8:
        change = random.choice((_header, _header, *damage.ANYHOW))
        files[NAMES[0]] = change(random, files[NAMES[0]])
    for name, data in files.items():
        (place / name).write_bytes(data)
    if random.random() < 0.1:
        _no_file(random, place / random.choice(list(files)))
    try:
        return (_decoded if random.random() < 0.3 else _compressed)(random, folder, place, whole)
    except Exception as error:
        return verdicts.of_error(error)


def _decoded(random: Random, folder: Path, place: Path, whole: Specimen) -> Outcome:
    """By the checkpoint at `place`, which may be another than the archive names."""
    arguments = ["decompress", str(whole.path), "-o", str(folder / "out"), "--model", str(place)]
    code, _, errors = call([*arguments, "--device", "numpy", "-T", "1", "-q"])
    failed, found = verdicts.of_command(code, errors), contents(folder / "out")
    lost = dict.fromkeys(whole.files.keys() - found.keys(), "said") if failed else {}
    outcome = verdicts.of_parts(found, whole.files, lost)
    return outcome if outcome.verdict is Verdict.SILENT else failed or EXACT


def _compressed(random: Random, folder: Path, place: Path, whole: Specimen) -> Outcome:
    """With the checkpoint at `place`, and decoded again."""
    out = folder / "out.zip"
    arguments = ["compress", str(whole.data), str(out), "--model", str(place), "--grid", "3x4", "--device", "numpy"]
    code, _, errors = call([*arguments, "-T", "1", "-q", *random.choice(([], ["--no-adapt"]))])
    if failed := verdicts.of_command(code, errors):
        return Outcome(Verdict.SILENT, "a zip is left behind after an error") if out.exists() else failed
    with vqcomp.open(out, COMPUTE._replace(model=str(place))) as archive:
        return verdicts.of_parts(dict(archive.decode()), whole.arrays, {})


def _header(random: Random, data: bytes) -> bytes:
    """Of safetensors: a field is something else, a name stands twice, or the length is wrong."""
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    table = json.loads(header)
    way = random.randrange(8)
    if way == 0:
        wrong = random.choice((0, 1, length - 1, length + 1, len(data), 1 << 24, 1 << 32, 1 << 63, (1 << 64) - 1))
        return wrong.to_bytes(8, "little") + data[8:]
    if way == 1:
        first = json.dumps({random.choice(list(table)): random.choice(list(table.values()))}).encode()
        header = first[:-1] + b"," + header[1:]
    else:
        entry = table[random.choice([name for name in table if name != "__metadata__"])]
        if way == 2:
            start, end = entry["data_offsets"]
            move = random.choice((-4, 4, 64, 1 << 40, -(1 << 63)))
            entry["data_offsets"] = [start + move, end + move]
        elif way == 3:
            entry["dtype"] = random.choice(("F64", "F16", "BF16", "I32", "BOOL", "F8_E4M3", "", "\x1b[2J", "x" * 5000))
        elif way == 4:
            entry["shape"] = random.choice((entry["shape"][::-1], [1 << 62] * 50_000, [], [0], [-1, -1], [True]))
        else:
            table = damage.forge(random, table)
        header = damage.literal(json.dumps(table).encode())
    return len(header).to_bytes(8, "little") + header + rest


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (77,)


def _pickled(random: Random) -> bytes:
    """A pytorch_model.bin: damaged, of other values, or with code inside."""
    import torch

    state: Any = {name: torch.from_numpy(array) for name, array in tensors().items()}
    name, buffer = random.choice(list(state)), io.BytesIO()
    way = random.randrange(10)
    if way == 0:
        return pickle.dumps(random.choice((_Code(), {name: _Code()}, state, 7)))
    if way == 1:
        state[name] = random.choice((None, 1, "x", [1.0], {"a": 1}, _Code()))
    elif way == 2:
        x = state[name]
        changes = (x.to_sparse, x.double, x.half, x.bfloat16, x.long, x.bool, x.t if x.dim() < 3 else x.long)
        state[name] = random.choice((*changes, lambda: x.to("meta"), lambda: x.to(torch.complex64)))()
    elif way == 3:
        state = {key: torch.nn.Parameter(x) for key, x in state.items()}
    elif way == 4:
        state[name] = random.choice((torch.zeros(1).expand(1 << 50), state[name] * float("nan"), torch.zeros(0)))
    elif way == 5:
        state = random.choice(([*state.values()], {"state_dict": state}, state[name], None, {}, {1: state[name]}))
    torch.save(state, buffer, _use_new_zipfile_serialization=random.random() < 0.7)
    data = buffer.getvalue()
    return data if way < 7 else random.choice(damage.ANYHOW)(random, data)


def _no_file(random: Random, path: Path) -> None:
    """Something else in the place of a file."""
    path.unlink()
    way = random.randrange(4)
    if way == 0:
        path.mkdir()
    elif way == 1:
        os.mkfifo(path)
    elif way == 2:
        path.symlink_to(random.choice((path.name, "/dev/zero", "/dev/null", "nowhere", path.parent)))


KINDS = {"networks: forged names": descriptions, "networks: weights": weights}
"""Name -> case(random, empty folder, specimens)."""
