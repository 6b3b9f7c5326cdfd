"""Removing what killed runs have left: staging files, probes, node-check tokens, unfinished multipart uploads.

Age is judged by the storage's own clock, that is, against a file which it has just written: the clocks of the
machines that write to one OUTPUT may differ. What is younger than the limit may belong to a living driver and stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from cxr_ray.archives.storage import Storage

STALE_SECONDS: Final = 600.0
"""Nothing lies under staging for longer than a write and a link take, or the check of the nodes (a minute)."""

UPLOAD_SECONDS: Final = 86_400.0
"""Age beyond which an unfinished multipart upload below OUTPUT is abandoned."""


def sweep_staging(storage: Storage, folder: str, clock: str) -> int:
    """Remove old files directly in ``folder``; returns how many.

    Args:
        folder, clock: paths of ``storage.fs``; ``clock`` is a file in ``folder`` that was written just now.
    """
    fs = storage.fs
    fs.invalidate_cache()
    times = {
        entry["name"]: modified_time(entry) for entry in fs.ls(folder, detail=True) if entry["type"] == "file"
    }
    by_name = {name.rsplit("/", 1)[-1]: when for name, when in times.items()}
    now = by_name.get(clock.rsplit("/", 1)[-1])
    if now is None:
        return 0
    removed = 0
    for name, when in times.items():
        if when is not None and now - when > STALE_SECONDS:
            with suppress(FileNotFoundError):  # another driver sweeps, too
                fs.rm_file(name)
                removed += 1
    if storage.protocol == "s3":
        removed += _abort_uploads(storage, now)
    return removed


def _abort_uploads(storage: Storage, now: float) -> int:
    """Abort unfinished multipart uploads below OUTPUT that nobody can be writing any more.

    They are invisible, and cost money until they are aborted. GCS (a week after it began) and Azure (a week after
    the last block) drop unfinished uploads by themselves.
    """
    aborted = 0
    for bucket, upload in _uploads(storage):
        if now - upload["Initiated"].timestamp() > UPLOAD_SECONDS:
            storage.fs.call_s3(
                "abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
            )
            aborted += 1
    return aborted


def _uploads(storage: Storage) -> Iterator[tuple[str, dict[str, Any]]]:
    bucket, _, prefix = storage.path.rstrip("/").partition("/")
    page: dict[str, Any] = {}
    while True:
        answer = storage.fs.call_s3(
            "list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/" if prefix else "", **page
        )
        for upload in answer.get("Uploads") or ():
            yield bucket, upload
        if not answer.get("IsTruncated"):
            return
        page = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}


def modified_time(entry: dict[str, Any]) -> float | None:
    """When a file was written, in the storage's seconds: the name of the entry differs from client to client."""
    for name in ("mtime", "LastModified", "last_modified"):
        when = entry.get(name)
        if isinstance(when, datetime):
            return when.timestamp()
        if when is not None:
            return float(when)
    return None
