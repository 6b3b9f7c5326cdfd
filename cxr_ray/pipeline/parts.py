"""Part files: exactly one per unit, encoded here and published create-only under the unit's name."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from cxr_ray.archives.storage import explain
from cxr_ray.errors import CxrRayError, PublishConflict, StorageWriteError
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
    """What a part says about itself in its Parquet key-value metadata (key ``cxr_ray``).

    The last five tell how this unit went, see ``unit_rows.Journey``; they may differ between two runs of the
    same command. ``seconds`` ends before publication, since the footer is part of what is published.
    """

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
    seconds: dict[str, float] = field(default_factory=dict)
    retries: int = 0
    node: str | None = None
    micro_batch: int | None = None
    halvings: int = 0


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


@dataclass(frozen=True, kw_only=True)
class EncodedPart:
    """A part ready to be published: its bytes, and what they hold."""

    name: str
    footer: PartFooter
    data: bytes
    rows: int
    reasons: dict[str, int]


def encoded_part(unit: pa.Table, kind: str, footer: PartFooter) -> EncodedPart:
    """Encode one unit."""
    table = finished_table(unit, kind, footer)
    statuses, reasons = (table.column(name).to_pylist() for name in ("status", "reason"))
    quarantined = [reason for status, reason in zip(statuses, reasons, strict=True) if status == QUARANTINED]
    return EncodedPart(
        name=part_name(kind, footer.unit_id),
        footer=footer,
        data=encode_part(table),
        rows=table.num_rows,
        reasons=dict(Counter(quarantined)),
    )


def put_part(publisher: Publisher, part: EncodedPart) -> PartRecord:
    """Publish an encoded unit; doing so again is harmless.

    A loser of the race reads the winner's footer: the same identity is success.

    Raises:
        PublishConflict: the name is taken by a part of another identity, or by no part at all.
        StorageWriteError: OUTPUT's storage failed; the unit stays open.
    """
    try:
        won = publisher.publish(part.name, part.data)
        winner = None if won else _footer_of(publisher, part.name)
    except CxrRayError:
        raise
    except Exception as error:  # storage clients raise what they like
        raise StorageWriteError(f"OUTPUT cannot be written ({explain(error)})") from error
    if winner is not None and (
        footer_identity(winner.metadata).get("identity") != part.footer.identity
        or winner.num_rows != part.rows
    ):
        raise PublishConflict(
            f"{part.name} exists already and was written by another identity or plan; choose another OUTPUT"
        )
    quarantined = sum(part.reasons.values())
    return PartRecord(
        unit_id=part.footer.unit_id,
        images=part.rows,
        kept=part.rows - quarantined,
        quarantined=quarantined,
        reasons=part.reasons,
        bytes=len(part.data),
        won=won,
    )


def publish_part(publisher: Publisher, unit: pa.Table, kind: str, footer: PartFooter) -> PartRecord:
    """Encode and publish one unit; see ``put_part``."""
    return put_part(publisher, encoded_part(unit, kind, footer))


def _footer_of(publisher: Publisher, name: str) -> pq.FileMetaData:
    try:
        with publisher.storage.fs.open(publisher.path(name), "rb") as handle:
            return pq.read_metadata(handle)
    except pa.ArrowInvalid as error:
        raise PublishConflict(
            f"{name} exists already and is no readable part; choose another OUTPUT"
        ) from error
