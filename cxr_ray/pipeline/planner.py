"""Planning: list the archive once, keep what is new, commit it as a generation.

The listing streams into a local spool (never all keys in memory; ``spool.py``), is compared with what is planned
already by its ids (``new_ids.py``), cut into units, and published with a marker. A driver that loses the race
for the marker drops its listing and adopts the winner's.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cxr_ray.pipeline.new_ids import first_unknown
from cxr_ray.pipeline.plan import (
    PLAN_FOLDER,
    PLAN_SCHEMA,
    SHARD_KIND,
    UNIT_INDEX_SCHEMA,
    Plan,
    marker_name,
)
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.pipeline.spool import Listing, PlannedSource, spool_listing

__all__ = [
    "Listing",
    "PlannedSource",
    "commit_generation",
    "cut_units",
    "select_new",
    "spool_listing",
    "unit_size",
]

_FILE_ROWS = 100_000
_FIRST_UNIT = 16
_UNITS_PER_SIZE = 4


def select_new(listing: Listing, known: np.ndarray | Iterable[np.ndarray], limit: int | None) -> None:
    """Keep the first row of every id that is not in ``known``, at most ``limit`` of them.

    Args:
        known: ids that are planned already (dtype ``S16``), at once or in chunks, in any order.
    """
    chunks = [known] if isinstance(known, np.ndarray) else known
    keep, listing.repeated = first_unknown(listing.ids(), listing.rows, chunks)
    if limit is not None and np.count_nonzero(keep) > limit:
        keep[np.flatnonzero(keep)[limit] :] = False
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
    # Null stands for "no container that matters"; Arrow compares without an object per row.
    is_file = pc.equal(table.column("kind"), "file")
    containers = pc.if_else(is_file, pa.scalar(None, pa.string()), table.column("container"))
    kinds = table.column("kind").combine_chunks()
    containers = containers.combine_chunks()
    changes = _differs_from_before(kinds) | _differs_from_before(containers)
    starts = [0, *(np.flatnonzero(changes) + 1).tolist(), table.num_rows]
    for start, stop in itertools.pairwise(starts):
        if stop > start:
            yield (kinds[start].as_py(), containers[start].as_py()), table.slice(start, stop - start)


def _differs_from_before(column: pa.Array) -> np.ndarray:
    """For each row but the first, whether its value is another than that of the row before."""
    codes = pc.fill_null(column.dictionary_encode().indices, -1).to_numpy()
    return codes[1:] != codes[:-1]


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
