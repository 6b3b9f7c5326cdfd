"""Shards as an archive: list the rows of an ingest OUTPUT, and read units back from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cxr_ray.archives.inputs import ArchiveInput
from cxr_ray.archives.storage import Storage, open_storage
from cxr_ray.errors import ArchiveError, StorageReadError
from cxr_ray.pipeline.identity import IDENTITY_FILE, KIND_SHARDS, Identity, read_identity
from cxr_ray.pipeline.plan import PlannedImage
from cxr_ray.pipeline.planner import PlannedSource
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.shards import SHARD_FOLDER, SHARD_SCHEMA, UNIT_SCHEMA


def shards_identity(archive: Storage) -> Identity | None:
    """Identity of the ingest OUTPUT at ``archive``; None where it is an ordinary archive."""
    publisher = Publisher(archive)
    if not archive.fs.exists(publisher.path(IDENTITY_FILE)):
        return None
    identity = read_identity(publisher)
    if identity is None or identity.kind != KIND_SHARDS:
        raise ArchiveError(
            f"archive {archive.url} is a score table, not an archive; "
            "give the images or the OUTPUT of jobs/ingest.py"
        )
    return identity


def list_shards(archive: Storage) -> Iterator[PlannedSource]:
    """Every row of every published shard, in part order."""
    publisher = Publisher(archive)
    for name in publisher.names(SHARD_FOLDER):
        path = publisher.path(f"{SHARD_FOLDER}/{name}")
        with archive.fs.open(path, "rb") as handle:
            table = pq.read_table(handle, columns=["image_id", "uri", "member"])
        for ordinal, row in enumerate(table.to_pylist()):
            source = ArchiveInput(
                uri=f"{archive.url.rstrip('/')}/{SHARD_FOLDER}/{name}",
                member=row["member"],
                kind="shard",
                ordinal=ordinal,
            )
            yield PlannedSource(
                source=source,
                image_id=bytes.fromhex(row["image_id"]),
                uri=row["uri"],
                member=row["member"],
            )


def read_shard_unit(images: Sequence[PlannedImage], options: dict[str, Any]) -> pa.Table:
    """Unit table of planned rows of one shard.

    Raises:
        StorageReadError: the shard is gone, or its rows are not those that were planned.
    """
    url = images[0].source.uri
    storage = open_storage(url, options)
    try:
        with storage.fs.open(storage.path, "rb") as handle:
            table = pq.read_table(handle)
    except FileNotFoundError as error:
        raise StorageReadError(f"shard {url} is gone; restore it and run again") from error
    table = table.take(pa.array([image.source.ordinal for image in images], pa.int64()))
    if table.column("image_id").to_pylist() != [image.image_id for image in images]:
        raise StorageReadError(f"shard {url} was replaced since it was planned; score it into another OUTPUT")
    assert set(table.column_names) == set(SHARD_SCHEMA.names)
    return table.select(UNIT_SCHEMA.names).cast(UNIT_SCHEMA)
