"""List any archive: directory, container, single image or manifest, on any storage."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence

from cxr_ray.archives.batches import FileBatch
from cxr_ray.archives.containers import has_container_name, list_container, recognise
from cxr_ray.archives.directory import walk
from cxr_ray.archives.exclude import DEFAULT_EXCLUDE, Exclusion, ListingReport
from cxr_ray.archives.fetch import FileFacts, facts
from cxr_ray.archives.inputs import ArchiveInput
from cxr_ray.archives.inventory import list_inventory
from cxr_ray.archives.manifest import ManifestOptions, list_manifest
from cxr_ray.archives.manifest_table import open_manifest
from cxr_ray.archives.s3_inventory import is_s3_inventory, list_s3_inventory
from cxr_ray.archives.storage import Storage, explain
from cxr_ray.errors import ArchiveError, ChangedInput, MissingInput, StorageReadError

__all__ = [
    "DEFAULT_EXCLUDE",
    "ListingReport",
    "ManifestOptions",
    "check_access",
    "check_readable",
    "list_archive",
    "list_batches",
]

#: One file may be locked or in cold storage; several at the front hardly are.
_FILES_TO_TRY = 5

MANIFEST_SUFFIXES = (".csv", ".parquet")


def list_archive(
    storage: Storage,
    *,
    exclude: Sequence[str] = DEFAULT_EXCLUDE,
    manifest: ManifestOptions | None = None,
    report: ListingReport | None = None,
) -> Iterator[ArchiveInput]:
    """``list_batches`` as one object per input: for tests and small archives."""
    for found in list_batches(storage, exclude=exclude, manifest=manifest, report=report):
        if isinstance(found, FileBatch):
            yield from found.inputs()
        else:
            yield found


def list_batches(
    storage: Storage,
    *,
    exclude: Sequence[str] = DEFAULT_EXCLUDE,
    manifest: ManifestOptions | None = None,
    report: ListingReport | None = None,
) -> Iterator[ArchiveInput | FileBatch]:
    """Yield every input of the archive, one by one or, from inventories, in batches of plain files.

    The root may be a directory or prefix (walked to the bottom, containers inside it opened), one tar, tar.gz
    or zip (told by its bytes), one image, a manifest (.csv or .parquet; an inventory, where it says sizes and
    versions), or the manifest.json of an S3 Inventory. Inputs of one container come together, in its order. A
    container that breaks off or cannot be opened yields a last input with ``failure`` set. It streams: no more
    than one directory, page, batch or stretch of a container's index is held (of a manifest that is no inventory:
    the columns read). The order depends on names alone; from inventories it is their own, and a row that stands
    there twice comes twice.

    Args:
        exclude: name patterns to leave out, of files and members; see ``exclude.DEFAULT_EXCLUDE``. Neither
            the root itself nor what a manifest names is ever left out; S3 Inventories are no such manifests.
        manifest: how to read a manifest; only for one.
        report: counts what was listed and left out, while this generator is consumed.

    Raises (at the first step, or later where storages fail later):
        ArchiveError: nothing there, no access, a bad manifest, or the archive changes while it is listed.
        StorageReadError: the storage fails midway, after retries.
    """
    report = report if report is not None else ListingReport()
    for found in _list(storage, Exclusion(exclude), manifest, report):
        report.listed += len(found) if isinstance(found, FileBatch) else 1
        yield found


def check_access(storage: Storage) -> FileFacts | None:
    """Return the facts of the root if it is a file, None if it is a directory or prefix.

    Raises ArchiveError, with one sentence, when it is not there or cannot be reached; on S3 within seconds
    when no server answers.
    """
    name = storage.url
    try:
        if storage.protocol == "s3":
            storage.quick_probe()
        if storage.is_local:
            if os.path.isdir(storage.path):
                return None
            if os.path.exists(storage.path) and not os.path.isfile(storage.path):
                raise ArchiveError(f"The archive {name} is neither a file nor a directory.")
        elif storage.fs.info(storage.path).get("type") == "directory":
            return None
        return facts(storage, storage.path)
    except (FileNotFoundError, NotADirectoryError, MissingInput) as error:
        raise ArchiveError(
            f"There is no archive at {name}; give an existing directory, container, image or manifest."
        ) from error
    except (ArchiveError, StorageReadError):
        raise
    except Exception as error:
        # Client packages share no base class; whatever they raise, the root cannot be used.
        raise ArchiveError(
            f"The archive {name} cannot be reached: {explain(error)}; check address, network and credentials."
        ) from error


def check_readable(storage: Storage) -> None:
    """Read one byte of the root, or of one of the first files below it: a right to list is no right to read.

    Raises ArchiveError, as ``check_access``, or when none of the first files can be read.
    """
    if check_access(storage) is not None:
        paths = [storage.path]
    else:
        found = itertools.islice(walk(storage, ListingReport()), _FILES_TO_TRY)
        paths = [file.path for file in found if file.facts is not None and file.facts.size]
    refused: Exception | None = None
    for path in paths:
        try:
            storage.fs.cat_file(path, start=0, end=1)
            return
        except Exception as error:  # storage clients raise what they like; the next file may answer
            refused = error
    if refused is not None:
        raise ArchiveError(
            f"The archive {storage.url} can be listed but not read ({explain(refused)}); "
            "grant read access to its files."
        ) from refused


def _list(
    storage: Storage, exclude: Exclusion, manifest: ManifestOptions | None, report: ListingReport
) -> Iterator[ArchiveInput | FileBatch]:
    root = check_access(storage)
    is_manifest = root is not None and storage.path.lower().endswith(MANIFEST_SUFFIXES)
    if manifest is not None and not is_manifest:
        raise ArchiveError("Manifest options were given, but the archive is no .csv or .parquet file.")
    if is_manifest:
        options = manifest or ManifestOptions()
        with open_manifest(storage, options) as opened:
            is_inventory = opened.is_inventory
        reading = list_inventory if is_inventory else list_manifest
        yield from reading(storage, options, exclude=exclude, report=report)
    elif root is not None and is_s3_inventory(storage.path):
        yield from list_s3_inventory(storage, exclude=exclude, report=report)
    elif root is not None:
        yield from _list_file(storage, storage.path, root, exclude, report, look=True)
    else:
        for found in walk(storage, report):
            if exclude(found.relative):
                report.excluded += 1
            elif found.facts is None:
                yield _missing(storage, found.path)
            else:
                look = has_container_name(found.path)
                yield from _list_file(storage, found.path, found.facts, exclude, report, look=look)


def _list_file(
    storage: Storage,
    path: str,
    known: FileFacts,
    exclude: Exclusion,
    report: ListingReport,
    *,
    look: bool,
) -> Iterator[ArchiveInput]:
    """List one file: its members if it is a container (``look``: find out from its bytes), else itself."""
    try:
        kind = recognise(storage, path, known) if look else "file"
        if kind == "file":
            yield ArchiveInput(uri=storage.uri_of(path), size=known.size, version=known.version)
        else:
            yield from list_container(storage, path, known, kind, exclude=exclude, report=report)
    except MissingInput:
        yield _missing(storage, path)
    except ChangedInput as error:
        raise ArchiveError(
            "A container changed while it was being listed; run again once nothing writes to the archive."
        ) from error


def _missing(storage: Storage, path: str) -> ArchiveInput:
    return ArchiveInput(
        uri=storage.uri_of(path),
        failure=MissingInput.code,
        failure_detail="Listed, but nothing is there: a dead link, or deleted during the listing.",
    )
