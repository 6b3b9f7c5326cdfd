"""Create-only publication: the one step that makes a file part of OUTPUT (DESIGN promise 3).

A published name is written once and never changed. Which primitive guarantees that depends on the store:

* local and NFS: write under ``OUTPUT/staging``, fsync, ``os.link`` to the final name (``publishing.local``);
* object stores: one request with the precondition that the name does not exist (``publishing.object_store``);
* ``fencing=single_writer``: a plain PUT or rename for stores that have neither; one driver at a time.

Every run probes the store by publishing one name twice; a store that accepts the second is refused.
"""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from cxr_ray.archives.storage import Storage, explain
from cxr_ray.errors import OutputError
from cxr_ray.pipeline.publishing.local import (
    NO_LINKS,
    copy_file,
    create_by_link,
    create_by_rename,
    replace_file,
)
from cxr_ray.pipeline.publishing.object_store import CONDITIONAL, create_object
from cxr_ray.pipeline.publishing.sweep import sweep_staging

CREATE_ONLY = "create_only"
SINGLE_WRITER = "single_writer"
FENCING = (CREATE_ONLY, SINGLE_WRITER)

STAGING_FOLDER = "staging"

_REFUSED = (
    "OUTPUT {url} does not keep the promise that a name is created only once ({why}); use a store that does "
    "(a local or NFS folder with hard links, S3, GCS or Azure), or pass fencing=single_writer and start one "
    "driver at a time"
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

    @property
    def _staging(self) -> Path:
        return Path(self.path(STAGING_FOLDER))

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
            create = create_by_rename if self.fencing == SINGLE_WRITER else create_by_link
            return create(self._staging, Path(self.path(name)), data)
        if self.fencing == CREATE_ONLY:
            return create_object(self.storage, self.path(name), data)
        if self.storage.fs.exists(self.path(name)):
            return False
        self.storage.fs.pipe_file(self.path(name), data)
        return True

    def replace(self, name: str, data: bytes) -> None:
        """Write a derived file (``run.json``) that readers must never take for the truth."""
        if self.is_local:
            replace_file(self._staging, Path(self.path(name)), data)
        else:
            self.storage.fs.pipe_file(self.path(name), data)

    def upload(self, name: str, file: Path) -> None:
        """Copy a local file to ``name``, a derived file under a name that nobody else writes; it appears whole."""
        if self.is_local:
            copy_file(self._staging, Path(self.path(name)), file)
        else:
            self.storage.fs.put_file(str(file), self.path(name))

    # -- the probe ----------------------------------------------------------------------------------

    def probe(self, *, sweep: bool = False) -> None:
        """Prove that the folder is writable and create-only, and leave nothing behind.

        Args:
            sweep: also remove what killed runs have left under staging, and unfinished uploads (best effort).

        Raises:
            OutputError: not writable, or the store accepted the same name twice.
        """
        if self.fencing == CREATE_ONLY and not self.is_local and self.storage.protocol not in CONDITIONAL:
            why = f"nothing is known of {self.storage.protocol}:// in this respect"
            raise OutputError(_REFUSED.format(url=self.storage.url, why=why))
        new_folders = self.new_folders()
        name = f"{STAGING_FOLDER}/probe-{uuid.uuid4().hex}"
        try:
            first = self.publish(name, b"first")
            second = self.publish(name, b"second")
            kept = self.read(name)
            if sweep:
                # Left-overs harm nobody, so a store that refuses to list or to remove them stops no run.
                with suppress(Exception):
                    sweep_staging(self.storage, self.path(STAGING_FOLDER), self.path(name))
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
        if isinstance(error, OSError) and self.is_local and error.errno in NO_LINKS:
            return _REFUSED.format(url=self.storage.url, why="it has no hard links")
        why = explain(error)
        return f"OUTPUT {self.storage.url} cannot be written ({why}); choose another place or mend its permissions"

    def new_folders(self) -> list[Path]:
        """Local folders that writing here would make, innermost first; none on an object store."""
        if not self.is_local:
            return []
        return [folder for folder in (self._staging, *self._staging.parents) if not folder.exists()]

    def forget(self, name: str, folders: list[Path]) -> None:
        """Remove a staging file, and those of ``folders`` that are empty. Never called on a published part."""
        # Best effort: a store that refuses deletion keeps one tiny object under staging/.
        with suppress(Exception):
            self.storage.fs.rm_file(self.path(name))
        for folder in folders:
            with suppress(OSError):
                folder.rmdir()


def footer_identity(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """The ``cxr_ray`` record of a part's footer; empty where there is none."""
    raw = (metadata or {}).get(b"cxr_ray")
    return json.loads(raw) if raw else {}
