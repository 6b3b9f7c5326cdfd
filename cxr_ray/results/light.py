"""The light copy of a score table, ``OUTPUT/light/``: all columns but the two pictures, in few large files.

It is derived from the parts (``cxr-ray compact``) and may be thrown away at any time. ``light.json`` names its files
and the parts they were made from; readers use it only while these are the parts of the table, and the files are all
there. A part is never changed, so its name stands for its content.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.dataset as ds

from cxr_ray.archives.storage import Storage
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.pipeline.score_table import SCORE_SCHEMA

LIGHT_FOLDER: Final = "light"
MARKER: Final = f"{LIGHT_FOLDER}/light.json"
PICTURES: Final = ("heat_map", "lung_mask")

LIGHT_SCHEMA: Final = pa.schema([field for field in SCORE_SCHEMA if field.name not in PICTURES])
"""That of the score table without the pictures, which are its last columns."""

_FORMAT: Final = 1

CURRENT: Final = "current"
STALE: Final = "stale"
DAMAGED: Final = "damaged"
ABSENT: Final = "absent"


@dataclass(frozen=True, kw_only=True)
class LightFile:
    """One file of the light copy."""

    name: str
    rows: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class LightMarker:
    """What ``light.json`` says."""

    identity: str
    generations: list[int]
    """Generations of the plan that the rows are of."""
    parts: int
    parts_sha256: str
    """``parts_digest`` of the part files that it was made from."""
    rows: int
    files: list[LightFile]
    format: int = _FORMAT

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=2).encode() + b"\n"


@dataclass(frozen=True, kw_only=True)
class LightState:
    """Whether the light copy can stand for the parts."""

    verdict: str
    """``current``, ``stale`` (parts were published since), ``damaged`` or ``absent``."""
    marker: LightMarker | None = None

    def line(self, parts: int) -> str:
        """One line for people."""
        if self.marker is None:
            said = "damaged" if self.verdict == DAMAGED else "none"
            return f"light copy: {said}; `cxr-ray compact` makes one"
        made = f"{self.marker.rows} rows of {self.marker.parts} parts in {len(self.marker.files)} files"
        if self.verdict == CURRENT:
            return f"light copy: current ({made})"
        why = "its files are not all there" if self.verdict == DAMAGED else f"the table has {parts} parts now"
        return f"light copy: {self.verdict} ({made}; {why}); `cxr-ray compact` makes it anew"


def parts_digest(parts: Iterable[str]) -> str:
    """SHA-256 over the names of part files, in name order."""
    names = sorted(path.rsplit("/", 1)[-1] for path in parts)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def read_marker(publisher: Publisher) -> LightMarker | None:
    """The marker; None where there is none, or one that this version cannot read: the copy can be made again."""
    raw = publisher.read(MARKER)
    try:
        record = json.loads(raw) if raw is not None else None
        if not isinstance(record, dict) or record.get("format") != _FORMAT:
            return None
        files = [LightFile(**entry) for entry in record.pop("files")]
        return LightMarker(files=files, **record)
    except (ValueError, KeyError, TypeError):
        return None


def light_state(storage: Storage, parts: list[str]) -> LightState:
    """Compare the marker with the table's parts and with the files that are there."""
    publisher = Publisher(storage)
    marker = read_marker(publisher)
    if marker is None:
        return LightState(verdict=ABSENT if publisher.read(MARKER) is None else DAMAGED)
    if (marker.parts, marker.parts_sha256) != (len(parts), parts_digest(parts)):
        return LightState(verdict=STALE, marker=marker)
    present = set(publisher.names(LIGHT_FOLDER))
    whole = all(file.name in present for file in marker.files)
    return LightState(verdict=CURRENT if whole else DAMAGED, marker=marker)


def current_files(storage: Storage, parts: list[str]) -> list[str] | None:
    """Paths of the light copy's files; None where it cannot stand for ``parts``."""
    state = light_state(storage, parts)
    if state.verdict != CURRENT or state.marker is None:
        return None
    return [f"{storage.path.rstrip('/')}/{LIGHT_FOLDER}/{file.name}" for file in state.marker.files]


class ScoreDataset(ds.FileSystemDataset):
    """The score table over its parts; scans that need no picture read the light copy instead.

    A ``pyarrow.dataset.Dataset`` in every respect. The order of rows differs between the two (the light copy is sorted
    by image_id over the whole table), so ``take`` always reads the parts. Libraries that reach through to Arrow's C++
    dataset (DuckDB does) read the parts, too.
    """

    light: ds.Dataset

    @classmethod
    def over(cls, parts: ds.FileSystemDataset, light: ds.Dataset) -> ScoreDataset:
        """``parts`` with ``light`` beside it."""
        dataset = cls(list(parts.get_fragments()), parts.schema, parts.format, parts.filesystem)
        dataset.light = light
        return dataset

    def scanner(self, columns: Any = None, filter: ds.Expression | None = None, **options: Any) -> ds.Scanner:
        """As ``Dataset.scanner``."""
        if needs_pictures(columns, filter):
            return super().scanner(columns=columns, filter=filter, **options)
        return self.light.scanner(columns=columns, filter=filter, **options)

    def take(self, indices: Any, **options: Any) -> pa.Table:
        """As ``Dataset.take``."""
        return super().scanner(**options).take(indices)


def needs_pictures(
    columns: list[str] | Mapping[str, ds.Expression] | None, filter: ds.Expression | None
) -> bool:
    """Whether a scan reads ``heat_map`` or ``lung_mask``; rather once too often, for a name inside a text."""
    if columns is None:
        return True
    expressions = columns.values() if isinstance(columns, Mapping) else columns
    text = " ".join(str(entry) for entry in (*expressions, filter))
    # A field may be named by its position, too.
    return "FieldPath" in text or bool(set(re.findall(r"\w+", text)) & set(PICTURES))
