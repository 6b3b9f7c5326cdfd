"""Zip files: listed from the central directory, members decompressed one at a time."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from cxr_ray.archives.inputs import ArchiveInput, readable_name
from cxr_ray.archives.members import Member
from cxr_ray.archives.targz import oversized
from cxr_ray.errors import (
    ChangedInput,
    ContainerTruncated,
    ContainerUnreadable,
    CxrRayError,
    InputError,
    MemberUnreadable,
)

LOCAL_HEADER = b"PK\x03\x04"
_ENCRYPTED = 0x1


def index_zip(file: BinaryIO) -> Iterator[Member]:
    """Yield the entries of a zip in the order of its central directory, folders left out.

    Encrypted members are listed; reading them fails. zipfile holds the whole directory (0.5 kB an entry).

    Raises:
        ContainerTruncated: no central directory, though the file begins like a zip.
        ContainerUnreadable: no zip, or a damaged central directory.
    """
    for ordinal, entry in enumerate(_open(file).infolist()):
        if not entry.is_dir():
            link = stat.S_ISLNK(entry.external_attr >> 16)
            yield Member(entry.filename, ordinal, entry.file_size, regular=not link)


def read_zip(
    file: BinaryIO, wanted: Sequence[ArchiveInput], *, max_bytes: int
) -> Iterator[bytes | InputError]:
    """Yield the bytes of each wanted member (ascending ``ordinal``), or what is wrong with it.

    The central directory is read once. A member whose checksum fails, that is encrypted or compressed by an
    unknown method yields MemberUnreadable. Raises OSError and CxrRayErrors of the file itself.
    """
    try:
        archive = _open(file)
    except (ContainerTruncated, ContainerUnreadable):
        for _ in wanted:
            yield ChangedInput("The container is not the one that was planned: it is no readable zip now.")
        return
    entries = archive.infolist()
    for planned in wanted:
        entry = entries[planned.ordinal] if planned.ordinal < len(entries) else None
        if entry is None or (readable_name(entry.filename), entry.file_size) != (
            planned.member,
            planned.size,
        ):
            yield ChangedInput("The container is not the one that was planned: another member stands here.")
        elif entry.file_size > max_bytes:
            yield oversized(entry.file_size, max_bytes)
        else:
            yield _read_entry(archive, entry)


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes | InputError:
    if entry.flag_bits & _ENCRYPTED:
        return MemberUnreadable("The member of the zip is encrypted.")
    try:
        # zipfile stops at the stated size, so a member that lies about it fails its checksum instead of
        # filling the memory.
        return archive.read(entry)
    except CxrRayError:
        raise
    except NotImplementedError:
        return MemberUnreadable("The member of the zip is compressed by a method that is not supported.")
    except Exception as error:
        # zipfile, zlib, bz2 and lzma each raise classes of their own for damaged data; only an OSError with a
        # number comes from the disk.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return MemberUnreadable("The member of the zip is damaged: it cannot be decompressed.")


def _open(file: BinaryIO) -> zipfile.ZipFile:
    head = file.read(len(LOCAL_HEADER))
    try:
        return zipfile.ZipFile(file)
    except CxrRayError:
        raise
    except Exception as error:  # BadZipFile, but also ValueError or struct.error for a damaged directory
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if head == LOCAL_HEADER:
            raise ContainerTruncated(
                "The zip has no readable directory at its end: it was cut off, so its members are not known."
            ) from error
        raise ContainerUnreadable("The zip cannot be opened.") from error
