"""Manifests that anyone may have written: each field is checked before anything is made of it.

The decoder in a zip leaves this out: its manifest comes from where it comes from itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import PurePosixPath
from typing import Any

from ..data.names import check_name
from ..runtime.errors import DamageError, FormatError
from ..runtime.kinds import KINDS
from ..runtime.layout import FORMAT, MANIFEST, MODEL_LIMIT, TOKENS_LIMIT
from ..runtime.manifest import Manifest, check_whole, from_table

FACTORS_LIMIT, VOCABULARY_LIMIT = 64, 1 << 16
"""Factors of a token, and values of a factor."""
STREAM_END, DECISIONS, SYMBOLS = 96, 16, 19
"""A stream of s bytes has 8 s + 96 bits at most; a bit, at most so many binary orders of decisions or symbols."""
KEPT_RATIO = 1 << 13
"""xz makes no more bytes than this out of one."""


def parse_untrusted(data: bytes) -> Manifest:
    """As `manifest.parse`, of a manifest that breaks no rule of FORMAT.md, section 3.

    Raises FormatError, DamageError (its own checksum) or UnsafeNameError.
    """
    try:
        table = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{MANIFEST} is damaged: expected JSON, found {error}") from error
    found = table.get("format") if isinstance(table, dict) else None
    if found != FORMAT or isinstance(found, bool):
        shown = json.dumps(found)[:60]
        raise FormatError(f"{MANIFEST}: expected format {FORMAT}, found {shown}; the vqcomp that wrote it may read it")
    check_whole(data)
    try:
        _check(table)
        return from_table(table)
    except KeyError as error:
        raise FormatError(f"{MANIFEST}: the field {error} is missing") from error
    except ValueError as error:
        raise FormatError(f"{MANIFEST}: {error}") from error
    except (TypeError, AttributeError, IndexError, OverflowError) as error:
        raise FormatError(f"{MANIFEST}: a field holds something of another kind than it should") from error


def _check(table: dict[str, Any]) -> None:
    specs, rows, groups = table["specs"], table["segments"], table["groups"]
    for spec in specs:
        for side in ("height", "width"):
            _integer(spec[side], 1)
        factors = spec["factors"]
        if not 1 <= len(factors) <= FACTORS_LIMIT or not all(2 <= _integer(f) <= VOCABULARY_LIMIT for f in factors):
            raise ValueError(
                f"expected 1 to {FACTORS_LIMIT} factors of 2 to {VOCABULARY_LIMIT}, found {str(factors)[:60]}"
            )
        if spec["codec"] not in KINDS:
            raise FormatError(
                f"{MANIFEST}: expected a codec among {', '.join(KINDS)}, found {json.dumps(spec['codec'])[:60]}; "
                "upgrade vqcomp"
            )
    # A list of names is no longer than the manifest: what counts them can be believed from here on.
    names = rows["name"]
    if not isinstance(names, list) or "count" in rows:
        raise ValueError("segments are counted by the list of their names")
    _check_names([*names, *_check_files(table.get("files")), *_check_raw(table.get("raw"), len(names))])
    if _integer(groups["count"], 1) > len(names):
        raise ValueError("more groups than segments")
    crcs = map(_integer, _values(rows, "crc32", len(names)))
    segments = zip(names, _values(rows, "dtype", len(names)), _values(rows, "shape", len(names)), crcs, strict=True)
    left = len(names)
    for index, count, size, crc in _rows(groups, "spec", "segments", "bytes", "crc32"):
        spec = specs[_integer(index)]
        _integers(size, crc)
        left -= _integer(count, 1)
        if left < 0:
            raise ValueError(f"groups of more than {len(names)} segments")
        if count > 1 and not KINDS[spec["codec"]].learns:
            raise ValueError(f"a group of the codec {spec['codec']} has one segment")
        tokens = sum(_check_segment(spec, *next(segments)[:3]) for _ in range(count))
        if tokens > (8 * size + STREAM_END) << (DECISIONS if KINDS[spec["codec"]].learns else SYMBOLS):
            raise ValueError(f"a stream of {size} bytes cannot hold {tokens} tokens")
    if left:
        raise ValueError(f"{left} segments that are in no group")
    model = table["model"]
    if (model is not None) != any(KINDS[spec["codec"]].has_network for spec in specs):
        raise ValueError("a model goes with codecs that have a network, and only with them")
    texts = [table["vqcomp"], table["sha256"]]
    if model is not None:
        _integer(model["bytes"], 1, MODEL_LIMIT)
        texts.append(model["sha256"])
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"expected texts, found {json.dumps(texts)[:60]}")


def _check_segment(spec: dict[str, Any], name: str, dtype: Any, shape: Any) -> int:
    """Returns the number of tokens."""
    height, width = spec["height"], spec["width"]
    sizes = [_integer(size, 1) for size in shape]
    if sizes[1:] not in ([height, width], [height * width]) or prod(sizes) > TOKENS_LIMIT:
        raise ValueError(f"the shape {shape} of {name} does not fit its frames")
    if not re.fullmatch(r"[<>|][iu][1248]", dtype):
        raise ValueError(f"expected a dtype of integers, found {dtype} of {name}")
    return prod(sizes)


def _check_files(table: Any) -> list[Any]:
    """Returns the names."""
    if table is None:
        return []
    for _, size, crc, stored in _rows(table, "name", "bytes", "crc32", "stored"):
        _integers(size, crc)
        if size > KEPT_RATIO * _integer(stored, 1):
            raise ValueError(f"{stored} bytes of xz cannot hold {size}")
    return list(table["name"])


def _check_raw(table: Any, segments: int) -> list[Any]:
    """Returns the names."""
    if table is None:
        return []
    end = 0
    for _, first, count in _rows(table, "name", "first", "segments"):
        if _integer(first, end) + _integer(count, 1) > segments:
            raise ValueError(f"raw files of more than {segments} segments")
        end = first + count
    return list(table["name"])


def _check_names(names: list[Any]) -> None:
    for name in names:
        check_name(name)
    folded = {name.casefold() for name in names}
    if len(folded) < len(names) or folded & {str(folder) for name in folded for folder in PurePosixPath(name).parents}:
        raise FormatError(f"{MANIFEST}: duplicate names, or a name that is a folder in another")


def _rows(table: Any, *keys: str) -> Iterator[tuple[Any, ...]]:
    count = _integer(table["count"], 1)
    if "name" in keys and len(table["name"]) != count:
        raise ValueError(f"expected a list of {count} names")
    return zip(*(_values(table, key, count) for key in keys), strict=True)


def _values(table: Any, key: str, count: int) -> Sequence[Any]:
    """A column. The names of a table are always a list."""
    column = table[key]
    if isinstance(column, dict) and key != "name":
        return [column["all"]] * count
    if not isinstance(column, list) or len(column) != count:
        raise ValueError(f"expected a column of {count} values")
    return column


def _integers(*values: Any) -> None:
    for value in values:
        _integer(value)


def _integer(value: Any, least: int = 0, most: int = 1 << 63) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"expected an integer in {least}..{most}, found {json.dumps(value)[:60]}")
    return value
