"""Which originals are no longer those that were planned (``cxr-ray verify --source``).

A published row is never scored again, so this is information, not a fault of the table. Versions are compared
as the readers do (ETag, or size and time of modification): one request per file or container, nothing is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final

from cxr_ray.archives.fetch import check_version
from cxr_ray.archives.storage import Storage, open_storage
from cxr_ray.errors import ChangedInput, MissingInput, StorageReadError, UsageError
from cxr_ray.pipeline.plan import Plan

IN_FLIGHT: Final = 16


@dataclass(kw_only=True)
class SourceReport:
    """image_ids (32 hex digits, plan order) whose original is another one by now, or gone."""

    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def check_sources(plan: Plan, archive_options: Mapping[str, Any] | None = None) -> SourceReport:
    """Compare every planned file and container with what lies there now.

    Raises:
        UsageError: the archive's storage does not answer or refuses access.
    """
    report = SourceReport()
    storages: dict[str, Storage] = {}

    def reason(uri: str, version: str | None) -> str | None:
        storage = storages[uri.split("://")[0]]
        try:
            check_version(storage, storage.path_of(uri), version)
        except (ChangedInput, MissingInput) as error:
            return error.code
        return None

    waiting: deque[tuple[list[str], Future[str | None]]] = deque()

    def settle() -> None:
        image_ids, answer = waiting.popleft()
        code = answer.result()
        if code is not None:
            (report.changed if code == ChangedInput.code else report.missing).extend(image_ids)

    try:
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            for uri, version, image_ids in _sources(plan):
                protocol = uri.split("://")[0]
                if protocol not in storages:
                    storages[protocol] = open_storage(uri, archive_options)
                waiting.append((image_ids, pool.submit(reason, uri, version)))
                if len(waiting) > 4 * IN_FLIGHT:
                    settle()
            while waiting:
                settle()
    except StorageReadError as error:
        raise UsageError(f"{error} Check the address, and --archive-option key=value.") from error
    return report


def _sources(plan: Plan) -> Iterator[tuple[str, str | None, list[str]]]:
    """Each file or container once (once per plan file that names it), with its version and its images."""
    for table in plan.tables(columns=["image_id", "container", "version"]):
        rows = table.select(["container", "version", "image_id"]).to_pydict()
        for (uri, version), group in groupby(zip(*rows.values(), strict=True), key=lambda row: row[:2]):
            yield uri, version, [image_id.hex() for _, _, image_id in group]
