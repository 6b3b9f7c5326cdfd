"""Planning: list the archive once, keep what is new, commit it as a generation.

The listing streams into a local spool of Parquet batches (never all keys in memory; 16 bytes per image
for the ids), is compared with what is planned already, cut into units, and published with a marker. A
driver that loses the race for the marker drops its listing and adopts the winner's.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_ray.archives.inputs import ArchiveInput
from cxr_ray.pipeline.plan import (
    PLAN_FOLDER,
    PLAN_SCHEMA,
    SHARD_KIND,
    UNIT_INDEX_SCHEMA,
    Plan,
    id_array,
    marker_name,
)
from cxr_ray.pipeline.privacy import Privacy
from cxr_ray.pipeline.publish import Publisher

_SPOOL_ROWS = 10_000
_FILE_ROWS = 100_000
_FIRST_UNIT = 16
_UNITS_PER_SIZE = 4


@dataclass(kw_only=True)
class Listing:
    """A listing on local disk.

    Attributes:
        folder: temporary folder; removed with ``close``.
        ids: ``S16`` ids in listing order, possibly repeated.
        keep: which rows become part of the next generation, or None before ``select_new``.
        repeated: rows that name an input listed before (a manifest with a row twice).
    """

    folder: tempfile.TemporaryDirectory[str]
    ids: np.ndarray
    keep: np.ndarray | None = None
    repeated: int = 0
    bytes: int = 0
    report: dict[str, int] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Rows selected for the next generation."""
        return int(self.keep.sum()) if self.keep is not None else len(self.ids)

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


@dataclass(frozen=True, kw_only=True)
class PlannedSource:
    """One listed input with the names that the table shows (they differ from the source's for shards)."""

    source: ArchiveInput
    image_id: bytes
    uri: str | None
    member: str | None


def plan_row(planned: PlannedSource, privacy: Privacy) -> dict[str, Any]:
    """The plan row of a listed input; manifest identifiers are hashed here, before anything is written."""
    source = planned.source
    return {
        "image_id": planned.image_id,
        "unit_id": None,
        "uri": planned.uri,
        "member": planned.member,
        "container": source.uri,
        "kind": source.kind,
        "ordinal": source.ordinal,
        "occurrence": source.occurrence,
        "offset": source.offset,
        "size": source.size,
        "version": source.version,
        "failure": source.failure,
        "failure_detail": source.failure_detail,
        "patient_key": privacy.manifest_key("patient", source.patient),
        "study_key": privacy.manifest_key("study", source.study),
        "label": source.label,
        "view": source.view,
        "sex": source.sex,
        "age_years": age_in_years(source.age),
        "carry": list(source.carry) if source.carry else None,
    }


def age_in_years(text: str | None) -> int | None:
    """A manifest's age: ``58``, ``58.0``, ``058Y``, ``18M``; 90 means 90 or more; None for anything else."""
    match = re.fullmatch(r"\s*(\d{1,3})(?:\.\d*)?\s*([YMWDymwd]?)\s*", text or "")
    if match is None:
        return None
    per_year = {"": 1, "Y": 1, "M": 12, "W": 52, "D": 365}[match[2].upper()]
    years = int(match[1]) // per_year
    return min(years, 90) if years <= 130 else None


def spool_listing(inputs: Iterable[PlannedSource], privacy: Privacy) -> Listing:
    """Write a listing to local disk in batches, remembering only the ids."""
    folder = tempfile.TemporaryDirectory(prefix="cxr_ray-plan-")
    ids: list[np.ndarray] = []
    total = 0
    rows: list[dict[str, Any]] = []

    def flush() -> None:
        table = pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)
        pq.write_table(table, Path(folder.name) / f"{len(ids):08d}.parquet", compression="zstd")
        ids.append(id_array(table.column("image_id")))
        rows.clear()

    try:
        for planned in inputs:
            rows.append(plan_row(planned, privacy))
            total += planned.source.size or 0
            if len(rows) == _SPOOL_ROWS:
                flush()
        if rows:
            flush()
    except BaseException:
        folder.cleanup()
        raise
    joined = np.concatenate(ids) if ids else np.empty(0, "S16")
    return Listing(folder=folder, ids=joined, bytes=total)


def select_new(listing: Listing, known: np.ndarray, limit: int | None) -> None:
    """Keep the first row of every id that is not in ``known`` (sorted), at most ``limit`` of them."""
    ids = listing.ids
    keep = np.zeros(len(ids), bool)
    _, first = np.unique(ids, return_index=True)
    keep[first] = True
    listing.repeated = len(ids) - len(first)
    if len(known):
        position = np.searchsorted(known, ids)
        position[position == len(known)] = 0
        keep &= known[position] != ids
    if limit is not None:
        chosen = np.flatnonzero(keep)[limit:]
        keep[chosen] = False
    listing.keep = keep


def unit_size(index: int, largest: int, kind: str = "file") -> int:
    """Size of the ``index``-th unit of a generation: small ones first, so that every scorer starts
    soon and a small archive is still shared among several; then ``largest``. Shards keep their size,
    since reading a part of one costs as much as the whole."""
    if kind == SHARD_KIND:
        return largest
    return min(largest, _FIRST_UNIT * 2 ** min(index // _UNITS_PER_SIZE, 16))


def cut_units(tables: Iterable[pa.Table], largest: int) -> Iterator[pa.Table]:
    """Consecutive rows of one container, at most ``unit_size`` of them, as one table each.

    Single files count as one container; shards and other containers never share a unit.
    """
    pending: list[pa.Table] = []
    rows = index = 0
    key: tuple[str, str | None] = ("", None)

    def take(size: int) -> pa.Table:
        joined = pa.concat_tables(pending)
        pending[:] = [joined.slice(size)] if size < joined.num_rows else []
        return joined.slice(0, size)

    for table in tables:
        for segment_key, segment in _segments(table):
            while rows and segment_key != key:  # the container before is finished
                size = min(rows, unit_size(index, largest, key[0]))
                yield take(size)
                rows, index = rows - size, index + 1
            key = segment_key
            pending.append(segment)
            rows += segment.num_rows
            while rows >= (size := unit_size(index, largest, key[0])):
                yield take(size)
                rows, index = rows - size, index + 1
    while rows:
        size = min(rows, unit_size(index, largest, key[0]))
        yield take(size)
        rows, index = rows - size, index + 1


def _segments(table: pa.Table) -> Iterator[tuple[tuple[str, str | None], pa.Table]]:
    """Runs of rows of one container: (kind, container) and the rows; single files share one key."""
    kinds = table.column("kind").to_numpy(zero_copy_only=False)
    containers = table.column("container").to_numpy(zero_copy_only=False)
    changes = (kinds[1:] != kinds[:-1]) | ((kinds[1:] != "file") & (containers[1:] != containers[:-1]))
    starts = [0, *(np.flatnonzero(changes) + 1).tolist(), table.num_rows]
    for start, stop in itertools.pairwise(starts):
        if stop > start:
            key = (kinds[start], None if kinds[start] == "file" else containers[start])
            yield key, table.slice(start, stop - start)


def commit_generation(
    publisher: Publisher, plan: Plan, listing: Listing, *, attempt: str, identity: str, largest: int
) -> bool:
    """Publish the selected rows as the next generation. False: another driver's generation won."""
    number = len(plan.generations)
    folder = f"{PLAN_FOLDER}/{number:05d}/{attempt}"
    index: list[dict[str, Any]] = []
    images = 0
    for file_number, units in enumerate(_files(cut_units(listing.batches(), largest))):
        name = f"{folder}/inputs-{file_number:05d}.parquet"
        sink = io.BytesIO()
        with pq.ParquetWriter(sink, PLAN_SCHEMA, compression="zstd") as writer:
            for row_group, unit in enumerate(units):
                unit_id = f"g{number:05d}-u{len(index):06d}"
                position = PLAN_SCHEMA.get_field_index("unit_id")
                names = pa.array([unit_id] * unit.num_rows, pa.string())
                writer.write_table(unit.set_column(position, "unit_id", names), row_group_size=unit.num_rows)
                index.append(
                    {
                        "unit_id": unit_id,
                        "generation": number,
                        "images": unit.num_rows,
                        "file": name,
                        "row_group": row_group,
                        "uri": unit.column("container")[0].as_py(),
                        "kind": unit.column("kind")[0].as_py(),
                    }
                )
                images += unit.num_rows
        publisher.publish(name, sink.getvalue())
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(index, schema=UNIT_INDEX_SCHEMA), sink, compression="zstd")
    publisher.publish(f"{folder}/units.parquet", sink.getvalue())
    marker = {
        "generation": number,
        "attempt": attempt,
        "directory": attempt,
        "images": images,
        "units": len(index),
        "identity": identity,
        "fencing": publisher.fencing,
        "repeated_rows": listing.repeated,
        "left_out": listing.report,
    }
    return publisher.publish(marker_name(number), json.dumps(marker, indent=2).encode() + b"\n")


def _files(units: Iterable[pa.Table]) -> Iterator[list[pa.Table]]:
    """Group units into inputs files of about 100,000 rows."""
    group: list[pa.Table] = []
    rows = 0
    for unit in units:
        group.append(unit)
        rows += unit.num_rows
        if rows >= _FILE_ROWS:
            yield group
            group, rows = [], 0
    if group:
        yield group
