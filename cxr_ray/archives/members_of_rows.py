"""List containers for the manifest rows that name them: whole, or some of their members."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from cxr_ray.archives.containers import list_container, recognise
from cxr_ray.archives.exclude import Exclusion, ListingReport
from cxr_ray.archives.fetch import FileFacts, facts
from cxr_ray.archives.inputs import ArchiveInput
from cxr_ray.archives.manifest_table import ManifestRow
from cxr_ray.archives.storage import Storage
from cxr_ray.errors import ArchiveError, ChangedInput, ContainerUnreadable, MissingInput


def list_members(
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
        failure = missing("The manifest names this file, but it is not there.")
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
    failure = missing("The manifest names this member, but the container does not have it.")
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


def missing(detail: str) -> dict[str, Any]:
    """Fields of an input that is not there."""
    return {"failure": MissingInput.code, "failure_detail": detail}


def _plain_name(member: str) -> str:
    """A member name as people write it: many tar files spell a.png as ./a.png."""
    while member.startswith("./"):
        member = member[2:]
    return member
