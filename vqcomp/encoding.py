"""Writing a whole archive: group by group, here or on a cluster, in a journal as well so that it can be resumed."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .archive.compare import differences
from .archive.journal import Journal, code_digest, is_left_over, journal_path
from .archive.writer import Writer
from .choice import Chooser
from .cluster.archive import opened
from .cluster.codec import Cluster, ClusterCodec
from .data.files import File
from .data.segments import SegmentSource
from .data.sources import Found
from .model_files import ModelFile, spec_of
from .runtime import layout
from .runtime.codec import Advance, Codec
from .runtime.compute import Compute
from .runtime.errors import DamageError
from .runtime.kinds import choose_kind, make_codec
from .runtime.manifest import Coding, Raw
from .runtime.progress import Progress
from .runtime.spec import TokenSpec
from .version import __version__


@contextmanager
def kept_journal(
    out: Path, about: Callable[[], Mapping[str, Any]], *, wanted: bool, resume: bool, report: Callable[[str], None]
) -> Iterator[Journal | None]:
    """The journal of this run, if it shall have one; when something goes wrong, the user is told what it is good for.

    about: what decides the output's bytes, see Journal. Raises InputError where another run writes `out` just now.
    """
    path = journal_path(out)
    if not resume and is_left_over(out):
        report(f"note: {path} is left of an earlier run, and stays; this run keeps none (--resume goes on with it)")
    elif resume or wanted:
        with _told(Journal(out, about()), report) as journal:
            yield journal
        return
    yield None


@contextmanager
def _told(journal: Journal, report: Callable[[str], None]) -> Iterator[Journal]:
    if journal.done:
        report(f"note: {journal.path}: {journal.done:,} groups of an earlier run are done; going on")
    try:
        yield journal
    except DamageError:
        journal.remove()  # going on from it would end in the same
        raise
    except BaseException:
        journal.close()
        if journal.model is not None:
            report(
                f"note: {journal.path} holds {journal.done:,} groups that are done; "
                "the same command with --resume goes on"
            )
        raise
    finally:
        journal.close()


def about_run(
    found: Found,
    by_spec: Mapping[TokenSpec, Sequence[SegmentSource]],
    model: str,
    models: Sequence[ModelFile],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """What decides the bytes of an archive: what must be the same where a run goes on with another's journal."""
    segments = [s for same in by_spec.values() for s in same]
    return {
        "vqcomp": __version__,
        "format": layout.FORMAT,
        "code": code_digest(),
        "--model": model,
        **{f"--{name.replace(' ', '-')}": value for name, value in options.items()},
        "model": {m.name: hashlib.sha256(m.data).hexdigest() for m in models},
        "segments": {s.name: [s.dtype.str, s.shape, s.grid, s.file, found.checksums[s.name]] for s in segments},
        "files": {f.name: [f.size, _checksum(f)] for f in found.files},
    }


def choose_once(
    chooser: Chooser,
    model: str | os.PathLike[str] | ModelFile,
    level: int,
    train: float | None,
    folder: Path,
    journal: Journal | None,
) -> ModelFile | None:
    """As Chooser.choose; an earlier run's choice, and what it trained, stands."""
    if journal and journal.model:
        name, data = journal.model
        chooser.report(f"model: {name or 'none'}, as chosen before")
        return ModelFile(name, data, spec_of(data)) if name else None
    chosen = chooser.choose(model, level, train, folder)
    if journal:
        journal.choose(chosen.name if chosen else "", chosen.data if chosen else b"")
    return chosen


class GroupCoding(NamedTuple):
    """What codes the groups of an archive: see api.compress."""

    model: ModelFile | None
    adapt: bool
    group_size: int
    decoder: bool


def write(
    path: Path,
    by_spec: dict[TokenSpec, list[SegmentSource]],
    files: Sequence[File],
    coding: GroupCoding,
    ready: Mapping[TokenSpec, Mapping[int, bytes]],
    journal: Journal | None,
    cluster: Cluster | None,
    compute: Compute,
    progress: Progress,
) -> None:
    """Write the archive; groups that the journal holds are not coded again, and it gets the others as they are done.

    ready: streams of groups that were coded before, by spec and number; see Chooser.ready.
    """
    model, adapt, group_size, decoder = coding
    everything = [s for segments in by_spec.values() for s in segments]
    compute = compute.with_jobs(model is not None)
    fits = {spec: model.data if model and model.spec == spec else None for spec in by_spec}
    codings = [Coding(spec, choose_kind(data, adapt)) for spec, data in fits.items()]
    bound = sum(s.tokens * len(spec.factors) for spec, segments in by_spec.items() for s in segments)
    raw, first = [], 0
    for name, parts in groupby(everything, lambda s: s.file):
        count = sum(1 for _ in parts)
        if name is not None:
            raw.append(Raw(name, range(first, first + count)))
        first += count
    make = cluster.codec if cluster else make_codec
    codecs = {spec: make(spec, data, adapt=adapt, compute=compute) for spec, data in fits.items()}
    sizes = {spec: min(group_size, codec.group_limit) for spec, codec in codecs.items()}
    workers = any(c.kind.has_processes and len(by_spec[c.spec]) > sizes[c.spec] for c in codings)
    groups: list[tuple[int, list[SegmentSource]]] = []
    streams: dict[int, bytes] = {}
    for index, (spec, segments) in enumerate(by_spec.items()):
        streams.update({len(groups) + number: stream for number, stream in ready.get(spec, {}).items()})
        groups += [(index, segments[i : i + sizes[spec]]) for i in range(0, len(segments), sizes[spec])]
    done = journal.done if journal else 0
    try:
        with Writer(
            path,
            codings,
            model.data if model else None,
            max_tokens=bound,
            raw=raw,
            files=files,
            workers=workers,
            decoder=decoder,
        ) as writer:

            def add(index: int, group: Sequence[SegmentSource], tokens: Sequence[np.ndarray], stream: bytes) -> None:
                names, dtypes = [s.name for s in group], [s.dtype for s in group]
                writer.add(index, names, dtypes, [s.shape for s in group], tokens, stream)
                progress.advance(len(group), 0)

            _begin(progress, "reading again", groups[:done])
            for number, (index, group) in enumerate(groups[:done]):
                assert journal
                add(index, group, [s.tokens_of(codings[index].spec) for s in group], journal.stream(number))
                progress.advance(0, sum(s.tokens for s in group))
            _begin(progress, "compressing", groups[done:])
            number = done
            for (index, known), same in groupby(range(done, len(groups)), lambda n: (groups[n][0], n in streams)):
                spec, numbers = codings[index].spec, list(same)
                members = [groups[n][1] for n in numbers]
                tokens = ([s.tokens_of(spec) for s in group] for group in members)
                coded: Iterable[tuple[Sequence[np.ndarray], bytes]]
                if known:
                    coded = zip(tokens, [streams[n] for n in numbers])
                    progress.advance(0, sum(s.tokens for group in members for s in group))
                else:
                    coded = _encoded(codecs[spec], tokens, sizes[spec], compute, partial(progress.advance, 0))
                for group, (arrays, stream) in zip(members, coded):
                    if journal:
                        journal.append(stream)
                    add(index, group, arrays, stream)
                    number += 1
                    progress.groups_done(number, len(groups))
    finally:
        for codec in codecs.values():
            codec.close()
    progress.end()


def verify_written(
    path: Path,
    by_spec: dict[TokenSpec, list[SegmentSource]],
    files: Sequence[File],
    journal: Journal | None,
    cluster: Cluster | None,
    compute: Compute,
    progress: Progress,
) -> None:
    """Decode what was just written and compare it with its sources, but for groups that by the journal were compared.

    Raises DamageError.
    """
    sources = {s.name: s for segments in by_spec.values() for s in segments}
    with opened(path, compute, cluster) as archive:
        if list(archive) != list(sources):
            raise DamageError("verification failed: the archive's names are not those of the data; please report this")
        kept, first = {f.name: f for f in files}, journal.verified if journal else 0

        def same() -> None:
            if journal:
                journal.verify()

        for name, how in differences(archive, sources, kept, "verifying", progress, first=first, same=same):
            raise DamageError(
                f"verification failed: {name} does not come back: {how}; "
                "either the file changed meanwhile, or this is a bug: please report it"
            )


def _encoded(
    codec: Codec, groups: Iterable[Sequence[np.ndarray]], group_size: int, compute: Compute, advance: Advance
) -> Iterator[tuple[Sequence[np.ndarray], bytes]]:
    """Yield (group, its stream), in order; no more groups are in memory than are computed together."""
    if isinstance(codec, ClusterCodec):
        yield from codec.encoded(groups, advance)
        return
    step, groups = max(compute.processes, compute.batch_size // group_size), iter(groups)
    while batch := list(islice(groups, step)):
        yield from zip(batch, codec.encode(batch, advance))


def _begin(progress: Progress, stage: str, groups: Sequence[tuple[int, Sequence[SegmentSource]]]) -> None:
    """Begin a stage of progress over groups."""
    segments = [s for _, group in groups for s in group]
    progress.begin(stage, len(segments), sum(s.tokens for s in segments))


def _checksum(file: File) -> int:
    checksum = 0
    for piece in file.pieces():
        checksum = zlib.crc32(piece, checksum)
    return checksum
