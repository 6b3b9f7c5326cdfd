"""Read planned inputs: bytes, or what is wrong with that one input, in the order asked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from cxr_ray import errors
from cxr_ray.archives.fetch import check_version, input_errors, open_file, read_whole
from cxr_ray.archives.inputs import ArchiveInput
from cxr_ray.archives.parallel import in_order
from cxr_ray.archives.storage import Storage, open_storage
from cxr_ray.archives.tar_ranges import Item, read_tar
from cxr_ray.archives.targz import oversized, read_targz
from cxr_ray.archives.zip import read_zip
from cxr_ray.errors import InputError, MissingInput, StorageReadError

DEFAULT_MAX_BYTES = 256 << 20

_FAILURES: dict[str, type[InputError]] = {
    value.code: value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, InputError)
}


def read_inputs(
    inputs: Sequence[ArchiveInput],
    storage_options: Mapping[str, Any] | None = None,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
    in_flight: int = 8,
    root: str | None = None,
) -> Iterator[Item]:
    """Yield one item per input, in the order given: its bytes, or an InputError (yielded, not raised).

    Args:
        inputs: those of one container next to each other and in ascending ``ordinal``.
        storage_options: for fsspec, as in ``open_storage``.
        max_bytes: encoded bytes of one input; more yields OversizedInput, and nothing of it is held.
        in_flight: requests at a time to a remote storage. What they hold is bounded to about 128 MiB, or to
            one input where that is larger.
        root: address of the archive. When an input is missing, the root is looked for, and its absence (an
            unmounted disk, say) is raised as StorageReadError instead of becoming a row for every input.

    Yields:
        MissingInput, ChangedInput (size or version differ from the plan), OversizedInput, MemberUnreadable,
        or the failure known at planning. A tar.gz is read in one pass that ends after the last wanted
        member; of a zip the directory is read once; a tar is read by ranges.

    Raises:
        StorageReadError: network, server or permission failed, after the client's retries. Nothing is wrong
            with the inputs; read them again later.
    """
    storages: dict[str, Storage] = {}
    root_was_seen = root is None
    for (_, kind), group in itertools.groupby(inputs, key=_source):
        wanted = list(group)
        protocol = wanted[0].uri.split("://")[0]
        if protocol not in storages:
            storages[protocol] = open_storage(wanted[0].uri, storage_options)
        for item in _read_group(storages[protocol], wanted, kind, max_bytes, in_flight):
            if isinstance(item, MissingInput) and kind != "failure" and not root_was_seen:
                _check_root(root or "", storage_options)
                root_was_seen = True
            yield item


def _source(planned: ArchiveInput) -> tuple[str, str]:
    """Containers stand alone; plain files of one protocol come together, so that several are in flight."""
    if planned.failure is not None:
        return "", "failure"
    if planned.kind == "file":
        return planned.uri.split("://")[0], "file"
    return planned.uri, planned.kind


def _read_group(
    storage: Storage, wanted: list[ArchiveInput], kind: str, max_bytes: int, in_flight: int
) -> Iterator[Item]:
    if kind == "failure":
        return map(_known_failure, wanted)
    if kind == "file":
        jobs = ((planned.size or 0, partial(_read_file, storage, planned, max_bytes)) for planned in wanted)
        # A local disk answers faster than a thread can be asked.
        return (job() for _, job in jobs) if storage.is_local else in_order(jobs, in_flight)
    if kind == "tar":
        return read_tar(storage, wanted, max_bytes=max_bytes, in_flight=in_flight)
    return _read_stream(storage, wanted, kind, max_bytes)


def _known_failure(planned: ArchiveInput) -> InputError:
    return _FAILURES.get(planned.failure or "", InputError)(planned.failure_detail or "")


def _read_file(storage: Storage, planned: ArchiveInput, max_bytes: int) -> Item:
    try:
        path = storage.path_of(planned.uri)
        # Planned without facts (never by list_archive): look before loading.
        size = planned.size if planned.size is not None else check_version(storage, path, None).size
        if size > max_bytes:
            return oversized(size, max_bytes)
        return read_whole(storage, path, planned.version, planned.size)
    except InputError as error:
        return error


def _read_stream(storage: Storage, wanted: list[ArchiveInput], kind: str, max_bytes: int) -> Iterator[Item]:
    """Read members of a tar.gz or zip through one open file of the planned version."""
    path = storage.path_of(wanted[0].uri)
    done = 0
    try:
        known = check_version(storage, path, wanted[0].version)
        with open_file(storage, path, known, prefetch=kind == "tar.gz") as file:
            items = (read_targz if kind == "tar.gz" else read_zip)(file, wanted, max_bytes=max_bytes)
            while done < len(wanted):
                with input_errors():
                    item = next(items)
                done += 1
                yield item
    except InputError as error:  # the container is gone, or changed under the reader
        yield from itertools.repeat(error, len(wanted) - done)


def _check_root(root: str, storage_options: Mapping[str, Any] | None) -> None:
    storage = open_storage(root, storage_options)
    with input_errors():
        there = storage.fs.exists(storage.path)
        # An unmounted disk leaves its empty mount point behind.
        if there and storage.is_local and storage.fs.isdir(storage.path):
            there = bool(storage.fs.ls(storage.path, detail=False))
    if not there:
        raise StorageReadError("The archive itself is not there any more; is its disk mounted?")
