"""States of a member on any fsspec URL: committed whole or not at all, and never trusted unread.

A checkpoint is one safetensors file whose name carries its number and the hash of its content. One file is created in
one step (rename on a file system, PUT on an object store), so there is no half checkpoint; a damaged one does not
match its name and is passed over. No pickle: a state is tensors by name, and facts that JSON can say.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from torch import Tensor

from cxr_ray.archives.storage import explain, is_storage_error, open_storage
from cxr_ray.errors import StorageReadError, StorageWriteError
from cxr_ray.pipeline.publish import SINGLE_WRITER, STAGING_FOLDER, Publisher
from training.parallel.processes import Processes

KEEP = 2

_NAME = re.compile(r"checkpoint-(\d{8,})-([0-9a-f]{32})\.safetensors")
_FACTS = "facts"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A state that was read back."""

    number: int
    """As saved; a later state has a higher one."""
    tensors: dict[str, Tensor]
    """By name, on the CPU, bit for bit what was saved."""
    facts: dict[str, Any]
    """As saved (tuples come back as lists)."""


class Checkpoints:
    """The checkpoints of one member.

    Args:
        url: a folder for this member alone; made when first needed. One process writes to it at a time.
        options: fsspec options, as for every other address.
        keep: how many of the newest to keep; at least 2, so that a damaged newest has one before it.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None, *, keep: int = KEEP) -> None:
        if keep < 2:
            raise ValueError(f"keep must be at least 2, not {keep}")
        self.keep = keep
        # Names carry the hash of the content, so it does not matter who of two writers comes last.
        self._publisher = Publisher(open_storage(url, options), SINGLE_WRITER)
        self.url = self._publisher.storage.url

    def save(self, number: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Commit a state, then remove those that are too old to keep.

        Args:
            number: grows with training, for example the count of steps. Saving a number again replaces it.
            tensors: any dtypes and devices; random states as uint8.
            facts: anything that JSON can say.

        Raises:
            StorageWriteError: the storage refused it; earlier checkpoints are untouched.
        """
        data = pack(tensors, facts)
        name = f"checkpoint-{number:08d}-{_digest(data)}.safetensors"
        try:
            if not self._publisher.publish(name, data):
                self._publisher.replace(name, data)  # of this very content; or it was, and is damaged
        except Exception as error:
            if not is_storage_error(error):
                raise
            raise StorageWriteError(
                f"checkpoint {number} could not be written to {self.url} ({explain(error)}); the one before it is "
                "kept: mend the storage and run the same command again"
            ) from error
        self._forget_old(number, name)

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint; None where there is none.

        Raises:
            StorageReadError: the storage failed.
        """
        data = self._newest_bytes()
        return None if data is None else unpack(*data)

    def latest_for_all(self, processes: Processes) -> Checkpoint | None:
        """``latest`` as rank 0 sees it, on every process: none of the others reads the storage.

        So all go on from the same state, even if the folder is one of rank 0's machine only.
        """
        found = self._newest_bytes() if processes.rank == 0 else None
        data = processes.broadcast_bytes(None if found is None else found[0].to_bytes(8, "big") + found[1])
        return None if data is None else unpack(int.from_bytes(data[:8], "big"), data[8:])

    def _newest_bytes(self) -> tuple[int, bytes] | None:
        try:
            for number, name in sorted(self._numbered(), reverse=True):
                data = self._publisher.read(name)
                if data is not None and f"-{_digest(data)}." in name:
                    return number, data
                _log.warning("checkpoint %d is damaged and is passed over", number)
        except Exception as error:
            if not is_storage_error(error):
                raise
            raise StorageReadError(
                f"the checkpoints in {self.url} could not be read ({explain(error)}); mend the storage and run the "
                "same command again"
            ) from error
        return None

    def _numbered(self) -> list[tuple[int, str]]:
        found = (_NAME.fullmatch(name) for name in self._publisher.names(""))
        return [(int(match[1]), match[0]) for match in found if match]

    def _forget_old(self, number: int, name: str) -> None:
        """Remove what is older than the newest, and left-overs of writers that were killed. Best effort."""
        storage = self._publisher.storage
        # A store that refuses deletion keeps more than it should, which is no reason to stop training.
        with suppress(Exception):
            # Higher numbers can only be damaged ones, or another's: they neither count nor go.
            numbered = [pair for pair in self._numbered() if pair[0] <= number]
            kept = sorted({other for other, _ in numbered}, reverse=True)[: self.keep]
            old = [other for n, other in numbered if n not in kept or (n == number and other != name)]
            if storage.is_local:
                old += [f"{STAGING_FOLDER}/{other}" for other in self._publisher.names(STAGING_FOLDER)]
            for other in old:
                with suppress(OSError):
                    storage.fs.rm_file(self._publisher.path(other))


def pack(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """One safetensors file; the same state always gives the same bytes."""
    # Copies: safetensors refuses tensors that share memory, as tied weights and views do.
    whole = {name: tensors[name].detach().cpu().clone().contiguous() for name in sorted(tensors)}
    return safetensors.torch.save(whole, {_FACTS: json.dumps(facts)})


def unpack(number: int, data: bytes) -> Checkpoint:
    """The reverse of ``pack``."""
    length = int.from_bytes(data[:8], "little")
    facts = json.loads(data[8 : 8 + length])["__metadata__"][_FACTS]
    return Checkpoint(number, safetensors.torch.load(data), json.loads(facts))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
