"""Create-only publication on a file tree of this machine, NFS mounts included: write aside, fsync, hard link.

A link either takes the name or fails, on every file system that has links. Another driver may tidy the staging
folder at any moment (``sweep``): whoever finds its staged file gone stages it again.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

#: A swept file or an emptied folder; on NFS also a folder that was made anew under a handle still held.
_TAKEN_AWAY: Final = {errno.ENOENT, errno.ESTALE}
_TRIES: Final = 5
_COPY_BYTES: Final = 4 * 2**20

#: What a file system without hard links answers: EOPNOTSUPP, EPERM (FAT, some FUSE), ENOSYS.
NO_LINKS: Final = {errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS}


def create_by_link(staging: Path, target: Path, data: bytes) -> bool:
    """Create ``target`` with ``data``. True: created by us. False: the name was taken, and is unchanged."""
    return _staged(staging, target, data, _link)


def create_by_rename(staging: Path, target: Path, data: bytes) -> bool:
    """The same for one writer only: looks first and renames then, so that two writers may both believe to win."""
    return False if target.exists() else _staged(staging, target, data, _rename)


def replace_file(staging: Path, target: Path, data: bytes) -> None:
    """Put ``data`` under ``target`` in one step, whatever was there."""
    _staged(staging, target, data, _rename)


def copy_file(staging: Path, target: Path, source: Path) -> None:
    """The same as ``replace_file`` with the content of a file, of any size."""
    _staged(staging, target, source, _rename)


def _staged(
    staging: Path, target: Path, data: bytes | Path, finish: Callable[[Path, Path, int], bool]
) -> bool:
    for tries_left in reversed(range(_TRIES)):
        try:
            return _once(staging, target, data, finish)
        except OSError as error:
            if error.errno not in _TAKEN_AWAY or not tries_left:
                raise
    raise AssertionError("the last try returns or raises")


def _once(staging: Path, target: Path, data: bytes | Path, finish: Callable[[Path, Path, int], bool]) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True)
    staging.mkdir(parents=True, exist_ok=True)
    staged = staging / uuid.uuid4().hex
    try:
        with open(staged, "wb") as handle:
            if isinstance(data, Path):
                with open(data, "rb") as source:
                    shutil.copyfileobj(source, handle, _COPY_BYTES)
            else:
                handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
            done = finish(staged, target, handle.fileno())
        if done:
            _fsync_folder(target.parent)
        return done
    finally:
        with suppress(FileNotFoundError):
            os.unlink(staged)


def _link(staged: Path, target: Path, handle: int) -> bool:
    try:
        os.link(staged, target)
    except FileExistsError:
        # NFS may report EEXIST for a link that an earlier, unanswered try has made. The handle is asked, not the
        # staged name: that one may have been swept.
        ours, theirs = os.fstat(handle), os.stat(target)
        return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
    return True


def _rename(staged: Path, target: Path, handle: int) -> bool:
    os.replace(staged, target)
    return True


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
