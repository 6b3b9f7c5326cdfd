"""Inventories: manifests that say size and version of every file, so that none has to be asked for.

They are read in batches, in their own order, and never held whole.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cxr_ray.archives.addresses import manifest_addresses
from cxr_ray.archives.batches import FileBatch
from cxr_ray.archives.containers import CONTAINER_SUFFIXES
from cxr_ray.archives.exclude import Exclusion, ListingReport
from cxr_ray.archives.inputs import ArchiveInput
from cxr_ray.archives.manifest_table import SAID, ManifestOptions, ManifestRow, open_manifest
from cxr_ray.archives.members_of_rows import list_members
from cxr_ray.archives.storage import Storage
from cxr_ray.errors import ArchiveError

_CONTAINER = "(?i)(" + "|".join(re.escape(suffix) for suffix in CONTAINER_SUFFIXES) + ")$"
_ETAG = r"^[0-9a-fA-F]{32}(-[0-9]+)?$"


def list_inventory(
    storage: Storage, options: ManifestOptions, *, exclude: Exclusion, report: ListingReport
) -> Iterator[ArchiveInput | FileBatch]:
    """Yield the files that a manifest with sizes and versions names, in its order, and the members of the
    containers among them.

    Plain files are taken at the manifest's word; only containers are opened. Files that are gone or changed
    by the time they are read become rows then.

    Raises ArchiveError for a manifest that cannot be read, StorageReadError when a storage fails.
    """
    addresses = manifest_addresses(storage, options.root)
    with open_manifest(storage, options) as manifest:
        ours = manifest.ours
        for table in manifest.batches():
            uri = addresses.canonical(_text(table.column(ours["uri"])))
            there = pc.is_valid(uri)
            if not pc.all(there).as_py():
                report.rows_without_uri += len(uri) - (pc.sum(there).as_py() or 0)
                table, uri = table.filter(there), uri.filter(there)
            size = sizes(table.column(ours["size"]), ours["size"])
            etag = _text(table.column(ours["etag"])) if "etag" in ours else None
            modified = _text(table.column(ours["modified"])) if "modified" in ours else None
            batch = FileBatch(
                uri=uri,
                size=size,
                version=versions(uri, size, etag, modified, report),
                said={name: _said(table.column(ours[name])) for name in SAID if name in ours},
                carry={name: _said(table.column(name)) for name in options.carry},
            )
            yield from with_containers_opened(batch, storage, exclude, report)


def with_containers_opened(
    batch: FileBatch, storage: Storage, exclude: Exclusion, report: ListingReport
) -> Iterator[ArchiveInput | FileBatch]:
    """Yield the batch in its order, where a container's place is taken by its members."""
    start = 0
    named_so = pc.match_substring_regex(batch.uri, _CONTAINER)
    for place in np.flatnonzero(named_so.to_numpy(zero_copy_only=False)).tolist():
        if place > start:
            yield batch.slice(start, place)
        (container,) = batch.slice(place, place + 1).inputs()
        said = {name: getattr(container, name) for name in (*SAID, "carry")}
        row = ManifestRow(container.uri, None, said)
        yield from list_members(_storage_of(container.uri, storage), [row], exclude, report)
        start = place + 1
    if start < len(batch):
        yield batch.slice(start, len(batch)) if start else batch


def versions(
    uri: pa.Array, size: pa.Array, etag: pa.Array | None, modified: pa.Array | None, report: ListingReport
) -> pa.Array:
    """The versions that reading compares (string), as exact as the inventory allows.

    On S3 the ETag, on local disks size and time of modification. Where the inventory has neither, or on another
    storage, ``size=N`` (with ``time=SECONDS``, where a local time has no nanoseconds): then only these are
    compared, and the rows are counted in ``report.loose_versions``. Null (nothing is compared) without size.
    """
    loose = pc.binary_join_element_wise(pa.scalar("size="), size.cast(pa.string()), "")
    version = loose
    if modified is not None:
        is_local = pc.starts_with(uri, "file://")
        if pc.any(is_local).as_py():
            rows = zip(is_local.to_pylist(), size.to_pylist(), modified.to_pylist(), strict=True)
            local = [_local_version(size, text) if is_local else None for is_local, size, text in rows]
            version = pc.coalesce(pa.array(local, pa.string()), version)
    if etag is not None:
        plain = pc.utf8_trim(etag, '" ')
        usable = pc.and_(pc.starts_with(uri, "s3://"), pc.match_substring_regex(plain, _ETAG))
        version = pc.if_else(pc.fill_null(usable, False), plain, version)
    is_loose = pc.fill_null(pc.starts_with(version, "size="), True)
    report.loose_versions += pc.sum(is_loose).as_py() or 0
    return version


def sizes(column: pa.Array, name: str) -> pa.Array:
    """Sizes in bytes (int64) from text or numbers.

    Raises:
        ArchiveError: something else stands there.
    """
    try:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            trimmed = pc.utf8_trim_whitespace(column)
            column = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, trimmed.type), trimmed)
        found = column.cast(pa.int64())
        if pc.any(pc.less(found, 0)).as_py():
            raise ValueError
    except (pa.ArrowException, ValueError) as error:
        raise ArchiveError(
            f"The manifest's column {name!r} must hold whole numbers of bytes; if it means something else, pass "
            "manifest.inventory=false."
        ) from error
    return found


def _local_version(size: int | None, text: str | None) -> str | None:
    seconds, nanoseconds = moment(text)
    if size is None or seconds is None:
        return None
    return f"{size}-{nanoseconds}" if nanoseconds is not None else f"size={size} time={seconds}"


def moment(text: str | None) -> tuple[int | None, int | None]:
    """Seconds since 1970, and nanoseconds where the text is that exact: (None, None) for what is no time.

    Understood: ISO 8601 (UTC without offset); numbers of seconds, with nine decimals or more exact; whole
    milliseconds, microseconds and (exact) nanoseconds, told by their length.
    """
    text = (text or "").strip()
    if re.fullmatch(r"\d{8,20}", text):
        unit = 10 ** (9 - 3 * min(max((len(text) - 9) // 3, 0), 3))
        nanoseconds = int(text) * unit
        return nanoseconds // 10**9, nanoseconds if unit == 1 else None
    if re.fullmatch(r"\d{8,11}\.\d+", text):
        decimals = len(text) - text.index(".") - 1
        nanoseconds = int(Decimal(text) * 10**9)
        return nanoseconds // 10**9, nanoseconds if decimals >= 9 else None
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None, None
    if found.tzinfo is None:
        found = found.replace(tzinfo=datetime.UTC)
    return int(found.timestamp() // 1), None


def _text(column: pa.Array) -> pa.Array:
    return column if pa.types.is_string(column.type) else column.cast(pa.string())


def _said(column: pa.Array) -> pa.Array:
    text = _text(column)
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _storage_of(uri: str, storage: Storage) -> Storage:
    return storage if uri.split("://")[0] == storage.protocol else storage.at(uri)
