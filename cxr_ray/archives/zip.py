"""Zip files: listed from the central directory, members decompressed one at a time."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO, cast

from cxr_ray.archives.inputs import ArchiveInput, readable_name
from cxr_ray.archives.members import Member
from cxr_ray.archives.targz import oversized
from cxr_ray.archives.zip_directory import Directory, Entry, OneMember, entries, find_directory
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
# Entries between two wanted ones are read over up to this distance; beyond it the file is read anew.
_NEAR = 64 << 10


def index_zip(file: BinaryIO) -> Iterator[Member]:
    """Yield the entries of a zip in the order of its central directory, folders left out.

    Encrypted members are listed; reading them fails. A stretch of the directory is held at a time; a member's
    ``offset`` is the place of its entry there.

    Raises:
        ContainerTruncated: no central directory, though the file begins like a zip; or a damaged one, of which
            only the members before the damage are known.
        ContainerUnreadable: no zip.
    """
    directory = _find(file, look=True)
    try:
        for ordinal, entry in enumerate(entries(file, directory)):
            if not entry.name.endswith("/"):
                link = stat.S_ISLNK(entry.attributes >> 16)
                yield Member(entry.name, ordinal, entry.size, entry.place, regular=not link)
    except zipfile.BadZipFile as error:
        raise ContainerTruncated(
            "A damaged place in the directory of the zip; what follows it is lost."
        ) from error


def read_zip(
    file: BinaryIO, wanted: Sequence[ArchiveInput], *, max_bytes: int
) -> Iterator[bytes | InputError]:
    """Yield the bytes of each wanted member (ascending ``ordinal``), or what is wrong with it.

    Of the central directory only the wanted entries are read, where the plan says their places (``offset``).
    A member whose checksum fails, that is encrypted or compressed by an unknown method yields MemberUnreadable.
    Raises OSError and CxrRayErrors of the file itself.
    """
    try:
        directory = _find(file)
    except (ContainerTruncated, ContainerUnreadable):
        for _ in wanted:
            yield ChangedInput("The container is not the one that was planned: it is no readable zip now.")
        return
    # All entries first: on a remote storage, going to and fro between directory and members would cost a request
    # each time.
    for planned, entry in zip(wanted, list(_wanted_entries(file, directory, wanted)), strict=True):
        if entry is None or (readable_name(entry.name), entry.size) != (planned.member, planned.size):
            yield ChangedInput("The container is not the one that was planned: another member stands here.")
        elif entry.size > max_bytes:
            yield oversized(entry.size, max_bytes)
        else:
            yield _read_entry(file, directory, entry)


def _wanted_entries(
    file: BinaryIO, directory: Directory, wanted: Sequence[ArchiveInput]
) -> Iterator[Entry | None]:
    """The directory's entry of each wanted member, None where there is none."""
    walk, place, ordinal = entries(file, directory), directory.end, 0
    for planned in wanted:
        # Plans of earlier versions have no places: then the directory is walked from its start.
        target = planned.offset
        if target is not None and not place <= target <= place + _NEAR:
            walk, place = entries(file, directory, target), target
        found = None
        try:
            for entry in walk:
                here = entry.place == target if target is not None else ordinal == planned.ordinal
                place, ordinal = entry.place + len(entry.raw), ordinal + 1
                if here:
                    found = entry
                    break
                if target is not None and place > target:
                    break
        except zipfile.BadZipFile:  # the next one may still be found by its own place
            walk, place = iter(()), directory.end
        yield found


def _read_entry(file: BinaryIO, directory: Directory, entry: Entry) -> bytes | InputError:
    if entry.flags & _ENCRYPTED:
        return MemberUnreadable("The member of the zip is encrypted.")
    try:
        with zipfile.ZipFile(cast(BinaryIO, OneMember(file, directory, entry))) as archive:
            # zipfile stops at the stated size, so a member that lies about it fails its checksum instead of
            # filling the memory.
            return archive.read(archive.infolist()[0])
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


def _find(file: BinaryIO, *, look: bool = False) -> Directory:
    """Find the directory; with ``look``, also see that it begins with an entry."""
    head = file.read(len(LOCAL_HEADER))
    try:
        directory = find_directory(file)
        if look:
            next(entries(file, directory), None)
    except zipfile.BadZipFile as error:
        if head == LOCAL_HEADER:
            raise ContainerTruncated(
                "The zip has no readable directory at its end: it was cut off, so its members are not known."
            ) from error
        raise ContainerUnreadable("The zip cannot be opened.") from error
    return directory
