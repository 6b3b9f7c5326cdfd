"""Compressed tar files: one sequential pass, nothing unpacked to disk, one member in memory at a time."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import BinaryIO, cast

from cxr_ray.archives.inputs import ArchiveInput, readable_name
from cxr_ray.archives.members import Member
from cxr_ray.archives.tar import ForwardReader, index_tar
from cxr_ray.errors import (
    ChangedInput,
    ContainerTruncated,
    ContainerUnreadable,
    InputError,
    OversizedInput,
)

# A tar is padded by some hundred kB after its end marker; more than this is not read for the checksum.
_LARGEST_PADDING = 64 << 20


def index_targz(file: BinaryIO) -> Iterator[Member]:
    """Yield the entries of a gzip-compressed tar, each after its data has been decompressed without error.

    Raises ContainerTruncated or ContainerUnreadable as ``tar.index_tar`` does, also for a damaged gzip stream
    and for a wrong checksum at its end (then every member was whole, but one of them may be altered).
    """
    with gzip.GzipFile(fileobj=file, mode="rb") as stream:
        reader = ForwardReader(cast(BinaryIO, stream), None)
        for member in index_tar(reader):
            yield replace(member, offset=None)  # a place in the decompressed stream is no way to find it
        _check_rest(reader)


def _check_rest(reader: ForwardReader) -> None:
    """Read to the end of the stream, where gzip compares its checksum."""
    with _stream_errors("The compressed tar fails its checksum at the end; a member may be altered."):
        reader.seek(reader.tell() + _LARGEST_PADDING)


@contextmanager
def _stream_errors(damaged: str) -> Iterator[None]:
    """Turn what gzip and zlib raise for a bad stream into ContainerTruncated."""
    try:
        yield
    except EOFError as error:
        raise ContainerTruncated("The compressed tar breaks off.") from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise ContainerTruncated(damaged) from error


def read_targz(
    file: BinaryIO, wanted: Sequence[ArchiveInput], *, max_bytes: int
) -> Iterator[bytes | InputError]:
    """Yield the bytes of each wanted member in one pass that ends after the last of them.

    Args:
        file: the compressed file at position 0, of the version that was planned.
        wanted: in ascending order of ``ordinal``.
        max_bytes: a larger member is skipped and yields OversizedInput.

    A stream that breaks where planning found none yields ChangedInput for that member and the rest.
    """
    done = 0
    try:
        with gzip.GzipFile(fileobj=file, mode="rb") as stream:
            reader = ForwardReader(cast(BinaryIO, stream), None)
            for member in index_tar(reader, whole=False):
                planned = wanted[done]
                if member.ordinal < planned.ordinal:
                    continue
                item = _read_member(reader, member, planned, max_bytes)
                done += 1
                yield item
                if done == len(wanted):
                    return
    except (ContainerTruncated, ContainerUnreadable, ChangedInput):
        pass  # the members not reached are reported below
    for _ in wanted[done:]:
        yield ChangedInput("The container is not the one that was planned: it breaks off before this member.")


def _read_member(
    reader: ForwardReader, member: Member, planned: ArchiveInput, max_bytes: int
) -> bytes | InputError:
    same = (member.ordinal, readable_name(member.name), member.size)
    if same != (planned.ordinal, planned.member, planned.size):
        return ChangedInput("The container is not the one that was planned: another member stands here.")
    if member.size > max_bytes:
        return oversized(member.size, max_bytes)
    with _stream_errors("The compressed tar is damaged inside a member."):
        data = reader.read_data(member.size)
    if len(data) != member.size:
        raise ContainerTruncated("The compressed tar breaks off inside a member.")
    return data


def oversized(size: int, max_bytes: int) -> OversizedInput:
    """The error for more encoded bytes than the limit allows."""
    return OversizedInput(f"{size:,} encoded bytes, but at most {max_bytes:,} are read.")
