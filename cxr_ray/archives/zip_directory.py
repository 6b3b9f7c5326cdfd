"""The central directory of a zip, entry by entry.

zipfile parses and holds a whole directory before it hands out the first entry, about 0.5 kB each: half a gigabyte
for a million members, and again for every unit that reads a thousand of them. Here the directory is walked in
stretches, from its start or from any entry; what is inside a member is still zipfile's business (``OneMember``).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO
from zipfile import BadZipFile

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_END_MARK, _END64_MARK, _LOCATOR64_MARK, _ENTRY_MARK = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2"
_LARGEST_COMMENT = 0xFFFF
_LARGEST_ENTRY = _ENTRY.size + 3 * 0xFFFF
_STRETCH = 256 << 10
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_UTF8_NAME = 0x800
_SIZES_EXTRA = 1  # zip64: sizes and places of more than 4 GiB


@dataclass(frozen=True, slots=True)
class Directory:
    """Where the directory lies: from ``start`` to ``end``; ``shift`` is the length of what stands before the zip
    (a self-extracting one begins with a program), which its own positions do not count."""

    start: int
    end: int
    shift: int


@dataclass(slots=True)
class Entry:
    """One entry: its place in the file, its bytes there, and what listing needs of them."""

    place: int
    raw: bytes
    name: str
    size: int
    flags: int
    attributes: int


def find_directory(file: BinaryIO) -> Directory:
    """Find the directory from the record at the end of the file, as zipfile does.

    Raises BadZipFile.
    """
    length = file.seek(0, io.SEEK_END)
    file.seek(max(length - _END.size - _LARGEST_COMMENT - _LOCATOR64.size - _END64.size, 0))
    tail_start = file.tell()
    tail = file.read(length - tail_start)
    at = tail.rfind(_END_MARK, max(len(tail) - _END.size - _LARGEST_COMMENT, 0))
    if tail[-_END.size : -_END.size + 4] == _END_MARK and tail[-2:] == b"\0\0":  # no comment
        at = len(tail) - _END.size
    if at < 0 or at + _END.size > len(tail):
        raise BadZipFile("no end record")
    _, _, _, _, _, size, offset, _ = _END.unpack_from(tail, at)
    end = tail_start + at
    at64 = at - _LOCATOR64.size - _END64.size
    if (
        at64 >= 0
        and tail.startswith(_LOCATOR64_MARK, at - _LOCATOR64.size)
        and tail.startswith(_END64_MARK, at64)
    ):
        size, offset = _END64.unpack_from(tail, at64)[-2:]
        end = tail_start + at64
    shift = end - size - offset
    if end - size < 0 or offset < 0:
        raise BadZipFile("the directory begins before the file")
    return Directory(end - size, end, shift)


def entries(file: BinaryIO, directory: Directory, place: int | None = None) -> Iterator[Entry]:
    """Yield the entries from ``place`` (default: the first) on. The file may be read elsewhere in between.

    Raises BadZipFile where an entry is damaged.
    """
    place = directory.start if place is None else place
    stretch, at = b"", 0
    while place < directory.end:
        if len(stretch) - at < _LARGEST_ENTRY and place + len(stretch) - at < directory.end:
            follows = place + len(stretch) - at
            file.seek(follows)
            stretch = stretch[at:] + file.read(min(_STRETCH, directory.end - follows))
            at = 0
        if len(stretch) - at < _ENTRY.size:
            raise BadZipFile("the directory breaks off")
        fields = _ENTRY.unpack_from(stretch, at)
        if fields[0] != _ENTRY_MARK:
            raise BadZipFile("no entry where one should be")
        flags, size, name_length, extra_length = fields[3], fields[9], fields[10], fields[11]
        length = _ENTRY.size + name_length + extra_length + fields[12]
        raw = stretch[at : at + length]
        if len(raw) < length:
            raise BadZipFile("the directory breaks off")
        extra_at = _ENTRY.size + name_length
        if size == _FULL32:
            size = _large_size(raw[extra_at : extra_at + extra_length])
        try:
            name = raw[_ENTRY.size : extra_at].decode("utf-8" if flags & _UTF8_NAME else "cp437")
        except UnicodeDecodeError as error:
            raise BadZipFile("a name that is no UTF-8") from error
        yield Entry(place, raw, name.partition("\0")[0], size, flags, fields[15])
        place += length
        at += length


def _large_size(extra: bytes) -> int:
    """The size in a zip64 extra field: the first of its numbers."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == _SIZES_EXTRA and 8 <= length <= len(extra) - 4:
            return int(struct.unpack_from("<Q", extra, 4)[0])
        extra = extra[4 + length :]
    raise BadZipFile("a size of more than 4 GiB is missing")


class OneMember(io.RawIOBase):
    """The zip as if it had one member only: its own bytes up to the directory, then a directory of one entry.

    zipfile opens that in an instant, and makes all its checks when it reads the member.
    """

    def __init__(self, file: BinaryIO, directory: Directory, entry: Entry) -> None:
        self._file, self._start, self._position = file, directory.start, 0
        offset = directory.start - directory.shift
        tail = entry.raw
        if offset >= _FULL32:
            place = offset + len(entry.raw)
            end64 = (_END64_MARK, _END64.size - 12, 45, 45, 0, 0, 1, 1, len(entry.raw), offset)
            tail += _END64.pack(*end64) + _LOCATOR64.pack(_LOCATOR64_MARK, 0, place, 1)
        tail += _END.pack(_END_MARK, 0, 0, 1, 1, len(entry.raw), min(offset, _FULL32), 0)
        self._tail = tail

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        length = self._start + len(self._tail)
        self._position = max(
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: length}[whence], 0
        )
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        length = self._start + len(self._tail)
        size = length if size is None or size < 0 else size
        data = b""
        if self._position < self._start:
            self._file.seek(self._position)
            data = self._file.read(min(size, self._start - self._position))
        if self._position + len(data) >= self._start:
            at = self._position + len(data) - self._start
            data += self._tail[at : at + size - len(data)]
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
