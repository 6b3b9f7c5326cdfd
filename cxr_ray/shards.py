"""The shard schema: one row per planned input, header facts and preprocessed pixels.

A *shard* is what ``jobs/ingest.py`` publishes and what every later step reads: the facts columns of
the score table plus ``pixels``, the 300 x 340 equalised frame as 102,000 raw bytes (row-major uint8),
null where the input was quarantined. The scoring job builds the same table in memory, so that there is
one form between decoding and the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

SHARD_SCHEMA_VERSION = 1
SHARD_FOLDER = "shards"

READY = "ready"
QUARANTINED = "quarantined"

#: Columns known before the network runs, in table order; shared with the score table.
FACT_FIELDS: tuple[pa.Field, ...] = (
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("uri", pa.string()),
    pa.field("member", pa.string()),
    pa.field("content_sha256", pa.string()),
    pa.field("patient_key", pa.string()),
    pa.field("study_key", pa.string()),
    pa.field("instance_key", pa.string()),
    pa.field("view", pa.string()),
    pa.field("modality", pa.string()),
    pa.field("body_part", pa.string()),
    pa.field("photometric", pa.string()),
    pa.field("transfer_syntax", pa.string()),
    pa.field("manufacturer", pa.string()),
    pa.field("sex", pa.string()),
    pa.field("image_rows", pa.int32()),
    pa.field("image_columns", pa.int32()),
    pa.field("bits_stored", pa.int16()),
    pa.field("age_years", pa.int16()),
    pa.field("study_year", pa.int16()),
    pa.field("pixel_spacing_mm", pa.float32()),
    pa.field("label", pa.string()),
    pa.field("carry", pa.map_(pa.string(), pa.string())),
)

#: What became of the input; shared with the score table.
STATUS_FIELDS: tuple[pa.Field, ...] = (
    pa.field("status", pa.string(), nullable=False),
    pa.field("reason", pa.string()),
    pa.field("detail", pa.string()),
    pa.field("flags", pa.list_(pa.field("element", pa.string())), nullable=False),
)

#: Where the row came from in this run; shared with the score table.
PROVENANCE_FIELDS: tuple[pa.Field, ...] = (
    pa.field("unit_id", pa.string(), nullable=False),
    pa.field("identity", pa.string(), nullable=False),
    pa.field("schema_version", pa.int16(), nullable=False),
    pa.field("generation", pa.int32(), nullable=False),
)

PIXELS_FIELD = pa.field("pixels", pa.binary())

SHARD_SCHEMA = pa.schema([*FACT_FIELDS, *STATUS_FIELDS, *PROVENANCE_FIELDS, PIXELS_FIELD])

#: The table between decoding and scoring: a shard without provenance, which publication adds.
UNIT_SCHEMA = pa.schema([*FACT_FIELDS, *STATUS_FIELDS, PIXELS_FIELD])


def table_of(rows: Sequence[dict[str, Any]], schema: pa.Schema = UNIT_SCHEMA) -> pa.Table:
    """Arrow table of ``rows`` with exactly ``schema``; columns missing from a row become null."""
    return pa.Table.from_pylist(list(rows), schema=schema)


def iter_pixels(table: pa.Table) -> Iterator[memoryview | None]:
    """The pixel buffer of each row without copying: 102,000 bytes, or None where quarantined."""
    for chunk in table.column("pixels").chunks:
        for scalar in chunk:
            yield memoryview(scalar.as_buffer()) if scalar.is_valid else None
