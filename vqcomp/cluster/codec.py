"""A cluster of Ray's as a codec: each task codes a few groups, on whatever machine has room for it.

Ray schedules the tasks. What is here bounds how many are in flight, and with them memory; gives a lost worker's groups
to another; and makes errors of what may go wrong. Segments and streams travel through Ray's object store, so that
workers need neither the data nor shared storage.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from ..archive.journal import code_digest
from ..runtime import errors
from ..runtime.codec import Advance, Codec
from ..runtime.compute import Compute, cpus
from ..runtime.errors import DependencyError, InputError
from ..runtime.kinds import EXTERNAL, make_codec
from ..runtime.spec import TokenSpec
from .worker import Settings

RAY = ((2, 9), (3,))
"""The versions of Ray that will do: from the first, below the second. Those of the extra in pyproject.toml."""
AHEAD = 3
"""Tasks in flight for each that can run at a time: enough that no worker waits for this machine."""
TRIES = 4
"""A task whose worker is lost so often is not tried again: it may be what ends the workers."""
PATIENCE = 300.0
"""Seconds to wait for a machine with room for a task: a cluster that grows on demand takes minutes."""
CONNECT_SECONDS = 10.0
_POLL, _LOOK = 0.5, 5.0
"""Seconds between looks at whether this was interrupted, and at the cluster's machines."""
_THREADS = 2
"""CPUs of a task, unless said: a codec that learns keeps about two busy."""

Item = TypeVar("Item")
Group = Sequence[np.ndarray]


@dataclass
class _Task:
    """A task in flight, and what it takes to start it again."""

    item: Any
    columns: Any
    reference: Any
    tries: int = 1
    result: list[Any] | None = None


@contextmanager
def connect(address: str | None, compute: Compute) -> Iterator[Cluster | None]:
    """The cluster at `address`, until the end of the `with`; None for None.

    address: local (this machine's CPUs), auto (the one that this machine belongs to), HOST:PORT or ray://HOST:PORT.
    Where Ray is connected already, that connection is used, and left. Raises DependencyError, InputError.
    """
    if address is None:
        yield None
        return
    if not re.fullmatch(r"auto|local|(ray://)?[^/\s:]+:\d+", address):
        raise InputError(f"--cluster: expected auto, local, HOST:PORT or ray://HOST:PORT, found {address}")
    if re.fullmatch(r"cuda:\d+", compute.device):
        raise InputError(f"--device {compute.device}: on a cluster Ray gives each task a GPU; say --device cuda")
    ray = _import_ray()
    mine = not ray.is_initialized()
    if mine:
        _start(ray, address)
    try:
        yield Cluster(ray, compute, grows=address != "local")
    finally:
        if mine:
            ray.shutdown()


class Cluster:
    """Machines that code groups. A task takes compute.threads CPUs and, where the device is cuda, a GPU."""

    def __init__(self, ray: Any, compute: Compute, *, grows: bool = True) -> None:
        self.ray, self.compute, self._grows = ray, compute, grows
        self._code = code_digest()
        self._looked, self._waiting_since = -_LOOK, time.monotonic()
        self._largest: dict[str, float] = {}
        self._slots = 0

    def codec(self, spec: TokenSpec, model: bytes | None, *, adapt: bool, compute: Compute) -> ClusterCodec:
        """As kinds.make_codec; what the codec needs of `compute` it has from this cluster. Raises as make_codec."""
        local = make_codec(spec, model, adapt=adapt, compute=Compute("numpy", 1, 1))
        return ClusterCodec(self, local, spec, model, adapt)

    def put(self, model: bytes | None) -> Any:
        """A model, where tasks find it."""
        return self.ray.put(model)

    @property
    def threads(self) -> int:
        """CPUs of a task."""
        return self.compute.threads or max(1, min(_THREADS, int(self._largest.get("CPU", _THREADS))))

    def run(
        self, method: str, settings: Callable[[int], Settings], model: Any, items: Iterable[tuple[Item, Any]]
    ) -> Iterator[tuple[Item, list[Any]]]:
        """Yield (item, what `method` makes of its columns), in order, for (item, columns); see worker.run.

        No more than AHEAD items for each task that can run, or compute.jobs, have been taken and not yet yielded.
        """
        tasks: dict[int, _Task] = {}
        source, first, count, is_more = iter(items), 0, 0, True

        def submit(columns: Any) -> Any:
            return self._submit(method, settings(self.threads), model, columns)

        try:
            while True:
                self._look()
                while is_more and len(tasks) < self._window:
                    following = next(source, None)
                    if following is None:
                        is_more = False
                    else:
                        tasks[count] = _Task(*following, submit(following[1]))
                        count += 1
                if not tasks:
                    return
                open_tasks = {t.reference: t for t in tasks.values() if t.result is None}
                for reference in self.ray.wait([*open_tasks], timeout=_POLL)[0]:
                    task = open_tasks[reference]
                    task.result = self._result(task)
                    if task.result is None:
                        task.tries += 1
                        task.reference = submit(task.columns)
                while first in tasks and (result := tasks[first].result) is not None:
                    yield tasks.pop(first).item, result
                    first += 1
        finally:
            for task in tasks.values():
                if task.result is None:
                    with suppress(Exception):  # on the way out, perhaps since the cluster has gone
                        self.ray.cancel(task.reference, force=True)

    @property
    def _window(self) -> int:
        return self.compute.jobs or AHEAD * max(1, self._slots)

    @property
    def _gpus(self) -> int:
        return int(self.compute.device == "cuda")

    def _submit(self, method: str, settings: Settings, model: Any, columns: Any) -> Any:
        remote = self.ray.remote(_make_task()).options(
            name=f"vqcomp {method}", num_cpus=settings[3], num_gpus=self._gpus, max_retries=0,
            scheduling_strategy="SPREAD",
        )  # fmt: skip
        return remote.remote(self._code, method, settings, model, columns)

    def _look(self) -> None:
        """See what the machines have to offer. Raises InputError if for long there is none with room for a task."""
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        nodes = [n["Resources"] for n in self.ray.nodes() if n["Alive"]]
        self._largest = {key: max((n.get(key, 0.0) for n in nodes), default=0.0) for key in ("CPU", "GPU")}
        need = {"CPU": self.threads, **({"GPU": 1} if self._gpus else {})}
        self._slots = sum(min(int(n.get(key, 0) // size) for key, size in need.items()) for n in nodes)
        if self._slots:
            self._waiting_since = now
        elif not self._grows or now - self._waiting_since > PATIENCE:
            wanted = f"{self.threads} CPUs{' and a GPU' if self._gpus else ''}"
            found = ", ".join(f"{n.get('CPU', 0):.0f} CPUs and {n.get('GPU', 0):.0f} GPUs" for n in nodes[:3])
            raise InputError(
                f"--cluster: each task takes {wanted}; no machine has these, of {len(nodes)} (such as {found}): "
                "add machines, or choose another -T or --device"
            )

    def _result(self, task: _Task) -> list[Any] | None:
        """What a task that has ended returned; None if its worker was lost, and it shall be tried again."""
        exceptions = self.ray.exceptions
        try:
            kind, value = self.ray.get(task.reference)
        except exceptions.RuntimeEnvSetupError as error:
            raise InputError(f"--cluster: a worker's environment cannot be set up: {_last_line(error)}") from error
        except exceptions.RayTaskError as error:
            raise InputError(f"--cluster: a task failed: {_last_line(error)}") from error
        except exceptions.RayError as error:
            if task.tries < TRIES:
                return None
            if isinstance(error, exceptions.OutOfMemoryError):
                reason = "its machine ran out of memory"
            else:
                reason = f"{type(error).__name__}; perhaps its machine ran out of memory"
            raise InputError(
                f"--cluster: a worker was lost {TRIES} times with the same groups ({reason}): try a smaller "
                "--batch-size, or more CPUs for a task (-T), so that fewer share a machine"
            ) from error
        except ConnectionError as error:
            raise InputError(f"--cluster: the connection is lost: {_last_line(error)}") from error
        if kind == "done":
            return list(value)
        raise getattr(errors, kind)(value)


class ClusterCodec(Codec):
    """A codec on a cluster: the same bytes as of the one that `local` is."""

    def __init__(self, cluster: Cluster, local: Codec, spec: TokenSpec, model: bytes | None, adapt: bool) -> None:
        """Raises InputError for an external network, which machines of a cluster would each have to have."""
        if model and model.startswith(EXTERNAL):
            raise InputError("--cluster: an external network codes on this machine alone; leave --cluster out")
        self._sizes = local.group_size, local.group_limit
        self._cluster, self._spec, self._adapt = cluster, spec, adapt
        self._model = cluster.put(model)
        local.close()
        # What learns is computed eight segments at a time anyway; a GPU, and the network alone, want as many as fit.
        batch = max(1, cluster.compute.batch_size // self.group_size)
        self._groups = batch if self.group_limit == 1 or cluster.compute.device == "cuda" else 1

    @property
    def group_size(self) -> int:
        return self._sizes[0]

    @property
    def group_limit(self) -> int:
        return self._sizes[1]

    def encoded(self, groups: Iterable[Group], advance: Advance | None = None) -> Iterator[tuple[Group, bytes]]:
        """Yield (group, its stream), in order, taking groups only as workers have room for them."""
        parts = ((part, [part]) for part in _parts(groups, self._groups))
        for part, streams in self._run("encode", parts):
            for group, stream in zip(part, streams):
                if advance:
                    advance(sum(s.shape[0] * s.shape[1] for s in group))
                yield group, stream

    def decoded(
        self, streams: Iterable[tuple[Item, bytes, Sequence[int]]], advance: Advance | None = None
    ) -> Iterator[tuple[Item, list[np.ndarray] | str]]:
        """Yield (item, its segments, or what is wrong with its stream), in order, for (item, stream, lengths T)."""
        parts = (
            ([item for item, _, _ in part], [[s for _, s, _ in part], [f for _, _, f in part]])
            for part in _parts(streams, self._groups)
        )
        for items, results in self._run("decode", parts):
            for item, found in zip(items, results):
                if advance and not isinstance(found, str):
                    advance(sum(s.shape[0] * s.shape[1] for s in found))
                yield item, found

    def encode(self, groups: Sequence[Group], advance: Advance | None = None) -> list[bytes]:
        """As of the codec."""
        return [stream for _, stream in self.encoded(groups, advance)]

    def decode(
        self, streams: Sequence[bytes], frames: Sequence[Sequence[int]], advance: Advance | None = None
    ) -> list[list[np.ndarray]]:
        """As of the codec."""
        found = [f for _, f in self.decoded(((None, *item) for item in zip(streams, frames)), advance)]
        for reason in found:
            if isinstance(reason, str):
                raise errors.DamageError(reason)
        return [f for f in found if not isinstance(f, str)]

    def _run(self, method: str, items: Iterable[tuple[Item, Any]]) -> Iterator[tuple[Item, list[Any]]]:
        spec, compute = self._spec, self._cluster.compute

        def settings(threads: int) -> Settings:
            grid = (spec.height, spec.width, tuple(spec.factors))
            return grid, self._adapt, compute.device, threads, compute.batch_size

        return self._cluster.run(method, settings, self._model, items)


def _make_task() -> Callable[..., tuple[str, Any]]:
    """What tasks run: pickled by value, being nested, so that it can tell of a worker without vqcomp."""

    def task(*arguments: Any) -> tuple[str, Any]:
        try:
            from vqcomp.cluster.worker import run
        except ImportError as error:
            import socket

            return "DependencyError", (
                f"worker {socket.gethostname()}: vqcomp cannot be imported there ({error}); install the same vqcomp on "
                "all machines of the cluster"
            )
        return run(*arguments)

    return task


def _parts(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part


def _import_ray() -> Any:
    """The package ray. Raises DependencyError where it is missing or of a version that was never tried."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # tell nobody
    try:
        import ray
    except ImportError as error:
        raise DependencyError(f"--cluster takes Ray: pip install 'vqcomp[cluster]' ({error})") from error
    found = tuple(int(n) for n in re.findall(r"\d+", ray.__version__)[:3])
    if not RAY[0] <= found < RAY[1]:
        low, high = (".".join(map(str, version)) for version in RAY)
        raise DependencyError(
            f"--cluster: expected Ray from {low} on, below {high}, found {ray.__version__}; "
            "pip install 'vqcomp[cluster]', on all machines"
        )
    return ray


def _start(ray: Any, address: str) -> None:
    """Connect to a cluster, or start one of this machine's processes. Raises InputError, DependencyError."""
    if match := re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address):
        try:
            socket.create_connection((match[1], int(match[2])), CONNECT_SECONDS).close()
        except OSError as error:
            raise InputError(f"--cluster {address}: nothing answers there: {error.strerror or error}") from error
    own: dict[str, Any] = {"num_cpus": cpus(), "include_dashboard": False} if address == "local" else {}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", **own)
    except ImportError as error:
        raise DependencyError(f"--cluster {address}: pip install 'vqcomp[cluster]' ({error})") from error
    except (OSError, RuntimeError, ValueError) as error:
        if re.search("version", str(error), re.IGNORECASE):
            raise DependencyError(
                f"--cluster {address}: it runs another version of Ray or Python than this machine: "
                f"{' '.join(str(error).split())}; install the same on all"
            ) from error
        hint = "; `ray start --head` starts one" if address == "auto" else ""
        raise InputError(f"--cluster {address}: cannot be reached: {_last_line(error)}{hint}") from error
    finally:
        # Ray leaves at SIGTERM without a word; here temporary files are to be removed on the way out.
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _last_line(error: BaseException) -> str:
    """What an error says in the end: Ray's begin with a traceback of the worker's."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
