"""A delivery of S3 Inventory as an archive: its manifest.json names data files that list a bucket.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory.html
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from cxr_ray.archives.batches import FileBatch
from cxr_ray.archives.exclude import Exclusion, ListingReport
from cxr_ray.archives.fetch import facts, open_file, read_whole
from cxr_ray.archives.inputs import ArchiveInput
from cxr_ray.archives.inventory import sizes, versions, with_containers_opened
from cxr_ray.archives.storage import Storage
from cxr_ray.errors import ArchiveError, CxrRayError, MissingInput

MANIFEST_NAME = "manifest.json"
_FORMATS = ("CSV", "Parquet", "ORC")
_BATCH_ROWS = 50_000
_BLOCK_BYTES = 4 << 20


def is_s3_inventory(path: str) -> bool:
    """Whether a file is to be read as the manifest of an S3 Inventory, judged by its name alone."""
    return path.rsplit("/", 1)[-1].lower() == MANIFEST_NAME


def list_s3_inventory(
    storage: Storage, *, exclude: Exclusion, report: ListingReport
) -> Iterator[ArchiveInput | FileBatch]:
    """Yield the objects of an S3 Inventory in its order, as a listing of the bucket would: with containers
    opened, without what ``exclude`` matches (names are those inside the bucket).

    Of a versioned bucket only the latest versions are taken, and no delete markers. Data files are read one
    after the other in batches.

    Args:
        storage: of the manifest.json, in the bucket that the delivery was made to or as a copy elsewhere (then
            with the data files beside it, or in the folder ``data`` beside it or beside its folder).

    Raises ArchiveError for what is no such inventory, StorageReadError when a storage fails.
    """
    manifest = _read_manifest(storage)
    bucket = manifest["sourceBucket"]
    source = storage.at(f"s3://{bucket}")
    for entry in manifest["files"]:
        with _open_data(storage, manifest, entry["key"]) as file:
            for table in _batches(file, manifest):
                batch = _file_batch(table, bucket, exclude, report)
                yield from with_containers_opened(batch, source, exclude, report)


def _read_manifest(storage: Storage) -> dict[str, Any]:
    needed = {"sourceBucket": str, "fileFormat": str, "fileSchema": str, "files": list}
    try:
        manifest = json.loads(read_whole(storage, storage.path, None))
        sound = all(isinstance(manifest[name], kind) for name, kind in needed.items())
        sound = sound and all(isinstance(entry["key"], str) for entry in manifest["files"])
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound or manifest["fileFormat"] not in _FORMATS:
        raise ArchiveError(
            f"{storage.url} is not the {MANIFEST_NAME} of an S3 Inventory in CSV, Parquet or ORC; give that, a "
            "folder, a container or a manifest in CSV or Parquet."
        )
    return dict(manifest)


@contextmanager
def _open_data(storage: Storage, manifest: dict[str, Any], key: str) -> Iterator[BinaryIO]:
    name = posixpath.basename(key)
    folder = posixpath.dirname(storage.path)
    places = [f"{folder}/{name}", f"{folder}/data/{name}", f"{posixpath.dirname(folder)}/data/{name}"]
    if storage.protocol == "s3":
        destination = str(manifest.get("destinationBucket", "")).rsplit(":", 1)[-1]
        places.insert(0, f"{destination}/{key}")
    for path in places:
        try:
            known = facts(storage, path)
        except MissingInput:
            continue
        try:
            with open_file(storage, path, known, prefetch=True) as file:
                yield file
        except CxrRayError:
            raise
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise ArchiveError(
                f"The data file {name} of the S3 Inventory cannot be read as {manifest['fileFormat']} "
                f"({type(error).__name__}); is it damaged or cut off?"
            ) from error
        return
    raise ArchiveError(
        f"The data file {name} of the S3 Inventory is not there; copy it beside {MANIFEST_NAME}, or give the delivery "
        "where S3 put it."
    )


def _batches(file: BinaryIO, manifest: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    """Batches with columns named as ``_plain`` names them, of those that are needed and there."""
    if manifest["fileFormat"] == "Parquet":
        parquet = pq.ParquetFile(file, buffer_size=_BLOCK_BYTES)
        wanted = [name for name in parquet.schema_arrow.names if _plain(name) in _NEEDED]
        batches: Iterator[pa.RecordBatch] = parquet.iter_batches(_BATCH_ROWS, columns=wanted)
    elif manifest["fileFormat"] == "ORC":
        import pyarrow.orc as pa_orc  # not part of every build of pyarrow

        orc = pa_orc.ORCFile(file)
        wanted = [name for name in orc.schema.names if _plain(name) in _NEEDED]
        batches = (orc.read_stripe(number, columns=wanted) for number in range(orc.nstripes))
    else:
        columns = [name.strip() for name in manifest["fileSchema"].split(",")]
        wanted = [name for name in columns if _plain(name) in _NEEDED]
        batches = pa_csv.open_csv(
            pa.CompressedInputStream(pa.PythonFile(file, "r"), "gzip"),
            read_options=pa_csv.ReadOptions(column_names=columns, block_size=_BLOCK_BYTES),
            convert_options=pa_csv.ConvertOptions(
                include_columns=wanted, column_types={name: pa.string() for name in wanted}
            ),
        )
    for batch in batches:
        renamed = batch.rename_columns([_plain(name) for name in batch.schema.names])
        if manifest["fileFormat"] == "CSV":  # only there, keys are encoded as in a URL
            keys = [
                unquote_plus(key) if "%" in key or "+" in key else key for key in renamed["key"].to_pylist()
            ]
            renamed = renamed.set_column(
                renamed.schema.get_field_index("key"), "key", pa.array(keys, pa.string())
            )
        yield renamed


_NEEDED = frozenset({"key", "islatest", "isdeletemarker", "size", "etag"})


def _plain(name: str) -> str:
    """``ETag`` of CSV is ``e_tag`` in Parquet and ORC."""
    return name.replace("_", "").lower()


def _file_batch(table: pa.RecordBatch, bucket: str, exclude: Exclusion, report: ListingReport) -> FileBatch:
    rows = len(table)
    key = table["key"].cast(pa.string())
    names = set(table.schema.names)
    size = sizes(table["size"], "Size") if "size" in names else pa.nulls(rows, pa.int64())
    # "Folders" made in S3's console: empty, and no file can have their name.
    kept = pc.invert(pc.and_(pc.ends_with(key, "/"), pc.equal(pc.fill_null(size, 0), 0)))
    if "islatest" in names:
        kept = pc.and_(kept, pc.not_equal(_lower(table["islatest"]), "false"))
    if "isdeletemarker" in names:
        kept = pc.and_(kept, pc.not_equal(_lower(table["isdeletemarker"]), "true"))
    wanted = pa.array([not exclude(one) for one in key.to_pylist()])
    report.excluded += pc.sum(pc.and_(kept, pc.invert(wanted))).as_py() or 0
    kept = pc.and_(kept, wanted)
    key, size = key.filter(kept), size.filter(kept)
    uri = pc.binary_join_element_wise(pa.scalar(f"s3://{bucket}/"), key, "")
    etag = table["etag"].cast(pa.string()).filter(kept) if "etag" in names else None
    return FileBatch(uri=uri, size=size, version=versions(uri, size, etag, None, report))


def _lower(column: pa.Array) -> pa.Array:
    return pc.utf8_lower(pc.fill_null(column.cast(pa.string()), ""))
