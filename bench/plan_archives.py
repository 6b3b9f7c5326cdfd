"""Archives of any number of inputs for ``bench/plan.py``: names and sizes, next to no content.

Names look like those of a hospital's archive (``films/000123/00123456.png``). Files are empty and members
have 16 bytes, so a million of them fit on any disk: planning never looks at an image's content.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

_MEMBER_BYTES = 16
_PER_FOLDER = 1000
_BATCH = 100_000
_DATA_FILE_ROWS = 1_000_000
_MODIFIED = "2024-05-01T12:00:00.000Z"


def name_of(number: int) -> str:
    """The name of one image, different for every number; sorted like the numbers."""
    return f"films/{number // _PER_FOLDER:06d}/{number:08d}.png"


def etag_of(number: int) -> str:
    return hashlib.md5(number.to_bytes(8, "big")).hexdigest()


def make_tree(folder: Path, count: int) -> Path:
    """Empty files, 1,000 per folder."""
    root = folder / "tree"
    for number in range(count):
        path = root / name_of(number)
        if number % _PER_FOLDER == 0:
            path.parent.mkdir(parents=True)
        path.touch()
    return root


def _batches(count: int) -> Iterator[pa.Table]:
    for start in range(0, count, _BATCH):
        numbers = range(start, min(start + _BATCH, count))
        yield pa.table(
            {
                "uri": pa.array([f"s3://archive/{name_of(number)}" for number in numbers]),
                "size": pa.array([200_000 + number % 1000 for number in numbers], pa.int64()),
                "etag": pa.array([etag_of(number) for number in numbers]),
                "patient": pa.array([f"P{number // 3}" for number in numbers]),
            }
        )


def make_csv_inventory(folder: Path, count: int) -> Path:
    """An inventory as CSV: uri, size, etag, patient."""
    path = folder / "inventory.csv"
    writer = None
    for table in _batches(count):
        writer = writer or pa_csv.CSVWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()
    return path


def make_parquet_inventory(folder: Path, count: int) -> Path:
    """The same inventory as Parquet."""
    path = folder / "inventory.parquet"
    writer = None
    for table in _batches(count):
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()
    return path


def make_manifest(folder: Path, count: int) -> Path:
    """A plain manifest of ``make_tree``'s files: every file is looked at."""
    root = make_tree(folder, count)
    path = folder / "manifest.csv"
    with path.open("w") as file:
        file.write("uri,patient\n")
        for number in range(count):
            file.write(f"{root}/{name_of(number)},P{number // 3}\n")
    return path


def make_s3_inventory(folder: Path, count: int) -> Path:
    """A delivery of S3 Inventory as S3 lays it out: manifest.json and gzipped CSV files without header."""
    delivery = folder / "2024-05-01T00-00Z"
    data = folder / "data"
    delivery.mkdir(parents=True)
    data.mkdir()
    files = []
    for part, start in enumerate(range(0, count, _DATA_FILE_ROWS)):
        path = data / f"part-{part}.csv.gz"
        with gzip.open(path, "wt", compresslevel=1) as file:
            for number in range(start, min(start + _DATA_FILE_ROWS, count)):
                key, tag = name_of(number), etag_of(number)
                file.write(f'"archive","{key}","{200_000 + number % 1000}","{_MODIFIED}","{tag}"\n')
        files.append({"key": f"inventories/archive/all/data/{path.name}", "size": path.stat().st_size})
    manifest = {
        "sourceBucket": "archive",
        "destinationBucket": "arn:aws:s3:::inventories",
        "version": "2016-11-30",
        "fileFormat": "CSV",
        "fileSchema": "Bucket, Key, Size, LastModifiedDate, ETag",
        "files": files,
    }
    (delivery / "manifest.json").write_text(json.dumps(manifest))
    return delivery / "manifest.json"


def make_tar(folder: Path, count: int, mode: str = "w|") -> Path:
    """A tar (or, with mode ``w|gz``, a tar.gz)."""
    path = folder / ("films.tar.gz" if mode.endswith("gz") else "films.tar")
    with tarfile.open(str(path), mode) as archive:  # type: ignore[call-overload]
        for number in range(count):
            entry = tarfile.TarInfo(name_of(number))
            entry.size = _MEMBER_BYTES
            archive.addfile(entry, io.BytesIO(number.to_bytes(_MEMBER_BYTES, "big")))
            archive.members.clear()
    return path


def make_targz(folder: Path, count: int) -> Path:
    return make_tar(folder, count, "w|gz")


def make_zip(folder: Path, count: int) -> Path:
    """A zip of stored members (zip64 beyond 65,535 of them)."""
    path = folder / "films.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            archive.writestr(name_of(number), number.to_bytes(_MEMBER_BYTES, "big"))
    return path


ARCHIVES: dict[str, Callable[[Path, int], Path]] = {
    "tree": make_tree,
    "manifest": make_manifest,
    "csv": make_csv_inventory,
    "parquet": make_parquet_inventory,
    "s3-inventory": make_s3_inventory,
    "tar": make_tar,
    "tar.gz": make_targz,
    "zip": make_zip,
}


def make(kind: str, folder: Path, count: int) -> Path:
    """Make one archive in a fresh folder; returns what ``archive=`` names."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return ARCHIVES[kind](folder, count)
