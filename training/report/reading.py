"""A training output as the report needs it: every file that is there, and None or an empty mapping for the rest."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cxr_ray.archives.storage import Storage, open_storage
from cxr_ray.errors import UsageError

DEFAULT_POSITIVE = "Covid+"


@dataclass(frozen=True, kw_only=True)
class Audit:
    """One bundle scored on one split, as ``jobs/audit.py`` wrote it."""

    facts: dict[str, Any]
    """``audit.json``; empty where it is missing."""
    predictions: pa.Table | None
    """``predictions.parquet``."""
    segmentation: dict[str, Any]
    """``segmentation.json``; empty where it is missing."""


@dataclass(frozen=True, kw_only=True)
class TrainingOutput:
    """Content of one training output; which files were there decides what the report shows."""

    url: str
    """Where it lies, without credentials."""
    config: dict[str, Any] | None = None
    split: pa.Table | None = None
    histories: dict[str, pa.Table] = field(default_factory=dict)
    """Member name -> one row per epoch."""
    out_of_fold: dict[str, pa.Table] = field(default_factory=dict)
    """Member name -> scores of the pictures of its own validation fold; "" for one table of all."""
    validation: dict[str, pa.Table] = field(default_factory=dict)
    """Segmentation member name -> lung metrics per validation picture."""
    bundle: dict[str, Any] | None = None
    """``bundle/bundle.json`` without its tensor tables."""
    calibration: pa.Table | None = None
    audits: dict[str, Audit] = field(default_factory=dict)
    """Split name -> audit."""

    @property
    def settings(self) -> dict[str, Any]:
        """Resolved settings of the run; empty where ``config.json`` is missing."""
        return dict((self.config or {}).get("settings", self.config or {}))

    @property
    def task(self) -> str:
        """``segmentation``, ``classification``, ``assemble`` or an empty word."""
        return str(self.settings.get("task", ""))

    @property
    def positive(self) -> str:
        """Name of the positive class."""
        recipe = self.settings.get("recipe", {}).get("classification", {})
        return str(
            (self.bundle or {}).get("positive_class") or recipe.get("positive_class") or DEFAULT_POSITIVE
        )


def read_training(url: str, options: Mapping[str, Any] | None = None) -> TrainingOutput:
    """Read what there is of a training output.

    Raises:
        UsageError: none of the files of a training output is there, or one of them cannot be read.
    """
    # Addresses with a user name are refused; a signed one carries its signature behind the question mark.
    folder = _Folder(open_storage(url, options), url.partition("?")[0])
    members = folder.subfolders("members")
    out_of_fold = folder.tables(members, "out_of_fold.parquet")
    whole = None if out_of_fold else folder.table("out_of_fold.parquet")
    audits = {}
    for name in folder.subfolders("audit"):
        facts = folder.json(f"audit/{name}/audit.json")
        predictions = folder.table(f"audit/{name}/predictions.parquet")
        lungs = folder.json(f"audit/{name}/segmentation.json")
        if any(part is not None for part in (facts, predictions, lungs)):
            audits[name] = Audit(facts=facts or {}, predictions=predictions, segmentation=lungs or {})
    bundle = folder.json("bundle/bundle.json")
    output = TrainingOutput(
        url=folder.shown,
        config=folder.json("config.json"),
        split=folder.table("split.parquet"),
        histories=folder.tables(members, "history.parquet"),
        out_of_fold=out_of_fold if whole is None else {"": whole},
        validation=folder.tables(members, "validation.parquet"),
        bundle={key: value for key, value in bundle.items() if key != "tensors"} if bundle else None,
        calibration=folder.table("calibration.parquet"),
        audits=audits,
    )
    if output == TrainingOutput(url=folder.shown):
        raise UsageError(
            f"{folder.shown} holds no training output: expected config.json, split.parquet or members/; "
            "give the folder that jobs/train.py wrote as training=URL"
        )
    return output


class _Folder:
    def __init__(self, storage: Storage, shown: str) -> None:
        self._storage = storage
        self.shown = shown

    def subfolders(self, name: str) -> list[str]:
        """Names of the folders in a folder, in natural order (fold2 before fold10)."""
        try:
            entries = self._storage.fs.ls(self._path(name), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = [
            entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory"
        ]
        return sorted(names, key=_natural)

    def json(self, name: str) -> dict[str, Any] | None:
        raw = self._bytes(name)
        if raw is None:
            return None
        try:
            content = json.loads(raw)
        except ValueError as error:
            raise self._unreadable(name, "JSON") from error
        if not isinstance(content, dict):
            raise self._unreadable(name, "JSON")
        return content

    def table(self, name: str) -> pa.Table | None:
        raw = self._bytes(name)
        if raw is None:
            return None
        try:
            return pq.read_table(io.BytesIO(raw))
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(name, "Parquet") from error

    def tables(self, members: list[str], file: str) -> dict[str, pa.Table]:
        found = {member: self.table(f"members/{member}/{file}") for member in members}
        return {member: table for member, table in found.items() if table is not None}

    def _bytes(self, name: str) -> bytes | None:
        try:
            return bytes(self._storage.fs.cat_file(self._path(name)))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _path(self, name: str) -> str:
        return f"{self._storage.path.rstrip('/')}/{name}"

    def _unreadable(self, name: str, kind: str) -> UsageError:
        return UsageError(
            f"{self.shown}/{name} is no readable {kind}; write it again with the job it comes from"
        )


def _natural(name: str) -> tuple[str, int]:
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or -1)
