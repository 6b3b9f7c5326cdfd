"""Tell containers by their bytes, and list the members of one."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from typing import Literal

from cxr_ray.archives.exclude import Exclusion, ListingReport
from cxr_ray.archives.fetch import FileFacts, input_errors, open_file, read_range
from cxr_ray.archives.inputs import ArchiveInput, Kind
from cxr_ray.archives.members import Member, member_inputs
from cxr_ray.archives.storage import Storage
from cxr_ray.archives.tar import BLOCK, ForwardReader, index_tar
from cxr_ray.archives.targz import index_targz
from cxr_ray.archives.zip import index_zip
from cxr_ray.errors import ContainerUnreadable

# Only these are looked into inside a directory; opening every file of an archive to see what it is would cost
# more than scoring the small ones.
CONTAINER_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")

HEAD = 64 << 10  # compressed bytes that surely hold the first tar header
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_GZIP = b"\x1f\x8b"
_IMAGE = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM", b"GIF8", b"RIFF")

Recognised = Literal["file", "tar", "tar.gz", "zip", "unreadable"]


def has_container_name(path: str) -> bool:
    """Whether a file is worth looking into, judged by its name alone."""
    return path.lower().endswith(CONTAINER_SUFFIXES)


def recognise(storage: Storage, path: str, known: FileFacts) -> Recognised:
    """Return what a file is, from its first bytes: a container, "file", or "unreadable".

    "unreadable" is a file named like a container whose bytes are neither a container nor an image; without
    such a name it is a "file". Raises MissingInput, ChangedInput, StorageReadError.
    """
    head = read_range(storage, path, known.version, 0, min(HEAD, known.size))
    if head.startswith(_ZIP):
        return "zip"
    if _is_tar(head[:BLOCK]):
        return "tar"
    if head.startswith(_GZIP):
        first = _first_block_of_gzip(head)
        if _is_tar(first) or (first == bytes(BLOCK) and has_container_name(path)):
            return "tar.gz"
    if not has_container_name(path):
        return "file"
    if head[:BLOCK] == bytes(BLOCK):  # a tar without any entry
        return "tar"
    if head.startswith(_IMAGE) or head[128:132] == b"DICM":
        return "file"
    # A self-extracting zip begins with a program; zipfile finds the directory at the end of any file.
    return "zip" if path.lower().endswith(".zip") else "unreadable"


def list_container(
    storage: Storage,
    path: str,
    known: FileFacts,
    kind: Recognised,
    *,
    exclude: Exclusion,
    report: ListingReport,
) -> Iterator[ArchiveInput]:
    """Yield one input per member, in the container's order, then at most one for its failure.

    Raises MissingInput or ChangedInput when the container goes or changes meanwhile, StorageReadError.
    """
    report.containers += 1
    uri = storage.uri_of(path)
    with open_file(storage, path, known, prefetch=kind == "tar.gz") as file:
        members: Iterator[Member]
        if kind == "tar":
            members = index_tar(ForwardReader(file, known.size))
        elif kind == "tar.gz":
            members = index_targz(file)
        elif kind == "zip":
            members = index_zip(file)
        else:
            members = _unreadable()
        container_kind: Kind = "tar" if kind in ("file", "unreadable") else kind  # type: ignore[assignment]
        inputs = member_inputs(
            members, uri=uri, kind=container_kind, version=known.version, exclude=exclude, report=report
        )
        while True:
            with input_errors():
                planned = next(inputs, None)
            if planned is None:
                return
            yield planned


def _unreadable() -> Iterator[Member]:
    raise ContainerUnreadable("Named like a container, but its bytes are no tar, tar.gz or zip.")
    yield  # makes this a generator, like its siblings


def _is_tar(block: bytes) -> bool:
    """Whether a block is a tar header: its checksum fits (which also covers tar files without "ustar")."""
    if len(block) < BLOCK or not any(block):
        return False
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return block[257:262] == b"ustar"
    return True


def _first_block_of_gzip(head: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(head)) as stream:
            return stream.read(BLOCK)
    except (OSError, EOFError, ValueError, zlib.error):
        return b""
