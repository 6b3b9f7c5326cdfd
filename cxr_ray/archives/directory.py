"""Walk a directory tree or prefix in the order of its addresses, one directory or page at a time."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cxr_ray.archives import s3
from cxr_ray.archives.exclude import ListingReport
from cxr_ray.archives.fetch import FileFacts, facts_of_info, input_errors, local_facts
from cxr_ray.archives.storage import Storage
from cxr_ray.errors import ArchiveError


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One file of a tree: its path, its path relative to the root, and its facts (None: a dead link)."""

    path: str
    relative: str
    facts: FileFacts | None


def walk(storage: Storage, report: ListingReport) -> Iterator[FoundFile]:
    """Yield every file under the root of ``storage``, sorted by address as a plain string.

    Held in memory: the names of one directory (local disks, most stores) or one page of keys (S3). Links
    to files and directories are followed, except into a directory that is being walked already; a link to
    nothing is yielded without facts. Pipes, sockets and devices are counted in ``report.not_regular``.

    Raises:
        ArchiveError: a directory below the root cannot be read, since its files would vanish silently.
        StorageReadError: the storage failed.
    """
    if storage.is_local:
        yield from _walk_local(storage.path, "", report, ancestors=())
    elif storage.protocol == "s3":
        root = storage.path.rstrip("/") + "/"
        with input_errors():
            for path, size, etag in s3.list_objects(storage.fs, storage.path):
                yield FoundFile(path, path[len(root) :], FileFacts(size, etag))
    else:
        yield from _walk_any(storage, storage.path, "")


def _walk_local(
    directory: str, relative: str, report: ListingReport, ancestors: tuple[tuple[int, int], ...]
) -> Iterator[FoundFile]:
    with _refusing(relative):
        status = os.stat(directory)
        identity = (status.st_dev, status.st_ino)
        if identity in ancestors:  # a link back up: its files are yielded under their own address
            report.not_regular += 1
            return
        with os.scandir(directory) as entries:
            # A directory sorts as "name/", which makes the walk sorted by full address.
            names = sorted(entry.name + "/" if entry.is_dir() else entry.name for entry in entries)
    for name in names:
        if name.endswith("/"):
            subdirectory = os.path.join(directory, name[:-1])
            yield from _walk_local(subdirectory, relative + name, report, (*ancestors, identity))
            continue
        path = os.path.join(directory, name)
        known = None
        with _refusing(relative):
            try:
                status = os.stat(path)
            except OSError as error:
                # A dead link, a link to itself, or deleted since the directory was read.
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
            else:
                if not stat.S_ISREG(status.st_mode):
                    report.not_regular += 1
                    continue
                known = local_facts(status)
        yield FoundFile(path, relative + name, known)


@contextmanager
def _refusing(relative: str) -> Iterator[None]:
    """Say which folder cannot be listed; other failures are the storage's."""
    with input_errors():
        try:
            yield
        except PermissionError as error:
            raise ArchiveError(
                f"No permission to list the archive's folder {relative or '.'!r}; grant it or move it away."
            ) from error
        except FileNotFoundError as error:
            raise ArchiveError(
                "A folder was deleted while the archive was being listed; run again once nothing changes it."
            ) from error


def _walk_any(storage: Storage, directory: str, relative: str) -> Iterator[FoundFile]:
    with input_errors():
        entries = storage.fs.ls(directory, detail=True)
    found = []
    for entry in entries:
        path = entry["name"].rstrip("/")
        name = path.rsplit("/", 1)[-1]
        if path != directory.rstrip("/"):  # some stores list a directory within itself
            found.append((name + "/" if entry["type"] == "directory" else name, path, entry))
    for name, path, entry in sorted(found, key=lambda item: item[0]):
        if name.endswith("/"):
            yield from _walk_any(storage, path, relative + name)
        else:
            yield FoundFile(path, relative + name, facts_of_info(entry))
