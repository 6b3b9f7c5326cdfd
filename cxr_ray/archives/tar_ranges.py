"""Read planned members of an uncompressed tar by byte ranges."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial

from cxr_ray.archives.fetch import check_version, input_errors, open_file, read_range
from cxr_ray.archives.inputs import ArchiveInput
from cxr_ray.archives.parallel import in_order
from cxr_ray.archives.storage import Storage
from cxr_ray.archives.targz import oversized
from cxr_ray.errors import ChangedInput, InputError

# Neighbouring members this near are fetched by one request, of at most this length.
_LARGEST_GAP = 256 << 10
_LARGEST_SPAN = 8 << 20

Item = bytes | InputError


def read_tar(
    storage: Storage, wanted: Sequence[ArchiveInput], *, max_bytes: int, in_flight: int
) -> Iterator[Item]:
    """Yield the bytes of each wanted member (all of one tar, ascending ``offset``), or its InputError.

    A local tar is opened once. A remote one gets up to ``in_flight`` range requests at a time, neighbours
    joined; on S3 each of them holds to the planned ETag, elsewhere the version is checked once before.
    """
    path, version = storage.path_of(wanted[0].uri), wanted[0].version
    if storage.is_local:
        return _read_local(storage, path, wanted, max_bytes)
    if storage.protocol != "s3":
        try:
            check_version(storage, path, version)
        except InputError as error:
            return itertools.repeat(error, len(wanted))
    jobs = (
        (_end(span[-1]) - _start(span[0]), partial(_read_span, storage, path, span, max_bytes))
        for span in _spans(wanted, max_bytes)
    )
    return itertools.chain.from_iterable(in_order(jobs, in_flight))


def _read_local(
    storage: Storage, path: str, wanted: Sequence[ArchiveInput], max_bytes: int
) -> Iterator[Item]:
    try:
        known = check_version(storage, path, wanted[0].version)
        file = open_file(storage, path, known)
    except InputError as error:
        yield from itertools.repeat(error, len(wanted))
        return
    with file:
        for planned in wanted:
            size = planned.size or 0
            if size > max_bytes:
                yield oversized(size, max_bytes)
                continue
            with input_errors():
                file.seek(_start(planned))
                data = file.read(size)
            short = len(data) < size
            yield ChangedInput("The container is shorter than it was when planned.") if short else data


def _read_span(storage: Storage, path: str, span: list[ArchiveInput], max_bytes: int) -> list[Item]:
    if (span[0].size or 0) > max_bytes:
        return [oversized(span[0].size or 0, max_bytes)]
    start = _start(span[0])
    try:
        data = read_range(storage, path, span[0].version, start, _end(span[-1]))
    except InputError as error:
        return [error for _ in span]
    return [data[_start(planned) - start : _end(planned) - start] for planned in span]


def _spans(wanted: Sequence[ArchiveInput], max_bytes: int) -> Iterator[list[ArchiveInput]]:
    """Group neighbouring members for one request each; a member that is too large stands alone."""
    span: list[ArchiveInput] = []
    for planned in wanted:
        if span and not (
            max(planned.size or 0, span[-1].size or 0) <= max_bytes
            and 0 <= _start(planned) - _end(span[-1]) <= _LARGEST_GAP
            and _end(planned) - _start(span[0]) <= _LARGEST_SPAN
        ):
            yield span
            span = []
        span.append(planned)
    if span:
        yield span


def _start(planned: ArchiveInput) -> int:
    return planned.offset or 0


def _end(planned: ArchiveInput) -> int:
    return (planned.offset or 0) + (planned.size or 0)
