"""Part files: exactly one per unit, encoded here and published create-only under the unit's name."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from cxr_ray.archives.storage import explain
from cxr_ray.errors import PublishConflict, StorageWriteError
from cxr_ray.pipeline.identity import KIND_SCORES
from cxr_ray.pipeline.publish import Publisher, footer_identity
from cxr_ray.pipeline.score_table import SCORE_FOLDER, score_table
from cxr_ray.shards import (
    QUARANTINED,
    SHARD_FOLDER,
    SHARD_SCHEMA,
    SHARD_SCHEMA_VERSION,
)

FOOTER_KEY = b"cxr_ray"
ROW_GROUP_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class PartFooter:
    """What a part says about itself in its Parquet key-value metadata (key ``cxr_ray``)."""

    identity: str
    unit_id: str
    generation: int
    attempt: str
    code_version: str
    device: str
    compute_batch: int | None
    threads: int | None
    dtype: str | None
    weights: str | None
    calibration_id: str | None
    decode_policy: str
    fencing: str


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """What publication reports about one unit."""

    unit_id: str
    images: int
    kept: int
    quarantined: int
    reasons: dict[str, int]
    bytes: int
    won: bool


def part_name(kind: str, unit_id: str) -> str:
    """Name of a unit's part, relative to OUTPUT."""
    return f"{folder_of(kind)}/part-{unit_id}.parquet"


def folder_of(kind: str) -> str:
    """``scores`` or ``shards``: where parts of this kind of OUTPUT lie."""
    return SCORE_FOLDER if kind == KIND_SCORES else SHARD_FOLDER


def published_units(publisher: Publisher, kind: str) -> set[str]:
    """Unit ids whose part exists (one listing)."""
    names = publisher.names(folder_of(kind))
    return {name[len("part-") : -len(".parquet")] for name in names if name.startswith("part-")}


def finished_table(unit: pa.Table, kind: str, footer: PartFooter) -> pa.Table:
    """The table to publish, with the footer as schema metadata."""
    if kind == KIND_SCORES:
        table = score_table(
            unit, unit_id=footer.unit_id, identity=footer.identity, generation=footer.generation
        )
    else:
        from cxr_ray.pipeline.score_table import add_provenance

        table = add_provenance(
            unit,
            SHARD_SCHEMA,
            unit_id=footer.unit_id,
            identity=footer.identity,
            schema_version=SHARD_SCHEMA_VERSION,
            generation=footer.generation,
        )
    return table.replace_schema_metadata({FOOTER_KEY: json.dumps(asdict(footer), sort_keys=True).encode()})


def encode_part(table: pa.Table) -> bytes:
    """Parquet bytes: zstd, row groups of at most 1,024 rows, page checksums, statistics on the light columns only."""
    pictures = {"heat_map", "lung_mask", "pixels"}
    light = [name for name in table.column_names if name not in pictures]
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        row_group_size=ROW_GROUP_ROWS,
        use_dictionary=[name for name in light if pa.types.is_string(table.schema.field(name).type)],
        write_statistics=light,
        write_page_checksum=True,
    )
    return sink.getvalue()


def publish_part(publisher: Publisher, unit: pa.Table, kind: str, footer: PartFooter) -> PartRecord:
    """Encode and publish one unit.

    A loser of the race reads the winner's footer: the same identity is success.

    Raises:
        PublishConflict: the name is taken by a part of another identity.
    """
    table = finished_table(unit, kind, footer)
    data = encode_part(table)
    name = part_name(kind, footer.unit_id)
    try:
        won = publisher.publish(name, data)
    except Exception as error:  # storage clients raise what they like
        raise StorageWriteError(f"OUTPUT cannot be written ({explain(error)})") from error
    if not won:
        with publisher.storage.fs.open(publisher.path(name), "rb") as handle:
            winner = pq.read_metadata(handle)
        if (
            footer_identity(winner.metadata).get("identity") != footer.identity
            or winner.num_rows != table.num_rows
        ):
            raise PublishConflict(
                f"{name} exists already and was written by another identity or plan; choose another OUTPUT"
            )
    quarantined = [
        reason
        for status, reason in zip(
            table.column("status").to_pylist(), table.column("reason").to_pylist(), strict=True
        )
        if status == QUARANTINED
    ]
    return PartRecord(
        unit_id=footer.unit_id,
        images=table.num_rows,
        kept=table.num_rows - len(quarantined),
        quarantined=len(quarantined),
        reasons=dict(Counter(quarantined)),
        bytes=len(data),
        won=won,
    )
