"""Facts and bytes of one stored file, with one vocabulary of errors for all storages.

Not there is ``MissingInput``, another version than planned is ``ChangedInput``: both belong to the input.
Anything else (network, server error, access denied) is ``StorageReadError``: it belongs to the storage, is
raised, and must never turn into rows.
"""

from __future__ import annotations

import datetime
import errno
import io
import os
import re
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from cxr_ray.archives import s3
from cxr_ray.archives.storage import Storage, explain
from cxr_ray.errors import AccessDenied, ChangedInput, CxrRayError, MissingInput, StorageReadError

# At 100 MB/s and 50 ms a request, reading on through 4 MiB costs as much as a new request: a nearer place is
# reached by reading on, a farther one by a small request of its own.
WINDOW = 4 << 20
FIRST_WINDOW = 64 << 10
_LOOSE = re.compile(r"size=(\d+)(?: time=(\d+))?")
_VERSION_KEYS = ("ETag", "etag", "generation", "md5Hash", "checksum")
_TIME_KEYS = ("mtime", "last_modified", "LastModified", "updated", "modified", "created")


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Encoded size in bytes, a version that differs whenever the content may, and the time of modification in
    whole seconds since 1970 where it is known."""

    size: int
    version: str
    seconds: int | None = None

    def is_version(self, planned: str | None) -> bool:
        """Whether this is the file that was planned with this version.

        ``size=N`` and ``size=N time=SECONDS``, of inventories that do not say more, are compared as far as they
        go; None is any version.
        """
        if planned is None or planned == self.version:
            return True
        loose = _LOOSE.fullmatch(planned)
        if loose is None or int(loose[1]) != self.size:
            return False
        return loose[2] is None or self.seconds is None or int(loose[2]) == self.seconds


@contextmanager
def input_errors() -> Iterator[None]:
    """Turn what filesystems raise into MissingInput, ChangedInput or StorageReadError."""
    try:
        yield
    except CxrRayError:
        raise
    except s3.VersionMismatchError as error:
        raise ChangedInput("The file is not the one that was planned: its ETag differs.") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        if s3.error_code(error) == "NoSuchBucket":
            raise StorageReadError("The bucket of the archive is not there.") from error
        raise MissingInput("The file was planned but is not there any more.") from error
    except IsADirectoryError as error:
        raise ChangedInput("A directory is where the planned file was.") from error
    except Exception as error:
        if s3.error_code(error) == "InvalidObjectState":
            raise AccessDenied("The object is in cold storage; restore it to read it.") from error
        # Filesystem packages share no base class for "the network failed"; whatever is none of the cases
        # above must not be blamed on the input.
        raise StorageReadError(f"The archive cannot be read: {explain(error)}.") from error


def facts(storage: Storage, path: str) -> FileFacts:
    """Size and version of a file, with one request; what is no regular file is MissingInput.

    Raises MissingInput, StorageReadError.
    """
    with input_errors():
        if storage.is_local:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):  # reading a pipe would never end
                raise FileNotFoundError(errno.ENOENT, "no regular file")
            return local_facts(status)
        if storage.protocol == "s3":
            return FileFacts(*s3.head_object(storage.fs, path))
        info = storage.fs.info(path)
        if info.get("type") == "directory":
            raise FileNotFoundError(errno.ENOENT, "a directory, not a file")
        return facts_of_info(info)


def facts_of_info(info: Mapping[str, Any]) -> FileFacts:
    """Facts from an fsspec ``info`` dictionary: ETag, else size and time of modification."""
    size = int(info.get("size") or 0)
    for key in _VERSION_KEYS:
        if info.get(key):
            return FileFacts(size, str(info[key]).strip('"'))
    moment = next((info[key] for key in _TIME_KEYS if info.get(key)), 0)
    if isinstance(moment, datetime.datetime):
        moment = moment.timestamp()
    nanoseconds = int(float(moment) * 1e9) if isinstance(moment, (int, float)) else moment
    return FileFacts(size, f"{size}-{nanoseconds}")


def local_facts(status: os.stat_result) -> FileFacts:
    seconds = status.st_mtime_ns // 10**9
    return FileFacts(status.st_size, f"{status.st_size}-{status.st_mtime_ns}", seconds)


def check_version(storage: Storage, path: str, version: str | None) -> FileFacts:
    """Return the facts of a file; raises ChangedInput unless its version is ``version`` (None: any)."""
    now = facts(storage, path)
    if not now.is_version(version):
        raise ChangedInput("The file is not the one that was planned: size or time of change differ.")
    return now


def read_whole(storage: Storage, path: str, version: str | None, size: int | None = None) -> bytes:
    """Return all bytes of a file if it still has ``version`` (and ``size``, where given); S3 and local disks: one
    request, two on S3 for a version that is only a size.

    Raises MissingInput, ChangedInput, StorageReadError.
    """
    with input_errors():
        if storage.is_local:
            before = check_version(storage, path, version)
            with _openable(path) as file:
                data = file.read()
                after = local_facts(os.fstat(file.fileno()))
            if before != after or len(data) != after.size:
                raise ChangedInput("The file changed while it was being read.")
            return data
        if storage.protocol == "s3":
            if version is not None and _LOOSE.fullmatch(version):
                version = check_version(storage, path, version).version
            return s3.get_object(storage.fs, path, etag=version, size=size)
        check_version(storage, path, version)
        return bytes(storage.fs.cat_file(path))


def _openable(path: str) -> BinaryIO:
    """Open a file that is there (its status was read): a refusal now is this file's own."""
    try:
        return open(path, "rb")
    except PermissionError as error:
        raise AccessDenied("The account that runs the job may not read this file.") from error


def read_range(storage: Storage, path: str, version: str | None, start: int, end: int) -> bytes:
    """Return bytes start..end-1. On S3 the version is checked by the request itself, elsewhere by the caller.

    Raises MissingInput, ChangedInput (also when the file ends before ``end``), StorageReadError.
    """
    if end <= start:
        return b""
    with input_errors():
        if storage.is_local:
            with open(path, "rb") as file:
                file.seek(start)
                data = file.read(end - start)
        elif storage.protocol == "s3":
            data = s3.get_object(storage.fs, path, etag=version, start=start, end=end)
        else:
            data = bytes(storage.fs.cat_file(path, start=start, end=end))
    if len(data) != end - start:
        raise ChangedInput("The file is shorter than it was when it was planned.")
    return data


def open_file(storage: Storage, path: str, known: FileFacts, *, prefetch: bool = False) -> BinaryIO:
    """Return a seekable binary file that stays with one version: local file, or ``RangeFile``.

    ``prefetch`` fetches the next window while the caller works on this one: for reading front to back.
    """
    if storage.is_local:
        with input_errors():
            return open(path, "rb", buffering=1 << 20 if prefetch else -1)
    return RangeFile(storage, path, known, prefetch=prefetch)  # type: ignore[return-value]


class RangeFile(io.RawIOBase):
    """A remote file read by ranges, one window in memory (two with prefetch).

    The window grows while reading goes forward and is small again after a far jump. ``read(n)`` returns n
    bytes unless the file ends, so that zipfile, tarfile and gzip can sit on it.
    """

    def __init__(self, storage: Storage, path: str, known: FileFacts, *, prefetch: bool = False) -> None:
        self._storage, self._path, self._known = storage, path, known
        self._position = 0
        self._window_start, self._window = 0, b""
        self._window_size = WINDOW if prefetch else min(FIRST_WINDOW, WINDOW)
        self._pool = ThreadPoolExecutor(1, "range-prefetch") if prefetch else None
        self._ahead: tuple[int, Future[bytes]] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._known.size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "seek before the start of the file")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(self._known.size - self._position, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        pieces = []
        while wanted:
            if not self._window_start <= self._position < self._window_start + len(self._window):
                self._load(wanted)
            begin = self._position - self._window_start
            piece = self._window[begin : begin + wanted]
            pieces.append(piece)
            self._position += len(piece)
            wanted -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        self._window = b""
        super().close()

    def _load(self, wanted: int) -> None:
        start, reached = self._position, self._window_start + len(self._window)
        if self._pool is None and reached:
            near = 0 <= start - reached <= WINDOW
            self._window_size = min(self._window_size * 2 if near else FIRST_WINDOW, WINDOW)
        self._window = b""
        if self._ahead is not None and self._ahead[0] == start:
            data = self._ahead[1].result()
        else:
            data = self._fetch(start, min(start + max(wanted, self._window_size), self._known.size))
        self._window_start, self._window, self._ahead = start, data, None
        following = start + len(data)
        if self._pool is not None and following < self._known.size:
            end = min(following + WINDOW, self._known.size)
            self._ahead = following, self._pool.submit(self._fetch, following, end)

    def _fetch(self, start: int, end: int) -> bytes:
        return read_range(self._storage, self._path, self._known.version, start, end)
