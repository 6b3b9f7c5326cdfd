"""Create-only publication: the one step that makes a file part of OUTPUT (DESIGN promise 3).

A published name is written once and never changed. Which primitive guarantees that depends on the store:

* local and NFS: write under ``OUTPUT/staging``, fsync, ``os.link`` to the final name, fsync the folder;
* object stores: one PUT with the precondition that the name does not exist (``If-None-Match: *``);
* ``fencing=single_writer``: a plain PUT or rename for stores that have neither; one driver at a time.

Every run probes the store by publishing one name twice; a store that accepts the second is refused.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from cxr_ray.archives.storage import Storage, explain
from cxr_ray.errors import OutputError

CREATE_ONLY = "create_only"
SINGLE_WRITER = "single_writer"
FENCING = (CREATE_ONLY, SINGLE_WRITER)

STAGING_FOLDER = "staging"

_REFUSED = (
    "OUTPUT {url} does not keep the promise that a name is created only once ({why}); use a store that does "
    "(a local or NFS folder with hard links, or S3), or pass fencing=single_writer and start one driver at a time"
)


class Publisher:
    """Publishes bytes under names relative to one folder.

    Args:
        storage: the folder (OUTPUT, or ``plan_dir``).
        fencing: ``create_only`` (default) or ``single_writer``.
    """

    def __init__(self, storage: Storage, fencing: str = CREATE_ONLY) -> None:
        if fencing not in FENCING:
            raise OutputError(f"fencing must be one of {', '.join(FENCING)}, not {fencing!r}")
        self.storage = storage
        self.fencing = fencing

    def path(self, name: str) -> str:
        """Path of ``name`` inside the folder, as the filesystem wants it."""
        return f"{self.storage.path.rstrip('/')}/{name}"

    @property
    def is_local(self) -> bool:
        """Whether the folder lies in this machine's file tree, NFS mounts included."""
        return self.storage.is_local

    # -- reading ------------------------------------------------------------------------------------

    def read(self, name: str) -> bytes | None:
        """Content of ``name``, or None where it does not exist."""
        try:
            return self.storage.fs.cat_file(self.path(name))
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """Names of the files directly in ``folder``, sorted; empty where there is no such folder."""
        fs = self.storage.fs
        fs.invalidate_cache()
        try:
            entries = fs.ls(self.path(folder), detail=True)
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file")

    def is_empty(self) -> bool:
        """True where the folder does not exist or holds nothing but staging left-overs."""
        fs = self.storage.fs
        fs.invalidate_cache()
        try:
            entries = fs.ls(self.storage.path, detail=False)
        except FileNotFoundError:
            return True
        except NotADirectoryError:
            return False
        own = self.storage.path.rstrip("/")
        names = {entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry.rstrip("/") != own}
        return names <= {STAGING_FOLDER}

    # -- writing ------------------------------------------------------------------------------------

    def publish(self, name: str, data: bytes) -> bool:
        """Create ``name`` with ``data``. True: created by us. False: it exists already, unchanged."""
        if self.is_local:
            return self._publish_local(name, data)
        if self.fencing == SINGLE_WRITER:
            if self.storage.fs.exists(self.path(name)):
                return False
            self.storage.fs.pipe_file(self.path(name), data)
            return True
        for pause in (*_CONFLICT_PAUSES, None):
            try:
                self.storage.fs.pipe_file(self.path(name), data, mode="create")
                return True
            except FileExistsError:
                return False
            except OSError as error:
                code = server_code(error)
                if code in _EXISTS_CODES:
                    return False
                if code not in _CONFLICT_CODES or pause is None:
                    raise
                time.sleep(pause)  # two conditional PUTs met; S3 asks to try again
        raise AssertionError("the last try returns or raises")

    def replace(self, name: str, data: bytes) -> None:
        """Write a derived file (``run.json``) that readers must never take for the truth."""
        if not self.is_local:
            self.storage.fs.pipe_file(self.path(name), data)
            return
        staged = self._stage(data)
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged, target)

    def _stage(self, data: bytes) -> Path:
        staged = Path(self.path(STAGING_FOLDER)) / uuid.uuid4().hex
        for last in (False, False, True):
            staged.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(staged, "wb") as handle:
                    handle.write(data)
                    handle.flush()
                    os.fsync(handle.fileno())
                break
            except FileNotFoundError:  # a driver that was refused tidied the empty folder away
                if last:
                    raise
        return staged

    def _publish_local(self, name: str, data: bytes) -> bool:
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = self._stage(data)
        try:
            if self.fencing == SINGLE_WRITER:
                if target.exists():
                    return False
                os.rename(staged, target)
            else:
                try:
                    os.link(staged, target)
                except FileExistsError:
                    # NFS may report EEXIST for a link that an earlier, unanswered try has made.
                    return os.stat(staged).st_ino == os.stat(target).st_ino
            _fsync_folder(target.parent)
            return True
        finally:
            with suppress(FileNotFoundError):
                os.unlink(staged)

    # -- the probe ----------------------------------------------------------------------------------

    def probe(self) -> None:
        """Prove that the folder is writable and create-only, and leave nothing behind.

        Raises:
            OutputError: not writable, or the store accepted the same name twice.
        """
        if self.fencing == CREATE_ONLY and self.storage.protocol not in _ATOMIC_PROTOCOLS:
            why = f"nothing is known of {self.storage.protocol}:// in this respect"
            raise OutputError(_REFUSED.format(url=self.storage.url, why=why))
        new_folders = self.new_folders()
        name = f"{STAGING_FOLDER}/probe-{uuid.uuid4().hex}"
        try:
            first = self.publish(name, b"first")
            second = self.publish(name, b"second")
            kept = self.read(name)
        except OutputError:
            raise
        except Exception as error:
            raise OutputError(self._unwritable(error)) from error
        finally:
            self.forget(name, new_folders)
        first |= kept == b"first"  # the answer to the first try was lost, and the client tried again
        if not first or kept not in (b"first", b"second"):
            raise OutputError(_REFUSED.format(url=self.storage.url, why="a new name was not accepted"))
        if second or kept != b"first":
            raise OutputError(_REFUSED.format(url=self.storage.url, why="the second writer was accepted"))

    def _unwritable(self, error: BaseException) -> str:
        if isinstance(error, OSError) and self.is_local and error.errno in _NO_LINKS:
            return _REFUSED.format(url=self.storage.url, why="it has no hard links")
        why = explain(error)
        return f"OUTPUT {self.storage.url} cannot be written ({why}); choose another place or mend its permissions"

    def new_folders(self) -> list[Path]:
        """Local folders that writing here would make, innermost first; none on an object store."""
        if not self.is_local:
            return []
        staging = Path(self.path(STAGING_FOLDER))
        return [folder for folder in (staging, *staging.parents) if not folder.exists()]

    def forget(self, name: str, folders: list[Path]) -> None:
        """Remove a staging file, and those of ``folders`` that are empty. Never called on a published part."""
        # Best effort: a store that refuses deletion keeps one tiny object under staging/.
        with suppress(Exception):
            self.storage.fs.rm_file(self.path(name))
        for folder in folders:
            with suppress(OSError):
                folder.rmdir()


#: Stores whose create-only write is one step. Others may offer one that looks first and writes then.
_ATOMIC_PROTOCOLS = {"file", "s3"}

#: What S3 servers answer when the name exists; s3fs knows only AWS's wording of it.
_EXISTS_CODES = {"PreconditionFailed", "412"}
_CONFLICT_CODES = {"ConditionalRequestConflict", "409"}
_CONFLICT_PAUSES = (0.2, 0.5, 1.0, 2.0)

_NO_LINKS = {95, 1, 38}  # EOPNOTSUPP, EPERM (FAT, some FUSE), ENOSYS


def server_code(error: BaseException) -> str | None:
    """The error code of an S3 server behind an exception of s3fs, None where there is none."""
    cause = error.__cause__ or error
    code = getattr(cause, "response", {}).get("Error", {}).get("Code")
    return None if code is None else str(code)


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def footer_identity(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """The ``cxr_ray`` record of a part's footer; empty where there is none."""
    raw = (metadata or {}).get(b"cxr_ray")
    return json.loads(raw) if raw else {}
