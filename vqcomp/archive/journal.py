"""The journal of a compression: what is done of it, so that it can go on after Ctrl-C, a crash or a full disk.

It lies beside the output, as NAME.partial: MAGIC, then records, to which others are only ever appended. A record is the
size of its payload (8 bytes, little-endian), the CRC-32 of its number, size and payload (4 bytes), and the payload.
Record 0 says what the run is (JSON), record 1 holds the model that was chosen. A later one is STREAM and a group's
stream, in the archive's order, or it is VERIFIED: one more group was decoded, and gave what it was made of. A record
that is torn, and what follows it, never happened.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ..runtime.disk import replacing
from ..runtime.errors import InputError
from .packing import RUNTIME_FOLDER, source_of

MAGIC = b"vqcomp journal 2\n"
STREAM, VERIFIED = b"s", b"v"
SYNC_SECONDS = 1.0
"""A power failure costs at most the work of so many seconds: more syncing would cost time, less would cost work."""
_HEAD = struct.Struct("<QI")
_NAMED = 3
"""So many differing names are told; the rest is a number."""

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: BinaryIO) -> None:
        handle.seek(1 << 40)  # others may read all the same
        msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(handle: BinaryIO) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Journal:
    """An open journal, locked against other runs. Close it, or `remove` it once the output is whole.

    About is what decides the output's bytes: values that JSON has, or mappings of names to such.
    """

    def __init__(self, out: Path, about: Mapping[str, Any]) -> None:
        """Open the journal of `out`, or begin it. Raises InputError where another run has it, or it is of another."""
        self.path = journal_path(out)
        self.model: tuple[str, bytes] | None = None
        """Name and bytes of the model that was chosen; (\"\", b\"\") for none, None where nothing was chosen yet."""
        self.verified = 0
        """How many groups were decoded and compared."""
        self._records = 0
        self._places: list[tuple[int, int]] = []  # (offset, size) of each group's stream
        self._synced = 0.0
        self._file = _open_locked(self.path)
        try:
            self._read(about)
        except BaseException:
            self._file.close()
            raise

    @property
    def done(self) -> int:
        """How many groups are done."""
        return len(self._places)

    def stream(self, group: int) -> bytes:
        """The stream of a group that is done. Raises InputError if it can no longer be read."""
        offset, size = self._places[group]
        try:
            self._file.seek(offset)
            data = self._file.read(size)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        if len(data) != size:
            raise InputError(f"{self.path}: got shorter while it was read; start again with --resume")
        return data

    def choose(self, name: str, model: bytes) -> None:
        """Note the model that was chosen."""
        self.model = name, model
        self._append(json.dumps(name).encode() + b"\n" + model)
        self._sync()

    def append(self, stream: bytes) -> None:
        """Note the next group as done. It outlives this process at once, a power failure within SYNC_SECONDS."""
        self._places.append((self._append(STREAM + stream) + len(STREAM), len(stream)))
        self._sync_now_and_then()

    def verify(self) -> None:
        """Note that the next group's stream gives what it was made of."""
        self._append(VERIFIED)
        self.verified += 1
        self._sync_now_and_then()

    def close(self) -> None:
        """Leave it for another run to go on; without a model there is nothing to go on from, and it is removed."""
        if self._file.closed:
            return
        if self.model is None:
            self.remove()
        else:
            with suppress(InputError):  # this is on the way out
                self._sync()
            self._file.close()

    def remove(self) -> None:
        """Remove it: the output is whole, or of no use."""
        try:
            self.path.unlink(missing_ok=True)
        except PermissionError:  # Windows does not remove what is open
            self._file.close()
            self.path.unlink(missing_ok=True)
        self._file.close()

    def _read(self, about: Mapping[str, Any]) -> None:
        """Find the records, and what differs from this run; begin anew where not even the first record is whole."""
        self._file.seek(0)
        found = self._file.read(len(MAGIC))
        if not MAGIC.startswith(found):
            raise InputError(f"{self.path}: expected a journal of this vqcomp, found another file; move it away")
        self._end = len(MAGIC)
        head: dict[str, Any] | None = None
        while found == MAGIC and (payload := self._next_record()) is not None:
            if head is None:
                head = json.loads(payload)
                _require_equal(self.path, head, about)
            elif self.model is None:
                name, _, model = payload.partition(b"\n")
                self.model = json.loads(name), model
            elif payload == VERIFIED:
                self.verified += 1
            else:
                self._places.append((self._end + _HEAD.size + len(STREAM), len(payload) - len(STREAM)))
            self._end += _HEAD.size + len(payload)
            self._records += 1
        if head is not None:
            with self._explained():
                self._file.truncate(self._end)
            return
        try:
            with self._explained():
                self._file.truncate(0)
                self._write(0, MAGIC)
            self._append(json.dumps(about).encode())
            self._sync()
        except BaseException:
            self.remove()  # nothing is in it
            raise
        _sync_folder(self.path.parent)

    def _next_record(self) -> bytes | None:
        """The payload of the record at the end of what was read so far; None where there is none, or half of one."""
        self._file.seek(self._end)
        head = self._file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return None
        size, checksum = _HEAD.unpack(head)
        if size > os.fstat(self._file.fileno()).st_size - self._end - _HEAD.size:
            return None
        payload = self._file.read(size)
        return payload if _checksum(self._records, payload) == checksum else None

    def _append(self, payload: bytes) -> int:
        """Append a record; returns where its payload lies."""
        record = _HEAD.pack(len(payload), _checksum(self._records, payload)) + payload
        with self._explained():
            self._write(self._end, record)
        self._end += len(record)
        self._records += 1
        return self._end - len(payload)

    def _write(self, offset: int, data: bytes) -> None:
        self._file.seek(offset)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def _sync_now_and_then(self) -> None:
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            self._sync()

    def _sync(self) -> None:
        with self._explained():
            os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what the system refuses into InputError; what was written of a record is taken back."""
        try:
            yield
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._end)
            reason = error.strerror or str(error)
            if error.errno == errno.ENOSPC:
                reason += f" ({shutil.disk_usage(self.path.parent).free:,} bytes are free)"
            raise InputError(
                f"{self.path}: cannot be written: {reason}; make room, then go on with --resume"
            ) from error


def journal_path(out: Path) -> Path:
    """Where the journal of an output lies."""
    return out.with_name(out.name + ".partial")


def is_left_over(out: Path) -> bool:
    """Whether a journal lies there that no run uses. Raises InputError if one does."""
    path = journal_path(out)
    if not path.exists():
        return False
    _open_locked(path).close()
    return True


def code_digest() -> str:
    """A hash of the sources that decide the bytes of streams."""
    names = sorted(path.stem for path in RUNTIME_FOLDER.glob("*.py"))
    return hashlib.sha256("\0".join(source_of(name) for name in names).encode()).hexdigest()


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """As `replacing`, but where the system has files without a name, not even kill -9 leaves one."""
    handle = _unnamed(path.parent)
    if handle is None:
        with replacing(path) as temporary:
            yield temporary
        return
    with handle, replacing(path) as temporary:
        unnamed = f"/proc/self/fd/{handle.fileno()}"
        yield Path(unnamed)
        try:
            # Only with a folder does Python follow this link; the folder itself does not matter.
            os.link(unnamed, temporary, src_dir_fd=handle.fileno())
        except OSError:
            shutil.copyfile(unnamed, temporary)


def _unnamed(folder: Path) -> BinaryIO | None:
    """A new file without a name on the folder's disk; None where the system does not have that."""
    if sys.platform != "linux" or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        return open(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666), "r+b", buffering=0)
    except OSError:
        return None


def _checksum(number: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<QQ", number, len(payload))))


def _open_locked(path: Path) -> BinaryIO:
    """Open a file for reading and writing, or make it, and lock it. Raises InputError where another run has it."""
    while True:
        try:
            handle = open(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b", buffering=0)
        except OSError as error:
            raise InputError(f"{path}: cannot be opened: {error.strerror or error}") from error
        try:
            _lock(handle)
        except OSError as error:
            handle.close()
            if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                return _open_unlocked(path)
            raise InputError(f"{path}: another run writes this output just now; wait for it, or end it") from error
        # The run that had it may have removed it between the two steps.
        if path.exists() and os.path.samestat(os.fstat(handle.fileno()), path.stat()):
            return handle
        handle.close()


def _open_unlocked(path: Path) -> BinaryIO:
    """For file systems without locks."""
    return open(path, "r+b", buffering=0)


def _sync_folder(folder: Path) -> None:
    """Make a new name outlive a power failure, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _require_equal(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise InputError that names what differs between two runs."""
    # Through JSON, since it knows no tuples.
    now = json.loads(json.dumps(now))
    differences: list[str] = []
    for key in dict.fromkeys([*now, *then]):
        before, after = then.get(key), now.get(key)
        if json.dumps(before) == json.dumps(after):  # which sees the order, too
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            differences += _differing_names(key, before, after)
        else:
            differences.append(f"{key} was {_say(before)}, is {_say(after)}")
    if differences:
        raise InputError(
            f"{path}: was begun with other input, model or options: {'; '.join(differences)}. "
            "Give what it was begun with, or remove it to begin anew"
        )


def _differing_names(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    kinds = (
        ("changed", [name for name in before if name in after and before[name] != after[name]]),
        ("gone", [name for name in before if name not in after]),
        ("new", [name for name in after if name not in before]),
    )
    for what, names in kinds:
        if names:
            more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
            yield f"{key} {what}: {', '.join(names[:_NAMED])}{more}"
    if not any(names for _, names in kinds):
        yield f"{key} in another order"


def _say(value: Any) -> str:
    return "not given" if value is None else {True: "on", False: "off"}[value] if value in (True, False) else str(value)
