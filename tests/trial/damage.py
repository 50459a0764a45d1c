"""Ways to damage bytes, zips and JSON. All take a `random.Random`, and nothing else is left to chance."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from vqcomp.runtime import layout
from vqcomp.runtime.manifest import CHECK

NUMBERS = (0, 1, 2, 3, 7, 12, 255, 256, 65535, 65536, 10**6, 10**8, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 10**18)


def flip_bits(random: Random, data: bytes) -> bytes:
    """One bit, or a few."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 8))):
        out[random.randrange(len(out))] ^= 1 << random.randrange(8)
    return bytes(out)


def set_bytes(random: Random, data: bytes) -> bytes:
    """A run of bytes becomes another of the same length."""
    out = bytearray(data)
    start, length = random.randrange(len(out)), random.choice((1, 2, 4, 16, 256))
    end = min(len(out), start + length)
    out[start:end] = random.choice((bytes, lambda n: b"\xff" * n, random.randbytes))(end - start)
    return bytes(out)


def cut(random: Random, data: bytes) -> bytes:
    """The end is missing, or the beginning, or a piece between; or there is more than there was."""
    a, b = sorted(random.randrange(len(data) + 1) for _ in range(2))
    near = max(0, len(data) - random.choice((1, 2, 4, 22, 64, 512)))
    more = random.randbytes(random.choice((1, 4, 100)))
    ways = (data[:a], data[:near], data[a:], data[:a] + data[b:], data + more, more + data, data[:a] + more + data[a:])
    return random.choice(ways)


def move_ranges(random: Random, data: bytes) -> bytes:
    """Two ranges are swapped, or one is filled with zeros or written over another."""
    a, b, c, d = sorted(random.randrange(len(data) + 1) for _ in range(4))
    ways = (
        data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:],
        data[:a] + bytes(b - a) + data[b:],
        data[:c] + data[a : a + d - c] + data[c + len(data[a : a + d - c]) :],
    )
    return random.choice(ways)


ANYHOW: tuple[Callable[[Random, bytes], bytes], ...] = (flip_bits, set_bytes, cut, move_ranges)

_FIELDS = {  # signature -> (offset, size) of fields
    b"PK\3\4": [(4, 2), (6, 2), (8, 2), (10, 2), (12, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)],
    b"PK\1\2": [
        (4, 2),
        (6, 2),
        (8, 2),
        (10, 2),
        (14, 2),
        (16, 4),
        (20, 4),
        (24, 4),
        (28, 2),
        (30, 2),
        (32, 2),
        (34, 2),
        (36, 2),
        (38, 4),
        (42, 4),
    ],
    b"PK\5\6": [(4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)],
}


def zip_field(random: Random, data: bytes) -> bytes:
    """A field of a header, of the directory or of its end has another value."""
    signature = random.choice(list(_FIELDS))
    places = [i for i in range(len(data)) if data.startswith(signature, i)]
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 2))):
        at, (offset, size) = random.choice(places), random.choice(_FIELDS[signature])
        old = int.from_bytes(out[at + offset : at + offset + size], "little")
        new = random.choice(
            (
                old + 1,
                old - 1,
                old ^ (1 << random.randrange(8 * size)),
                random.getrandbits(8 * size),
                0,
                8,
                12,
                14,
                93,
                -1,
                len(data),
                old * 2,
            )
        )
        out[at + offset : at + offset + size] = (new % (1 << (8 * size))).to_bytes(size, "little")
    return bytes(out)


def append_entry(random: Random, data: bytes) -> bytes:
    """A comment or an entry is added to a zip; perhaps one of a name that is there already."""
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as archive:
        if random.random() < 0.5:
            archive.comment = random.randbytes(random.choice((1, 22, 300))) + b"PK\5\6"
        else:
            name = random.choice((*archive.namelist(), "../outside", "more/", "x" * 70, layout.MANIFEST.upper()))
            archive.writestr(name, random.randbytes(20))
    return buffer.getvalue()


def pack(entries: Mapping[str, bytes], method: int | Mapping[str, int] | None = None) -> bytes:
    """A zip of entries; as vqcomp packs it, or by other methods."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries.items():
            usual = zipfile.ZIP_DEFLATED if name in (layout.BOOTSTRAP, layout.MANIFEST) else zipfile.ZIP_STORED
            kind = usual if method is None else method if isinstance(method, int) else method.get(name, usual)
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, kind)
    return buffer.getvalue()


def seal(table: Mapping[str, Any], edit: Callable[[bytes], bytes] = lambda body: body) -> bytes:
    """manifest.json of a table, edited as text by `edit`, its checksum made right."""
    body = edit(json.dumps(table, separators=(",", ":")).encode()[:-1])
    return body + CHECK.format(hashlib.sha256(body).hexdigest()).encode()


def odd_value(random: Random, old: Any) -> Any:
    """Something else in the place of a value of JSON."""
    ways: list[Any] = [
        *NUMBERS,
        -1,
        -(2**63),
        0.5,
        1e300,
        "@1e999",
        "@-1e999",
        "@NaN",
        "@" + "9" * 5000,
        True,
        False,
        None,
        "",
        "x",
        "\ud800",
        "x" * 300,
        [],
        [[]],
        {},
        {"all": 1},
        {"all": []},
        {"all": {"all": 2}},
        [old],
        [old, old],
        {"all": old},
        "@" + "[" * 3000 + "]" * 3000,
        "@" + '{"a":' * 50000 + "1" + "}" * 50000,
    ]
    if type(old) is int:
        ways += [old + 1, old - 1, old * 2, -old, float(old), str(old), old + 2**32, old ^ 1] * 3
    if isinstance(old, str):
        ways += [
            old[:-1],
            old + old,
            old.upper(),
            old + "\0",
            "../" + old,
            "/" + old,
            "<i1",
            "|u1",
            ">u8",
            "<f4",
            "|O",
            "<M8",
            "<i16",
        ] * 2
    if isinstance(old, list) and old:
        some = list(old)
        random.shuffle(some)
        ways += [
            old[:-1],
            [*old, old[-1]],
            some,
            old[::-1],
            old * 1000,
            [old[0]] * len(old),
            [odd_number(random)] * len(old),
        ] * 3
    if isinstance(old, dict) and old:
        key = random.choice(list(old))
        ways += [
            {k: v for k, v in old.items() if k != key},
            {**old, "more": 1},
            list(old),
            {k + "x": v for k, v in old.items()},
        ] * 2
    return random.choice(ways)


def odd_number(random: Random) -> int:
    return random.choice(NUMBERS) + random.choice((0, 1))


def forge(random: Random, table: Any, times: int | None = None) -> Any:
    """A copy of JSON in which one value, or two, at any depth are something else."""
    table = json.loads(json.dumps(table))
    for _ in range(times or random.choice((1, 1, 1, 2))):
        places: list[tuple[Any, Any]] = []
        _walk(table, places)
        if not places:
            break
        container, key = random.choice(places)
        container[key] = odd_value(random, container[key])
    return table


def _walk(value: Any, places: list[tuple[Any, Any]], depth: int = 0) -> None:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items)[:50]:
        places.append((value, key))
        if depth < 6:
            _walk(inner, places, depth + 1)


def literal(text: bytes) -> bytes:
    """JSON in which strings that start with @ stand for what follows, as it is: 1e999 and the like."""
    out, rest = b"", text
    while b'"@' in rest:
        before, _, rest = rest.partition(b'"@')
        end = rest.replace(b'\\"', b"''").index(b'"')
        out, rest = out + before + rest[:end].replace(b'\\"', b'"'), rest[end + 1 :]
    return out + rest


def with_crc(body: bytes) -> bytes:
    """A model file's bytes with the checksum of what comes before."""
    import zlib

    return body + struct.pack("<I", zlib.crc32(body))
