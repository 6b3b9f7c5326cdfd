"""A listing on local disk: rows of the plan's schema in Parquet batches, and their ids beside them.

Memory stays flat: one batch of rows is held, whatever the archive's size. Inventories come in batches of columns
(``FileBatch``) and never become Python objects row by row; everything else comes as one object per input.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cxr_ray.archives.batches import FileBatch
from cxr_ray.archives.inputs import ArchiveInput, file_ids
from cxr_ray.pipeline.plan import PLAN_SCHEMA, id_array
from cxr_ray.pipeline.privacy import Privacy

_SPOOL_ROWS = 10_000
_IDS = "ids.bin"


@dataclass(kw_only=True)
class Listing:
    """A listing on local disk.

    Attributes:
        folder: temporary folder; removed with ``close``.
        rows: inputs listed, repeated ones included.
        keep: which rows become part of the next generation, or None before ``select_new``.
        repeated: rows that name an input listed before (a manifest with a row twice).
        bytes: encoded bytes of all rows whose size is known.
    """

    folder: tempfile.TemporaryDirectory[str]
    rows: int = 0
    keep: np.ndarray | None = None
    repeated: int = 0
    bytes: int = 0
    report: dict[str, int] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Rows selected for the next generation."""
        return int(self.keep.sum()) if self.keep is not None else self.rows

    def ids(self, at_once: int = 1_000_000) -> Iterator[np.ndarray]:
        """The ids in listing order (dtype ``S16``), possibly repeated, so many at a time."""
        for start in range(0, self.rows, at_once):
            yield np.fromfile(Path(self.folder.name) / _IDS, "S16", count=at_once, offset=16 * start)

    def batches(self) -> Iterator[pa.Table]:
        """The spooled rows in listing order, selected ones only after ``select_new``."""
        start = 0
        for path in sorted(Path(self.folder.name).glob("*.parquet")):
            table = pq.read_table(path, schema=PLAN_SCHEMA)
            stop = start + table.num_rows
            yield table if self.keep is None else table.filter(pa.array(self.keep[start:stop]))
            start = stop

    def close(self) -> None:
        self.folder.cleanup()


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedSource:
    """One listed input with the names that the table shows (they differ from the source's for shards)."""

    source: ArchiveInput
    image_id: bytes
    uri: str | None
    member: str | None


def spool_listing(inputs: Iterable[PlannedSource | FileBatch], privacy: Privacy) -> Listing:
    """Write a listing to local disk in batches, remembering nothing."""
    listing = Listing(folder=tempfile.TemporaryDirectory(prefix="cxr_ray-plan-"))
    folder = Path(listing.folder.name)
    pending: list[PlannedSource] = []
    files = 0

    def write(table: pa.Table) -> None:
        nonlocal files
        pq.write_table(table, folder / f"{files:08d}.parquet", compression="zstd")
        id_array(table.column("image_id")).tofile(ids)
        listing.rows += table.num_rows
        listing.bytes += pc.sum(table.column("size")).as_py() or 0
        files += 1

    try:
        with open(folder / _IDS, "wb") as ids:
            for planned in inputs:
                if isinstance(planned, PlannedSource):
                    pending.append(planned)
                if pending and (len(pending) == _SPOOL_ROWS or isinstance(planned, FileBatch)):
                    write(plan_table(pending, privacy))
                    pending.clear()
                if isinstance(planned, FileBatch):
                    write(batch_table(planned, privacy))
            if pending:
                write(plan_table(pending, privacy))
    except BaseException:
        listing.close()
        raise
    return listing


def plan_table(planned: Sequence[PlannedSource], privacy: Privacy) -> pa.Table:
    """Plan rows (without unit) of listed inputs; manifest identifiers are hashed here, before anything is
    written."""
    sources = [one.source for one in planned]
    return _table(
        len(sources),
        {
            "image_id": [one.image_id for one in planned],
            "uri": [one.uri for one in planned],
            "member": [one.member for one in planned],
            "container": [one.uri for one in sources],
            "kind": [one.kind for one in sources],
            "ordinal": [one.ordinal for one in sources],
            "occurrence": [one.occurrence for one in sources],
            "offset": [one.offset for one in sources],
            "size": [one.size for one in sources],
            "version": [one.version for one in sources],
            "failure": [one.failure for one in sources],
            "failure_detail": [one.failure_detail for one in sources],
            "patient_key": [privacy.manifest_key("patient", one.patient) for one in sources],
            "study_key": [privacy.manifest_key("study", one.study) for one in sources],
            "label": [one.label for one in sources],
            "view": [one.view for one in sources],
            "sex": [one.sex for one in sources],
            "age_years": [age_in_years(one.age) for one in sources],
            "carry": [list(one.carry) if one.carry else None for one in sources],
        },
    )


def batch_table(batch: FileBatch, privacy: Privacy) -> pa.Table:
    """Plan rows of a batch of plain files, column by column."""
    rows = len(batch)
    ids = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), rows, [None, pa.py_buffer(file_ids(batch.uri, privacy.image_key))]
    )
    said: dict[str, Any] = {}
    for name, column in batch.said.items():
        if name in ("patient", "study"):
            said[f"{name}_key"] = [privacy.manifest_key(name, value) for value in column.to_pylist()]
        elif name == "age":
            said["age_years"] = [age_in_years(value) for value in column.to_pylist()]
        else:
            said[name] = column
    if batch.carry:
        values = zip(*(column.to_pylist() for column in batch.carry.values()), strict=True)
        said["carry"] = [
            [(name, value) for name, value in zip(batch.carry, row, strict=True) if value] or None
            for row in values
        ]
    return _table(
        rows,
        {
            "image_id": ids,
            "uri": batch.uri,
            "container": batch.uri,
            "kind": pa.repeat("file", rows),
            "ordinal": pa.array(np.zeros(rows, np.int64)),
            "occurrence": pa.array(np.zeros(rows, np.int32)),
            "size": batch.size,
            "version": batch.version,
            **said,
        },
    )


def _table(rows: int, columns: dict[str, Any]) -> pa.Table:
    """A table of ``PLAN_SCHEMA`` from lists and arrays; columns not given are null."""
    arrays = []
    for name, wanted in zip(PLAN_SCHEMA.names, PLAN_SCHEMA.types, strict=True):
        values = columns.get(name)
        if values is None:
            arrays.append(pa.nulls(rows, wanted))
        elif isinstance(values, list):
            arrays.append(pa.array(values, wanted))
        else:
            arrays.append(values if values.type == wanted else values.cast(wanted))
    return pa.Table.from_arrays(arrays, schema=PLAN_SCHEMA)


def age_in_years(text: str | None) -> int | None:
    """A manifest's age: ``58``, ``58.0``, ``058Y``, ``18M``; 90 means 90 or more; None for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,3})(?:\.\d*)?\s*([YMWDymwd]?)\s*", text)
    if match is None:
        return None
    per_year = {"": 1, "Y": 1, "M": 12, "W": 52, "D": 365}[match[2].upper()]
    years = int(match[1]) // per_year
    return min(years, 90) if years <= 130 else None
