"""One planned input of an archive, and the identifier by which the table knows it."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

Kind = Literal["file", "tar", "tar.gz", "zip", "shard"]

# Part of every hashed message, so that identifiers of another scheme can never be mistaken for these.
_SCHEME = b"cxr_ray image_id 1"


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchiveInput:
    """What planning knows about one input, and all that reading needs.

    Every ArchiveInput becomes exactly one row. A container that cannot be read (to its end) is itself an
    input: ``member`` is None and ``failure`` is set.
    """

    uri: str
    """Canonical address of the file, or of the container that holds the member."""
    member: str | None = None
    """Name inside the container, verbatim; None for a plain file and for a container's failure row."""
    kind: Kind = "file"
    ordinal: int = 0
    """Position among all entries of the container, skipped ones included (0 for kind "file")."""
    occurrence: int = 0
    """n for the n-th repetition of a member name inside one container."""
    offset: int | None = None
    """tar: byte offset of the member's data; zip: of its entry in the central directory."""
    size: int | None = None
    """Encoded bytes (of a member: uncompressed)."""
    version: str | None = None
    """ETag, or "size-mtime_ns", of the file or container as planned; "size=N" or "size=N time=SECONDS" of a file
    whose inventory does not say more; None: whatever is there."""
    failure: str | None = None
    """A code of ``errors.py`` known at planning; reading yields that error without touching the storage."""
    failure_detail: str | None = None
    patient: str | None = None
    """This and the following: from the user's manifest, as text."""
    study: str | None = None
    label: str | None = None
    view: str | None = None
    sex: str | None = None
    age: str | None = None
    carry: tuple[tuple[str, str], ...] | None = None
    """(column, value) pairs the user wants in the table, in the order asked for; nulls left out."""


def image_id(uri: str, member: str | None, occurrence: int = 0, key: bytes | None = None) -> bytes:
    """Return the 16-byte identifier of an input; ``.hex()`` of it is the table's ``image_id``.

    The first 16 bytes of SHA-256, or of HMAC-SHA-256 when ``key`` is given, over length-prefixed parts, so
    that no two different (uri, member, occurrence) share a message. A member of None and of "" differ.
    """
    parts = [
        uri.encode("utf-8", "surrogatepass"),
        b"" if member is None else b"=" + member.encode("utf-8", "surrogatepass"),
        str(occurrence).encode(),
    ]
    message = _SCHEME + b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    if key is not None:
        return hmac.digest(key, message, "sha256")[:16]
    return hashlib.sha256(message).digest()[:16]


def file_ids(uris: pa.Array, key: bytes | None = None) -> bytes:
    """``image_id`` of plain files, one after the other: 16 bytes for each of ``uris`` (strings, no nulls)."""
    head, tail = _SCHEME, b"".join(len(part).to_bytes(8, "big") + part for part in (b"", b"0"))
    messages = (head + len(uri).to_bytes(8, "big") + uri + tail for uri in uris.cast(pa.binary()).to_pylist())
    if key is not None:
        return b"".join([hmac.digest(key, message, "sha256")[:16] for message in messages])
    sha256 = hashlib.sha256
    return b"".join([sha256(message).digest()[:16] for message in messages])


def image_id_of(planned: ArchiveInput, key: bytes | None = None) -> bytes:
    """``image_id`` of a planned input."""
    return image_id(planned.uri, planned.member, planned.occurrence, key)


def readable_name(name: str) -> str:
    """Return ``name`` as text that any table can hold: bytes that are no UTF-8 become ``\\xNN``.

    Python hands such bytes over as lone surrogates, which neither Parquet nor JSON accepts.
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return name
