"""Made training data for tests: examples, a manifest with pictures and masks, and shards without Ray."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from end_to_end.commands import write_films

from cxr_ray.archives.inputs import image_id_of
from cxr_ray.archives.listing import list_archive
from cxr_ray.archives.manifest_table import ManifestOptions
from cxr_ray.archives.storage import open_storage
from cxr_ray.pipeline.decode_unit import InputSettings, decode_unit
from cxr_ray.pipeline.plan import PlannedImage
from cxr_ray.pipeline.privacy import Privacy
from cxr_ray.shards import SHARD_FOLDER, SHARD_SCHEMA


def write_manifest(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A CSV with the columns of the first row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def make_pairs(folder: Path, count: int = 4) -> Path:
    """``count`` small phantom films (400 x 340) with box masks and their manifest; two masks on the first film."""
    rows = []
    (folder / "masks").mkdir(parents=True)
    for number, film in enumerate(write_films(folder / "films", count)):
        styles = ["v7", "jms"] if number == 0 else ["v7"]
        for style in styles:
            mask_HW = np.zeros((400, 340), np.uint8)
            mask_HW[100 + number : 300, 60:150] = 255
            mask = folder / "masks" / f"{film.stem}.{style}.png"
            cv2.imwrite(str(mask), mask_HW, [cv2.IMWRITE_PNG_BILEVEL, 1])
            rows.append(
                {
                    "id": f"{film.stem}.{style}",
                    "file": f"films/{film.name}",
                    "mask": f"masks/{mask.name}",
                    "mask_style": style,
                    "patient_id": f"p{number // 2}",
                    "label": "covid" if number % 2 else "noncovid",
                }
            )
    return write_manifest(folder / "manifest.csv", rows)


def make_shards(
    manifest: Path, output: Path, *, root: str | None = None, privacy: Privacy | None = None, parts: int = 2
) -> str:
    """What ``jobs/ingest.py archive=manifest carry=[id]`` publishes under ``output/shards``, without Ray."""
    privacy = privacy or Privacy()
    options = ManifestOptions(root=root, carry=["id"])
    planned = [
        PlannedImage(
            image_id=image_id_of(source, privacy.image_key).hex(), uri=source.uri, member=source.member, source=source,
            patient_key=None, study_key=None, label=source.label, view=None, sex=None, age_years=None,
            carry=list(source.carry) if source.carry else None,
        )
        for source in list_archive(open_storage(str(manifest)), manifest=options)
    ]  # fmt: skip
    folder = output / SHARD_FOLDER
    folder.mkdir(parents=True)
    planned.sort(key=lambda image: image.image_id)
    for number in range(parts):
        rows = decode_unit(planned[number::parts], InputSettings(privacy=privacy)).to_pylist()
        for row in rows:
            row |= {"unit_id": f"{number}", "identity": "i", "schema_version": 1, "generation": 0}
        pq.write_table(pa.Table.from_pylist(rows, schema=SHARD_SCHEMA), folder / f"part-{number}.parquet")
    return str(output)
