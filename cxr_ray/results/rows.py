"""Single rows of the score table, found without reading the pictures of all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cxr_ray.archives.storage import Storage
from cxr_ray.errors import UsageError
from cxr_ray.pipeline.identity import Identity
from cxr_ray.pipeline.parts import part_name
from cxr_ray.results.query import ask
from cxr_ray.results.table import footer_record


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One row with the footer of the part that it came from."""

    values: dict[str, Any]
    """All columns of the score table."""
    footer: dict[str, Any]
    """``decode_policy``, ``device``, ... as the run recorded them."""

    @property
    def image_id(self) -> str:
        """32 hex digits."""
        return str(self.values["image_id"])


def fetch_rows(storage: Storage, identity: Identity, image_ids: Sequence[str]) -> list[ScoreRow]:
    """The rows of ``image_ids``, in that order.

    Only ``image_id`` and ``unit_id`` of the table are scanned; then the parts that hold the rows are read.

    Raises:
        UsageError: an id that is not in the table.
        OutputError: no score table there.
    """
    # Any spelling of the id that a person may paste: upper case, or with dashes as a UUID.
    wanted = [image_id.strip().lower().replace("-", "") for image_id in image_ids]
    sql = "SELECT image_id, unit_id FROM scores WHERE image_id IN (SELECT unnest(?))"
    units = {str(row[0]): str(row[1]) for row in ask(storage, identity, sql, [wanted]).rows}
    unknown = [image_id for image_id in wanted if image_id not in units]
    if unknown:
        raise UsageError(
            f"image_id {unknown[0]} is not in the table (published so far); "
            'list ids with: cxr-ray query OUTPUT "SELECT image_id, p_covid FROM scores"'
        )
    found: dict[str, ScoreRow] = {}
    for unit in sorted(set(units.values())):
        path = f"{storage.path.rstrip('/')}/{part_name(identity.kind, unit)}"
        with storage.fs.open(path, "rb") as handle:
            part = pq.ParquetFile(handle)
            footer = footer_record(part.schema_arrow.metadata)
            table = part.read()
        ids = [image_id for image_id, name in units.items() if name == unit]
        for values in table.filter(pc.is_in(table.column("image_id"), pa.array(ids))).to_pylist():
            found[values["image_id"]] = ScoreRow(values=values, footer=footer)
    return [found[image_id] for image_id in wanted]


def top_ids(storage: Storage, identity: Identity, count: int) -> list[str]:
    """image_ids of the ``count`` scored rows of highest p_covid, highest first (ties by image_id).

    Raises:
        UsageError: ``count`` under 1, or no scored row.
    """
    if count < 1:
        raise UsageError(f"--top takes a number of at least 1, got {count}")
    sql = "SELECT image_id FROM scores WHERE p_covid IS NOT NULL ORDER BY p_covid DESC, image_id LIMIT ?"
    ids = [str(row[0]) for row in ask(storage, identity, sql, [count]).rows]
    if not ids:
        raise UsageError(
            "no image was scored, so there is nothing to draw; see why with: "
            'cxr-ray query OUTPUT "SELECT reason, count(*) FROM scores GROUP BY ALL"'
        )
    return ids
