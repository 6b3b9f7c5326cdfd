"""What S3 does better when asked directly: flat paged listings, and GETs that hold to one version.

Both go through s3fs's own client, so its options, credentials and retries apply.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fsspec.asyn import sync

_BODY_ATTEMPTS = 5
PAGE = 1000  # keys a listing request asks for; S3 gives no more


class VersionMismatchError(Exception):
    """The object is not the one whose ETag was asked for."""


def list_objects(fs: Any, path: str) -> Iterator[tuple[str, int, str]]:
    """Yield (path, size, etag) of every object under ``path``, in UTF-8 order of the keys.

    One page of at most 1,000 keys is held at a time. "Directory" objects (empty, name ending in "/") are
    left out: they are an artefact of S3 browsers.
    """
    bucket, prefix, _ = fs.split_path(path)
    query: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix.rstrip("/") + "/" if prefix else ""}
    query["MaxKeys"] = PAGE
    while True:
        page = fs.call_s3("list_objects_v2", **query)
        for entry in page.get("Contents", []):
            if not (entry["Key"].endswith("/") and entry["Size"] == 0):
                yield f"{bucket}/{entry['Key']}", int(entry["Size"]), entry["ETag"].strip('"')
        if not page.get("IsTruncated"):
            return
        query["ContinuationToken"] = page["NextContinuationToken"]


def head_object(fs: Any, path: str) -> tuple[int, str]:
    """Return (size, etag) with one HEAD. Raises FileNotFoundError, PermissionError, OSError, ..."""
    bucket, key, _ = fs.split_path(path)
    answer = fs.call_s3("head_object", Bucket=bucket, Key=key)
    return int(answer["ContentLength"]), answer["ETag"].strip('"')


def get_object(
    fs: Any,
    path: str,
    *,
    etag: str | None,
    start: int | None = None,
    end: int | None = None,
    size: int | None = None,
) -> bytes:
    """Return the object, or its bytes start..end-1, with one GET that holds only while its ETag is ``etag``.

    Raises:
        VersionMismatchError: another version is there now, or (of a whole object) not ``size`` bytes. Also checked
            on the answer, for stores that ignore If-Match, and before its body is read.
        FileNotFoundError, PermissionError, OSError, botocore errors: as s3fs gives them, after its retries.
    """
    bucket, key, _ = fs.split_path(path)
    query: dict[str, Any] = {"Bucket": bucket, "Key": key}
    if etag is not None and not fs.local_expiry_check:
        query["IfMatch"] = f'"{etag}"'
    if start is not None and end is not None:
        query["Range"] = f"bytes={start}-{end - 1}"
    for attempt in range(_BODY_ATTEMPTS):
        try:
            answer = fs.call_s3("get_object", **query)
        except OSError as error:
            if error_code(error) in ("PreconditionFailed", "412", "InvalidRange", "416"):
                raise VersionMismatchError from error
            raise
        other_size = size is not None and start is None and answer["ContentLength"] != size
        if other_size or (etag is not None and answer["ETag"].strip('"') != etag):
            answer["Body"].close()
            raise VersionMismatchError
        try:
            return bytes(sync(fs.loop, answer["Body"].read))
        except Exception:
            # A body that breaks off: the HTTP libraries below raise four unrelated classes for it, and none
            # of them was retried by the client, whose retries end with the headers.
            if attempt == _BODY_ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def error_code(error: BaseException) -> str | None:
    """The S3 error code behind an exception of s3fs ("NoSuchKey", "412", ...), or None."""
    response = getattr(error.__cause__, "response", None) or {}
    code = response.get("Error", {}).get("Code")
    return str(code) if code else None
