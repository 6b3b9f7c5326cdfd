"""A user's manifest: CSV or Parquet rows that name inputs and say whose they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from cxr_ray.archives.containers import has_container_name, list_container, recognise
from cxr_ray.archives.exclude import Exclusion, ListingReport
from cxr_ray.archives.fetch import FileFacts, facts
from cxr_ray.archives.inputs import ArchiveInput
from cxr_ray.archives.manifest_table import ManifestOptions, ManifestRow, read_rows
from cxr_ray.archives.parallel import in_order
from cxr_ray.archives.storage import Storage
from cxr_ray.errors import ArchiveError, ChangedInput, ContainerUnreadable, MissingInput

__all__ = ["ManifestOptions", "list_manifest"]

_REQUESTS = 32  # existence checks at a time on a remote storage; they hold no data


def list_manifest(
    storage: Storage, options: ManifestOptions, *, exclude: Exclusion, report: ListingReport
) -> Iterator[ArchiveInput]:
    """Yield the inputs a manifest names, sorted by address, with what the manifest says about them.

    * A row without member names a file; where that is a container, all its members, less what ``exclude``
      matches.
    * Rows with member name members of a container, which is indexed once; they come in its order. Every
      repetition of a repeated name gets the row.
    * A named file or member that is not there becomes a row with failure "missing"; named members behind the
      break of a container "container_truncated"; of what is no container "container_unreadable".
    * Rows that repeat (uri, member) count once.

    Raises ArchiveError for a manifest that cannot be read, StorageReadError when a storage fails.
    """
    storages = {storage.protocol: storage}
    rows = read_rows(storage, options, report)
    groups = (list(group) for _, group in itertools.groupby(rows, key=lambda row: row.uri))
    for is_plain, run in itertools.groupby(groups, key=_is_plain):
        if is_plain:
            yield from _list_files(storages, run, report)
        else:
            for group in run:
                yield from _list_members(_storage_for(storages, group[0].uri), group, exclude, report)


def _is_plain(group: list[ManifestRow]) -> bool:
    return not has_container_name(group[0].uri) and all(row.member is None for row in group)


def _storage_for(storages: dict[str, Storage], uri: str) -> Storage:
    protocol = uri.split("://")[0]
    if protocol not in storages:
        storages[protocol] = next(iter(storages.values())).at(uri)
    return storages[protocol]


def _list_files(
    storages: dict[str, Storage], groups: Iterator[list[ManifestRow]], report: ListingReport
) -> Iterator[ArchiveInput]:
    def jobs() -> Iterator[tuple[int, partial[ArchiveInput]]]:
        for group in groups:
            report.repeated_rows += len(group) - 1
            yield 0, partial(_list_file, _storage_for(storages, group[0].uri), group[0])

    if all(storage.is_local for storage in storages.values()):
        # Local unless a later row says otherwise; then it is still right, only not in parallel.
        return (job() for _, job in jobs())
    return in_order(jobs(), _REQUESTS)


def _list_file(storage: Storage, row: ManifestRow) -> ArchiveInput:
    planned = ArchiveInput(uri=row.uri, **row.said)
    try:
        known = facts(storage, storage.path_of(row.uri))
    except (MissingInput, ChangedInput):
        return replace(planned, **_missing("The manifest names this file, but it is not there."))
    return replace(planned, size=known.size, version=known.version)


def _list_members(
    storage: Storage, group: list[ManifestRow], exclude: Exclusion, report: ListingReport
) -> Iterator[ArchiveInput]:
    """List one container for the rows that name it (whole, or members of it)."""
    path = storage.path_of(group[0].uri)
    named: dict[str, ManifestRow] = {}
    whole: ManifestRow | None = None
    for row in group:
        if row.member is None and whole is None:
            whole = row
        elif row.member is not None and _plain_name(row.member) not in named:
            named[_plain_name(row.member)] = row
        else:
            report.repeated_rows += 1
    try:
        known = facts(storage, path)
        kind = recognise(storage, path, known)
    except (MissingInput, ChangedInput):
        failure = _missing("The manifest names this file, but it is not there.")
        yield from (_planned(row, **failure) for row in _unmet(whole, named))
        return
    if kind == "file":
        if whole is not None:
            yield _planned(whole, size=known.size, version=known.version)
        detail = "The manifest names a member, but the file is no tar, tar.gz or zip."
        failure = {"failure": ContainerUnreadable.code, "failure_detail": detail, "version": known.version}
        yield from (_planned(row, **failure) for row in named.values())
        return
    try:
        yield from _matched(storage, path, known, kind, whole, named, exclude, report)
    except (MissingInput, ChangedInput) as error:
        raise ArchiveError(
            "A container changed while it was being listed; run again once nothing writes to the archive."
        ) from error


def _matched(
    storage: Storage,
    path: str,
    known: FileFacts,
    kind: Any,
    whole: ManifestRow | None,
    named: dict[str, ManifestRow],
    exclude: Exclusion,
    report: ListingReport,
) -> Iterator[ArchiveInput]:
    # Left-out members are counted only where the whole container was asked for.
    counted = report if whole is not None else ListingReport()
    met: set[str] = set()
    failure = _missing("The manifest names this member, but the container does not have it.")
    last = ArchiveInput(uri=storage.uri_of(path), kind="tar")
    for planned in list_container(storage, path, known, kind, exclude=Exclusion(()), report=counted):
        last = planned
        if planned.failure is not None:
            failure = {"failure": planned.failure, "failure_detail": planned.failure_detail}
            if whole is not None:
                yield replace(planned, **whole.said)
            continue
        row = named.get(_plain_name(planned.member or ""))
        if row is not None:
            met.add(_plain_name(planned.member or ""))
            yield replace(planned, **row.said)
        elif whole is not None and exclude(planned.member or ""):
            report.excluded += 1
        elif whole is not None:
            yield replace(planned, **whole.said)
    if counted is not report:
        report.containers += counted.containers
    for name, row in named.items():
        if name not in met:
            yield _planned(row, kind=last.kind, ordinal=last.ordinal + 1, version=known.version, **failure)


def _unmet(whole: ManifestRow | None, named: dict[str, ManifestRow]) -> list[ManifestRow]:
    return ([whole] if whole is not None else []) + list(named.values())


def _planned(row: ManifestRow, **fields: Any) -> ArchiveInput:
    return ArchiveInput(**{"uri": row.uri, "member": row.member, **row.said, **fields})


def _missing(detail: str) -> dict[str, Any]:
    return {"failure": MissingInput.code, "failure_detail": detail}


def _plain_name(member: str) -> str:
    """A member name as people write it: many tar files spell a.png as ./a.png."""
    while member.startswith("./"):
        member = member[2:]
    return member
