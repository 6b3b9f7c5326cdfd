"""``OUTPUT/split.parquet``: the side of every picture, decided once; nothing in it names a patient."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cxr_ray.archives.storage import Storage
from cxr_ray.errors import TrainingDataError
from training.data.example import Example
from training.data.frames import Frames

SPLIT_FILE = "split.parquet"
SPLIT_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("id", pa.string()),
        ("content_sha256", pa.string()),
        ("patient_key", pa.string()),
        ("group", pa.string()),  # Example.unit_key, as in all tables of the training room
        ("manifest_group", pa.string()),  # Example.group_key
        ("source", pa.string()),
        ("label", pa.string()),
        ("mask_style", pa.string()),
        ("view", pa.string()),
        ("pediatric", pa.bool_()),
        ("licence", pa.string()),
        ("manifest_split", pa.string()),
        ("split", pa.string()),
        ("fold", pa.int32()),
        ("reason", pa.string()),
    ]
)
_SAME = {
    "label": "label",
    "source": "source",
    "licence": "licence",
    "manifest_split": "split",
    "content_sha256": "file content",
}
"""Column -> what a message calls it; a changed value is refused."""
_CHANGED = (
    "the manifest or the shards have changed since this output was begun ({what}); train into a new output, or bring "
    "them back"
)


def split_table(
    frames: Frames, split: Sequence[str], fold: Sequence[int | None], reason: Sequence[str | None]
) -> bytes:
    """The file's content: one row per picture, in the order of the frames."""
    rows = [
        {
            **_manifest_cells(frames, i),
            "image_id": frames.image_id[i],
            "id": example.id_key,
            "patient_key": example.patient_key,
            "group": example.unit_key,
            "manifest_group": example.group_key,
            "mask_style": example.mask_style,
            "view": example.view,
            "pediatric": example.pediatric,
            "split": split[i],
            "fold": fold[i],
            "reason": reason[i],
        }
        for i, example in enumerate(frames.examples)
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SPLIT_SCHEMA), buffer)
    return buffer.getvalue()


def read_split(output: Storage) -> list[dict[str, Any]]:
    """The rows of a training output's file."""
    with output.fs.open(f"{output.path}/{SPLIT_FILE}", "rb") as file:
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return rows


def match(rows: Sequence[dict[str, Any]], frames: Frames) -> list[dict[str, Any]]:
    """The row of each picture, in the order of the frames.

    A file of an earlier version, with fewer columns, is compared by those it has.

    Raises:
        TrainingDataError: pictures came or went, or one has another label, patient, group, source or side than when
            the split was decided.
    """
    decided = dict(zip(_names([(row["image_id"], row["mask_style"]) for row in rows]), rows, strict=True))
    names = _names(
        [(image_id, one.mask_style) for image_id, one in zip(frames.image_id, frames.examples, strict=True)]
    )
    new, gone = len(set(names) - set(decided)), len(set(decided) - set(names))
    if new or gone:
        raise TrainingDataError(_CHANGED.format(what=f"{new:,} pictures are new, {gone:,} are gone"))
    found = [decided[name] for name in names]
    odd = Counter(what for i, row in enumerate(found) for what in _differences(row, frames, i))
    parts = [f"another {what} for {count:,}" for what, count in sorted(odd.items())]
    parts += _regrouped(found, frames.examples)
    if parts:
        raise TrainingDataError(_CHANGED.format(what=", ".join(parts)))
    return found


def with_stored_keys(example: Example, row: dict[str, Any]) -> Example:
    """The example with the keys that it had when the split was decided, since the secret may be absent now."""
    group = row.get("manifest_group") or row["group"]
    unit = row["group"] if "manifest_group" in row else example.unit_key
    return replace(example, id_key=row["id"], patient_key=row["patient_key"], group_key=group, unit_key=unit)


def _names(pictures: Sequence[tuple[str, str | None]]) -> list[tuple[str, str | None, int]]:
    """Unique names of rows: a picture may have two masks of one style, which stand in the order of their ids."""
    seen: Counter[tuple[str, str | None]] = Counter()
    names = []
    for picture in pictures:
        names.append((*picture, seen[picture]))
        seen[picture] += 1
    return names


def _manifest_cells(frames: Frames, index: int) -> dict[str, str | None]:
    example = frames.examples[index]
    return {
        "label": example.label,
        "source": example.source,
        "licence": example.licence,
        "manifest_split": example.split,
        "content_sha256": frames.content_sha256[index],
    }


def _differences(row: dict[str, Any], frames: Frames, index: int) -> list[str]:
    cells = _manifest_cells(frames, index)
    odd = [what for name, what in _SAME.items() if name in row and row[name] != cells[name]]
    now = frames.examples[index].id_key
    # Ids seed the draws. Without the secret that the output was begun with they cannot be compared.
    return [*odd, "id"] if now and row["id"] and now != row["id"] else odd


def _regrouped(rows: Sequence[dict[str, Any]], examples: Sequence[Example]) -> list[str]:
    """What is no more as it was, of patients and groups; compared by who is together, since keys may differ."""
    pairs: dict[str, list[tuple[str | None, str | None]]] = {
        "other patients": [
            (row["patient_key"], one.patient) for row, one in zip(rows, examples, strict=True)
        ],
        "other groups": [
            (row.get("manifest_group"), one.group) for row, one in zip(rows, examples, strict=True)
        ],
    }
    odd = []
    for what, both in pairs.items():
        # Nothing is stored where identifiers are raw and there was no key, or by an earlier version.
        known = any(stored for stored, _ in both)
        together = set(both)
        if known and not (len({a for a, _ in together}) == len({b for _, b in together}) == len(together)):
            odd.append(what)
    return odd
