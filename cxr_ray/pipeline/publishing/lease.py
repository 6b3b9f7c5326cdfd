"""``fencing=single_writer``: keep a second driver out while the first is alive. Best effort.

The store has no create-only write, so no lock on it can be safe. This one catches the usual accident, the same
command started twice: the driver writes ``staging/writer.json`` anew every few seconds, with a number that grows.
Who finds such a file watches it: if it changes, its writer lives, and the newcomer is refused; if it stands still
for half a minute, its writer is dead, and the newcomer takes over. No clock of any machine is compared with another.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from cxr_ray.archives.storage import explain, is_storage_error
from cxr_ray.errors import OutputError
from cxr_ray.pipeline.publish import STAGING_FOLDER, Publisher

LEASE_FILE: Final = f"{STAGING_FOLDER}/writer.json"
BEAT_SECONDS: Final = 5.0
PATIENCE_SECONDS: Final = 30.0
SETTLE_SECONDS: Final = 1.0


class WriterLease:
    """Held by the driver for the time of a run; a context manager.

    Args:
        publisher: OUTPUT.
        attempt: name of this run.
        lost: called in another thread, once, when another driver has taken over. It should end this one.
        say: is told when there is something to wait for.
        beat, patience, settle: seconds between signs of life, until a writer counts as dead, and between writing the
            lease and looking who of two newcomers has it.

    Raises (on entering):
        OutputError: another driver is alive, or OUTPUT cannot be written.
    """

    def __init__(
        self,
        publisher: Publisher,
        attempt: str,
        *,
        lost: Callable[[], None],
        say: Callable[[str], None] = print,
        beat: float = BEAT_SECONDS,
        patience: float = PATIENCE_SECONDS,
        settle: float = SETTLE_SECONDS,
    ) -> None:
        self._publisher = publisher
        self._attempt = attempt
        self._lost = lost
        self._say = say
        self._beat, self._patience, self._settle = beat, patience, settle
        self._count = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="writer-lease", daemon=True)
        self._new_folders: list[Path] = []

    def __enter__(self) -> WriterLease:
        self._new_folders = self._publisher.new_folders()
        url = self._publisher.storage.url
        try:
            self._wait_for_silence()
            self._write()
            time.sleep(self._settle)
            holder = self._holder()
        except OutputError:
            raise
        except Exception as error:
            self._publisher.forget(LEASE_FILE, self._new_folders)
            raise OutputError(
                f"OUTPUT {url} cannot be written ({explain(error)}); choose another place or mend its permissions"
            ) from error
        if holder != self._attempt:
            raise OutputError(_refusal(url, str(holder)))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        # A store that fails now keeps the file; the next driver waits until it is sure that nobody writes it.
        with suppress(Exception):
            if self._holder() == self._attempt:
                self._publisher.forget(LEASE_FILE, self._new_folders)

    def _wait_for_silence(self) -> None:
        """Return when nobody holds the lease, or its holder has been still for the patience."""
        first = self._publisher.read(LEASE_FILE)
        if first is not None:
            self._say(
                f"an earlier driver has not signed off; watching for {self._patience:.0f} s whether it lives"
            )
        deadline = time.monotonic() + self._patience
        while first is not None and time.monotonic() < deadline:
            time.sleep(min(1.0, self._beat / 2))
            now = self._publisher.read(LEASE_FILE)
            if now is None:
                return
            if now != first:
                raise OutputError(_refusal(self._publisher.storage.url, str(_record(now).get("attempt"))))

    def _keep(self) -> None:
        while not self._end.wait(self._beat):
            try:
                if self._holder() not in (self._attempt, None):
                    self._lost()
                    return
                self._write()
            except Exception as error:  # one sign of life less; the next may reach the store
                if not is_storage_error(error):
                    raise

    def _write(self) -> None:
        self._count += 1
        record = {"attempt": self._attempt, "beat": self._count}
        self._publisher.replace(LEASE_FILE, json.dumps(record).encode() + b"\n")

    def _holder(self) -> str | None:
        raw = self._publisher.read(LEASE_FILE)
        return None if raw is None else str(_record(raw).get("attempt"))


def stop_this_driver() -> None:
    """End this process as ``ray job stop`` does: another one has OUTPUT now."""
    print("another driver has taken over OUTPUT; this one ends", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)


def _refusal(url: str, attempt: str) -> str:
    return (
        f"another driver (attempt {attempt}) is writing to OUTPUT {url}, and fencing=single_writer allows one at a "
        "time; wait until it ends, or stop it and start again"
    )


def _record(raw: bytes) -> dict[str, Any]:
    """The lease's content; empty where it is not ours to read (half written, or by a later version)."""
    try:
        record = json.loads(raw)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
