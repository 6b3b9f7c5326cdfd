"""Tar files: an index made from the headers alone.

tarfile parses the headers (ustar, GNU and pax names). Around it: reads that only go forward, so the same
index serves a compressed stream; a bound on what a header may ask for; and the end of the file judged
strictly, since tarfile takes a damaged header in the middle for the end of the archive.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from cxr_ray.archives.members import Member
from cxr_ray.errors import ContainerTruncated, ContainerUnreadable, CxrRayError

BLOCK = tarfile.BLOCKSIZE
_LARGEST_HEADER = 16 << 20  # a pax or long-name header; real ones have some hundred bytes
_SKIP_CHUNK = 1 << 20


class ForwardReader:
    """A binary file read front to back: what tarfile needs, with no way back and no unbounded header.

    Args:
        file: any binary file at position 0.
        length: its length in bytes, if it is seekable; None for a stream, which is then read through.
    """

    def __init__(self, file: BinaryIO, length: int | None) -> None:
        self._file, self._length = file, length
        self._position = 0
        self.last_header = b""

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int) -> int:
        """Go forward to ``offset``, or to the end of the file where that comes first."""
        if offset < self._position:
            raise ContainerTruncated("A damaged entry of the tar points back before itself.")
        if self._length is not None:
            self._position = self._file.seek(min(offset, self._length))
            return self._position
        while self._position < offset:
            chunk = self._file.read(min(_SKIP_CHUNK, offset - self._position))
            if not chunk:
                break
            self._position += len(chunk)
        return self._position

    def reaches(self, offset: int) -> bool:
        """Whether the file has at least ``offset`` bytes; a stream is read that far to find out."""
        return offset <= self._length if self._length is not None else self.seek(offset) == offset

    def read(self, size: int) -> bytes:
        """Read a header. Raises ContainerTruncated for a size no sound header has."""
        if not 0 <= size <= _LARGEST_HEADER:
            raise ContainerTruncated("A damaged entry of the tar states an impossible header size.")
        self.last_header = self.read_data(size)
        return self.last_header

    def read_data(self, size: int) -> bytes:
        """``read`` without the bound, for the data of a member whose size the caller has checked."""
        data = self._file.read(size)
        self._position += len(data)
        return data


def index_tar(reader: ForwardReader, *, whole: bool = True) -> Iterator[Member]:
    """Yield the entries of a tar in order, directories left out.

    With ``whole``, an entry is yielded once all its data is known to be there; a stream has then been read
    to the end of it. Without, the reader stands at the first byte of its data, and the caller may read on
    up to its end.

    Raises:
        ContainerUnreadable: no valid first header.
        ContainerTruncated: the file ends inside an entry or without end marker, or a header is damaged.
        OSError: the disk failed. CxrRayError: as the file's own reads raise it.
    """
    try:
        yield from _entries(reader, whole)
    except CxrRayError:
        raise
    except EOFError as error:
        raise ContainerTruncated("The compressed tar breaks off; what follows the break is lost.") from error
    except Exception as error:
        # tarfile raises ReadError, but also ValueError, KeyError or RecursionError from deep inside a damaged
        # header, gzip its own; only an OSError with a number comes from the disk.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if reader.tell() <= BLOCK:
            raise ContainerUnreadable("The tar cannot be opened: its beginning is damaged.") from error
        raise ContainerTruncated("A damaged place in the tar; what follows it is lost.") from error


def _entries(reader: ForwardReader, whole: bool) -> Iterator[Member]:
    archive = tarfile.TarFile(fileobj=reader, mode="r")  # type: ignore[arg-type]
    ordinal = 0
    while (entry := archive.next()) is not None:
        # tarfile keeps every entry it has seen; a million of them would take a gigabyte.
        archive.members.clear()  # type: ignore[attr-defined]
        regular = entry.isreg() and not entry.issparse()
        size = entry.size if regular else 0
        if size < 0:
            raise ContainerTruncated("A damaged entry of the tar states a negative size.")
        if whole and not reader.reaches(entry.offset_data + size):
            raise ContainerTruncated("The tar breaks off inside an entry; it and what follows are lost.")
        if not entry.isdir():
            yield Member(entry.name, ordinal, size, entry.offset_data, regular)
        ordinal += 1
    # tarfile ends at anything that is no header; only a block of zeros is the end of a sound tar.
    if len(reader.last_header) < BLOCK:
        raise ContainerTruncated("The tar ends without its end marker; entries may be missing.")
    if any(reader.last_header):
        raise ContainerTruncated("A damaged header in the tar; what follows it is lost.")
