"""The plan: what will become rows, fixed before any pixel is read (DESIGN promise 5).

A plan is a chain of *generations* ``plan/<n>/``. A generation counts once its ``committed.json``
exists; the marker names the folder of the attempt that won, so that drivers may race. Each generation
holds ``inputs-*.parquet`` (one row group per *unit*) and ``units.parquet`` (the index of units).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_ray.archives.inputs import ArchiveInput
from cxr_ray.errors import OutputError
from cxr_ray.pipeline.publish import Publisher

PLAN_FOLDER = "plan"
MARKER = "committed.json"

#: ``kind`` of inputs that are rows of a published shard.
SHARD_KIND = "shard"

PLAN_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.binary(16), nullable=False),
        pa.field("unit_id", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("member", pa.string()),
        pa.field("container", pa.string()),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("ordinal", pa.int64(), nullable=False),
        pa.field("occurrence", pa.int32(), nullable=False),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("version", pa.string()),
        pa.field("failure", pa.string()),
        pa.field("failure_detail", pa.string()),
        pa.field("patient_key", pa.string()),
        pa.field("study_key", pa.string()),
        pa.field("label", pa.string()),
        pa.field("view", pa.string()),
        pa.field("sex", pa.string()),
        pa.field("age_years", pa.int16()),
        pa.field("carry", pa.map_(pa.string(), pa.string())),
    ]
)

UNIT_INDEX_SCHEMA = pa.schema(
    [
        pa.field("unit_id", pa.string(), nullable=False),
        pa.field("generation", pa.int32(), nullable=False),
        pa.field("images", pa.int32(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row_group", pa.int32(), nullable=False),
        pa.field("uri", pa.string()),
        pa.field("kind", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One part file's worth of planned images: at most 1,000 of one container.

    Attributes:
        file: name of the inputs file, relative to the plan's folder.
        row_group: the unit's row group in it.
        uri: the container, or the first file of a unit of single files.
        kind: ``file``, ``tar``, ``tar.gz``, ``zip`` or ``shard``.
    """

    unit_id: str
    generation: int
    images: int
    file: str
    row_group: int
    uri: str | None
    kind: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedImage:
    """One planned row.

    Attributes:
        image_id: 32 hex digits.
        source: what the reader needs; its ``uri`` is the container to open.
        uri, member: what the table shows; for shards the original's, not the shard's.
    """

    image_id: str
    uri: str | None
    member: str | None
    source: ArchiveInput
    patient_key: str | None
    study_key: str | None
    label: str | None
    view: str | None
    sex: str | None
    age_years: int | None
    carry: list[tuple[str, str]] | None


@dataclass(frozen=True)
class Plan:
    """The committed generations in a folder.

    Attributes:
        publisher: folder of the plan (OUTPUT or ``plan_dir``).
        generations: the markers' contents, oldest first.
    """

    publisher: Publisher
    generations: tuple[dict[str, Any], ...]

    @property
    def images(self) -> int:
        """Planned images of all generations."""
        return sum(generation["images"] for generation in self.generations)

    def units(self, generation: int | None = None) -> list[Unit]:
        """Units of one generation, or of all, in plan order."""
        numbers = range(len(self.generations)) if generation is None else [generation]
        found: list[Unit] = []
        for number in numbers:
            table = self._table(f"{self.folder(number)}/units.parquet")
            found += [Unit(**row) for row in table.to_pylist()]
        return found

    def folder(self, generation: int) -> str:
        """Folder of a generation's winning attempt, relative to the plan's folder."""
        return f"{PLAN_FOLDER}/{generation:05d}/{self.generations[generation]['directory']}"

    def image_ids(self) -> np.ndarray:
        """All planned ids as a sorted array of 16-byte strings (dtype ``S16``)."""
        return np.sort(np.concatenate([np.empty(0, "S16"), *self.id_chunks()]))

    def id_chunks(self) -> Iterator[np.ndarray]:
        """All planned ids in plan order (dtype ``S16``), one array per inputs file."""
        for table in self.tables(columns=["image_id"]):
            yield id_array(table.column("image_id"))

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The planned rows, one table per inputs file, in plan order."""
        for number in range(len(self.generations)):
            files = dict.fromkeys(unit.file for unit in self.units(number))
            for file in files:
                yield self._table(file, columns)

    def _table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        raw = self.publisher.read(name)
        if raw is None:
            raise OutputError(
                f"{self.publisher.storage.url} lacks {name} of its own plan; restore it or start a new OUTPUT"
            )
        return pq.read_table(io.BytesIO(raw), columns=columns)


def open_plan(publisher: Publisher) -> Plan:
    """The committed generations; a generation without marker does not count."""
    generations: list[dict[str, Any]] = []
    while (raw := publisher.read(marker_name(len(generations)))) is not None:
        generations.append(json.loads(raw))
    return Plan(publisher=publisher, generations=tuple(generations))


def marker_name(generation: int) -> str:
    """Name of a generation's commit marker."""
    return f"{PLAN_FOLDER}/{generation:05d}/{MARKER}"


def read_unit(publisher: Publisher, unit: Unit) -> list[PlannedImage]:
    """The planned images of one unit, in container order (reads one row group)."""
    with publisher.storage.fs.open(publisher.path(unit.file), "rb") as handle:
        table = pq.ParquetFile(handle).read_row_group(unit.row_group)
    return [planned_image(row) for row in table.to_pylist()]


def planned_image(row: dict[str, Any]) -> PlannedImage:
    """A plan row as objects."""
    source = ArchiveInput(
        uri=row["container"],
        member=row["member"],
        kind=row["kind"],
        ordinal=row["ordinal"],
        occurrence=row["occurrence"],
        offset=row["offset"],
        size=row["size"],
        version=row["version"],
        failure=row["failure"],
        failure_detail=row["failure_detail"],
    )
    return PlannedImage(
        image_id=row["image_id"].hex(),
        uri=row["uri"],
        member=row["member"],
        source=source,
        patient_key=row["patient_key"],
        study_key=row["study_key"],
        label=row["label"],
        view=row["view"],
        sex=row["sex"],
        age_years=row["age_years"],
        carry=row["carry"],
    )


def id_array(column: pa.ChunkedArray) -> np.ndarray:
    """A fixed-size binary(16) column as a NumPy ``S16`` array, without Python objects."""
    parts = [np.empty(0, "S16")]
    for chunk in column.chunks:
        data = np.frombuffer(chunk.buffers()[1], "S16", count=len(chunk) + chunk.offset)
        parts.append(data[chunk.offset :])
    return np.concatenate(parts)


def counted_units(count: int) -> str:
    """As people read it: "1 unit", "1,204 units"."""
    return "1 unit" if count == 1 else f"{count:,} units"
