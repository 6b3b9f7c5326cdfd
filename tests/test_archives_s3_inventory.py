"""S3 Inventory deliveries: every format, versioned buckets, encoded keys, and deliveries that are damaged."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.orc as pa_orc
import pyarrow.parquet as pq
import pytest
from archive_samples import container_bytes, members
from s3_server import S3Server

from cxr_ray.archives.inputs import image_id_of
from cxr_ray.archives.listing import ListingReport, list_archive
from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import ArchiveError

ETAG = "0123456789abcdef0123456789abcdef"

#: Key as CSV spells it, whether latest, whether a delete marker, size, ETag.
ROWS = [
    ("films/a.png", True, False, 10, ETAG),
    ("films/with+space+and+%C3%BC%2B.png", True, False, 20, f"{ETAG}-3"),
    ("films/old.png", False, False, 30, ETAG),
    ("films/deleted.png", True, True, None, None),
    ("films/folder/", True, False, 0, ETAG),
    ("films/notes.txt", True, False, 5, ETAG),
    ("films/empty.png", True, False, 0, ETAG),
]
EXPECTED = [
    ("s3://films-bucket/films/a.png", 10, ETAG),
    ("s3://films-bucket/films/with space and \u00fc+.png", 20, f"{ETAG}-3"),
    ("s3://films-bucket/films/empty.png", 0, ETAG),
]


def plain_key(key: str) -> str:
    from urllib.parse import unquote_plus

    return unquote_plus(key)


def as_csv() -> bytes:
    table = pa.table(
        {
            "b": ["films-bucket"] * len(ROWS),
            "k": [row[0] for row in ROWS],
            "v": ["id"] * len(ROWS),
            "l": [str(row[1]).lower() for row in ROWS],
            "d": [str(row[2]).lower() for row in ROWS],
            "s": ["" if row[3] is None else str(row[3]) for row in ROWS],
            "e": [row[4] or "" for row in ROWS],
        }
    )
    sink = io.BytesIO()
    pa_csv.write_csv(table, sink, pa_csv.WriteOptions(include_header=False, quoting_style="all_valid"))
    half = len(sink.getvalue().splitlines(keepends=True)[0])
    # Two gzip members, as tools that append make them.
    return gzip.compress(sink.getvalue()[:half]) + gzip.compress(sink.getvalue()[half:])


def as_table() -> pa.Table:
    return pa.table(
        {
            "bucket": ["films-bucket"] * len(ROWS),
            "key": [plain_key(row[0]) for row in ROWS],
            "version_id": ["id"] * len(ROWS),
            "is_latest": [row[1] for row in ROWS],
            "is_delete_marker": [row[2] for row in ROWS],
            "size": pa.array([row[3] for row in ROWS], pa.int64()),
            "last_modified_date": pa.array([0] * len(ROWS), pa.timestamp("ms")),
            "e_tag": [row[4] for row in ROWS],
        }
    )


def written(write: Callable[[pa.Table, Any], None]) -> bytes:
    sink = io.BytesIO()
    write(as_table(), sink)
    return sink.getvalue()


DATA: dict[str, Callable[[], bytes]] = {
    "CSV": as_csv,
    "Parquet": lambda: written(pq.write_table),
    "ORC": lambda: written(pa_orc.write_table),
}


def manifest_of(form: str, *names: str, schema: str | None = None) -> bytes:
    fields = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, ETag"
    document = {
        "sourceBucket": "films-bucket",
        "destinationBucket": "arn:aws:s3:::inventories",
        "version": "2016-11-30",
        "fileFormat": form,
        "fileSchema": schema or (fields if form == "CSV" else "message s3.inventory { ... }"),
        "files": [{"key": f"lists/films-bucket/all/data/{name}", "size": 1} for name in names],
    }
    return json.dumps(document).encode()


def deliver(folder: Path, form: str, data: bytes | None = None) -> Path:
    """The delivery copied to a disk as S3 lays it out."""
    (folder / "2024-05-01T00-00Z").mkdir()
    (folder / "data").mkdir()
    (folder / "data" / "x").write_bytes(DATA[form]() if data is None else data)
    path = folder / "2024-05-01T00-00Z" / "manifest.json"
    path.write_bytes(manifest_of(form, "x"))
    return path


@pytest.mark.parametrize("form", list(DATA))
def test_latest_versions_only_and_what_a_listing_would_leave_out_left_out(tmp_path: Path, form: str) -> None:
    report = ListingReport()
    found = list(list_archive(open_storage(str(deliver(tmp_path, form))), report=report))
    assert [(one.uri, one.size, one.version) for one in found] == EXPECTED
    assert (report.listed, report.excluded, report.loose_versions) == (3, 1, 0)


def test_on_s3_it_gives_what_the_listing_gives(s3_server: S3Server) -> None:
    bucket, fs = s3_server.make_bucket(), s3_server.filesystem()
    objects = {f"films/{number}.png": b"film %d" % number for number in range(5)}
    objects |= {
        "films/box.zip": container_bytes("zip", members(3)),
        "films/.hidden": b"x",
        "a+b c.png": b"film",
    }
    fs.pipe({f"{bucket}/{key}": data for key, data in objects.items()})
    storage = open_storage(f"s3://{bucket}", s3_server.storage_options)
    by_listing = list(list_archive(storage))
    inventories = s3_server.make_bucket()
    rows = []
    for key in objects:
        info = fs.info(f"{bucket}/{key}")
        spelled = key.replace("+", "%2B").replace(" ", "+")
        rows.append(f'"{bucket}","{spelled}","{info["size"]}","{info["ETag"].strip(chr(34))}"\n')
    document = json.loads(manifest_of("CSV", "1.csv.gz", "2.csv.gz", schema="Bucket, Key, Size, ETag"))
    document |= {"sourceBucket": bucket, "destinationBucket": f"arn:aws:s3:::{inventories}"}
    fs.pipe(
        {
            f"{inventories}/lists/films-bucket/all/2024/manifest.json": json.dumps(document).encode(),
            f"{inventories}/lists/films-bucket/all/data/1.csv.gz": gzip.compress("".join(rows[:4]).encode()),
            f"{inventories}/lists/films-bucket/all/data/2.csv.gz": gzip.compress("".join(rows[4:]).encode()),
        }
    )
    address = f"s3://{inventories}/lists/films-bucket/all/2024/manifest.json"
    by_inventory = list(list_archive(open_storage(address, s3_server.storage_options)))
    assert len(by_listing) == 9
    assert sorted(by_inventory, key=lambda one: (one.uri, one.ordinal)) == by_listing
    assert {image_id_of(one) for one in by_inventory} == {image_id_of(one) for one in by_listing}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"{}", "not the manifest.json of an S3 Inventory"),
        (b"no json", "not the manifest.json of an S3 Inventory"),
        (b"[1]", "not the manifest.json of an S3 Inventory"),
        (manifest_of("Avro", "x"), "not the manifest.json of an S3 Inventory"),
        (manifest_of("CSV", "absent.csv.gz"), "absent.csv.gz of the S3 Inventory is not there"),
    ],
)
def test_what_is_no_delivery(tmp_path: Path, text: bytes, says: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(ArchiveError, match=says):
        list(list_archive(open_storage(str(tmp_path / "manifest.json"))))


@pytest.mark.parametrize("form", list(DATA))
def test_a_damaged_data_file_is_refused_by_name(tmp_path: Path, form: str) -> None:
    whole = DATA[form]()
    path = deliver(tmp_path, form, whole[: len(whole) // 2])
    with pytest.raises(ArchiveError, match="data file x"):
        list(list_archive(open_storage(str(path))))


def test_without_etags_only_sizes_are_compared(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(gzip.compress(b'"films-bucket","a.png","7"\n'))
    (tmp_path / "manifest.json").write_bytes(manifest_of("CSV", "x", schema="Bucket, Key, Size"))
    report = ListingReport()
    (one,) = list_archive(open_storage(str(tmp_path / "manifest.json")), report=report)
    assert (one.version, report.loose_versions) == ("size=7", 1)
