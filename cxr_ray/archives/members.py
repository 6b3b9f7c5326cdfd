"""What all container kinds share: the member record, and how a listing becomes inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from cxr_ray.archives.exclude import Exclusion, ListingReport
from cxr_ray.archives.inputs import ArchiveInput, Kind, readable_name
from cxr_ray.errors import ContainerTruncated, ContainerUnreadable


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of a container: verbatim name, position among all entries, size in bytes uncompressed.

    ``offset`` is where the data begins (tar only); ``regular`` is False for links, devices, sparse entries.
    """

    name: str
    ordinal: int
    size: int
    offset: int | None = None
    regular: bool = True


def member_inputs(
    members: Iterator[Member],
    *,
    uri: str,
    kind: Kind,
    version: str,
    exclude: Exclusion,
    report: ListingReport,
) -> Iterator[ArchiveInput]:
    """Turn the entries of one container into inputs, and its failure, if it comes, into one last input.

    ``members`` ends with ContainerTruncated or ContainerUnreadable where the container cannot be read on.
    """
    # 64-bit digests instead of names: a container may hold millions. A clash would only give a member an
    # occurrence above 0 that it did not need, the same one at every listing.
    seen: dict[int, int] = {}
    next_ordinal = 0
    try:
        for member in members:
            next_ordinal = member.ordinal + 1
            name = readable_name(member.name)
            if not member.regular:
                report.not_regular += 1
                continue
            if exclude(name):
                report.excluded += 1
                continue
            digest = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
            occurrence = seen.get(digest, -1) + 1
            seen[digest] = occurrence
            yield ArchiveInput(
                uri=uri,
                member=name,
                kind=kind,
                ordinal=member.ordinal,
                occurrence=occurrence,
                offset=member.offset,
                size=member.size,
                version=version,
            )
    except (ContainerTruncated, ContainerUnreadable) as error:
        yield ArchiveInput(
            uri=uri,
            kind=kind,
            ordinal=next_ordinal,
            version=version,
            failure=error.code,
            failure_detail=str(error),
        )
