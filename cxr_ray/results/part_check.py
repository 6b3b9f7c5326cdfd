"""Soundness of one part file: readable to the last byte, in form, and of the right unit and identity."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cxr_ray.archives.storage import Storage
from cxr_ray.pipeline.identity import KIND_SCORES, Identity
from cxr_ray.pipeline.parts import ROW_GROUP_ROWS
from cxr_ray.pipeline.plan import Unit
from cxr_ray.pipeline.score_table import SCORE_SCHEMA, SCORED
from cxr_ray.results.table import footer_record
from cxr_ray.shards import QUARANTINED, READY, SHARD_SCHEMA


@dataclass(kw_only=True)
class PartReport:
    """What one part holds. ``faults`` are phrases that end "... in part X"; empty for a sound part."""

    ids: pa.ChunkedArray | None = None
    """image_id of every row; None where the part could not be read."""
    kept: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def check_part(storage: Storage, path: str, unit: Unit, identity: Identity) -> PartReport:
    """Read one part whole and check it against its unit. Never raises for what is wrong with the part."""
    report = PartReport()
    wanted = SCORE_SCHEMA if identity.kind == KIND_SCORES else SHARD_SCHEMA
    try:
        with storage.fs.open(path, "rb") as handle:
            part = pq.ParquetFile(handle, pre_buffer=True, page_checksum_verification=True)
            schema, footer = part.schema_arrow, footer_record(part.schema_arrow.metadata)
            rows = [part.metadata.row_group(index).num_rows for index in range(part.num_row_groups)]
            table = part.read()
    except (pa.ArrowException, OSError, ValueError) as error:
        # A truncated or damaged file shows as any of these, depending on where it is damaged.
        report.faults.append(f"cannot be read ({type(error).__name__})")
        return report
    # Columns of a later version may be added; none of ours may be missing or of another type.
    for column in wanted:
        if column.name not in schema.names or schema.field(column.name).type != column.type:
            report.faults.append(f"column {column.name} is missing or of another type")
    if report.faults:
        return report
    report.ids = table.column("image_id")
    _check_place(table, footer, rows, unit, identity, report)
    _check_rows(table, identity, report)
    return report


def _check_place(
    table: pa.Table, footer: dict, rows: list[int], unit: Unit, identity: Identity, report: PartReport
) -> None:
    """Footer and provenance columns against unit and identity."""
    expected = {"identity": identity.hash, "unit_id": unit.unit_id, "generation": unit.generation}
    for name, value in expected.items():
        if footer.get(name) != value:
            report.faults.append(f"the footer names another {name}")
        if not pc.all(pc.equal(table.column(name), value), min_count=0).as_py():
            report.faults.append(f"rows carry another {name}")
    if table.num_rows != unit.images:
        report.faults.append("the number of rows is not the number of planned images")
    if any(count > ROW_GROUP_ROWS for count in rows):
        report.faults.append(f"a row group has more than {ROW_GROUP_ROWS} rows")
    ids = table.column("image_id").combine_chunks()
    if len(ids) > 1 and not pc.all(pc.less(ids[:-1], ids[1:])).as_py():
        report.faults.append("rows are not in strict order of image_id")


def _check_rows(table: pa.Table, identity: Identity, report: PartReport) -> None:
    """Status, reason and score of every row agree."""
    scores = identity.kind == KIND_SCORES
    kept = pc.equal(table.column("status"), SCORED if scores else READY)
    quarantined = pc.equal(table.column("status"), QUARANTINED)
    report.kept = pc.sum(kept).as_py() or 0
    reasons = table.filter(quarantined).column("reason")
    report.reasons = dict(Counter(reason or "(none)" for reason in reasons.to_pylist()))
    if not pc.all(pc.or_(kept, quarantined), min_count=0).as_py():
        report.faults.append("a status is neither kept nor quarantined")
    if not pc.all(pc.equal(quarantined, pc.is_valid(table.column("reason"))), min_count=0).as_py():
        report.faults.append("a reason stands in a kept row, or is missing in a quarantined one")
    values = table.column("p_covid" if scores else "pixels")
    if not pc.all(pc.equal(kept, pc.is_valid(values)), min_count=0).as_py():
        report.faults.append(
            f"{'p_covid' if scores else 'pixels'} is missing, or stands in a quarantined row"
        )
    if scores:
        inside = pc.and_(pc.greater_equal(values, 0.0), pc.less_equal(values, 1.0))
        if pc.any(pc.invert(inside)).as_py():  # NaN is outside as well
            report.faults.append("a p_covid lies outside 0 to 1")
    elif pc.any(pc.not_equal(pc.binary_length(values), 300 * 340)).as_py():
        report.faults.append("pixels are not 300 x 340 bytes")
