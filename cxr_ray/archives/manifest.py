"""A user's manifest: CSV or Parquet rows that name inputs and say whose they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from cxr_ray.archives.containers import has_container_name
from cxr_ray.archives.exclude import Exclusion, ListingReport
from cxr_ray.archives.fetch import facts
from cxr_ray.archives.inputs import ArchiveInput
from cxr_ray.archives.manifest_table import ManifestOptions, ManifestRow, read_rows
from cxr_ray.archives.members_of_rows import list_members, missing
from cxr_ray.archives.parallel import in_order
from cxr_ray.archives.storage import Storage
from cxr_ray.errors import ChangedInput, MissingInput

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
                yield from list_members(_storage_for(storages, group[0].uri), group, exclude, report)


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
        return replace(planned, **missing("The manifest names this file, but it is not there."))
    return replace(planned, size=known.size, version=known.version)
