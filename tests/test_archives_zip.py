"""Zip: listing from the directory, members that lie, are damaged or encrypted."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import zipfile

import pytest
from archive_samples import members, zip_bytes

from cxr_ray.archives.inputs import ArchiveInput
from cxr_ray.archives.zip import index_zip, read_zip
from cxr_ray.errors import (
    ChangedInput,
    ContainerTruncated,
    ContainerUnreadable,
    InputError,
    MemberUnreadable,
    OversizedInput,
)

FILES = members(6)


def planned(data: bytes) -> list[ArchiveInput]:
    return [
        ArchiveInput(uri="u", member=m.name, kind="zip", ordinal=m.ordinal, size=m.size)
        for m in index_zip(io.BytesIO(data))
    ]


def read(
    data: bytes, inputs: list[ArchiveInput] | None = None, limit: int = 1 << 20
) -> list[bytes | InputError]:
    return list(read_zip(io.BytesIO(data), planned(data) if inputs is None else inputs, max_bytes=limit))


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_members_come_back(compression: int) -> None:
    data = zip_bytes(FILES, compression)
    assert [one.member for one in planned(data)] == list(FILES)
    assert read(data) == list(FILES.values())


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_damaged_member_costs_only_itself(compression: int) -> None:
    data = bytearray(zip_bytes(FILES, compression))
    entry = zipfile.ZipFile(io.BytesIO(bytes(data))).infolist()[3]
    data[entry.header_offset + 1000 : entry.header_offset + 1100] = bytes(100)
    items = read(bytes(data))
    assert isinstance(items[2], MemberUnreadable)
    assert [item for item in items if isinstance(item, bytes)] == [
        value for i, value in enumerate(FILES.values()) if i != 2
    ]


def test_encrypted_member_is_listed_and_unreadable() -> None:
    data = bytearray(zip_bytes(FILES))
    at = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)  # the first film's directory entry
    data[at + 8] |= 1
    items = read(bytes(data))
    assert isinstance(items[0], MemberUnreadable)
    assert "encrypted" in str(items[0])
    assert items[1] == FILES["films/00001.png"]


def test_unknown_compression() -> None:
    data = bytearray(zip_bytes(FILES))
    at = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    data[at + 10 : at + 12] = struct.pack("<H", 99)
    assert isinstance(read(bytes(data))[0], MemberUnreadable)


def test_member_larger_than_it_says_is_unreadable_not_a_flood() -> None:
    data = bytearray(zip_bytes({"film.png": bytes(50 << 20)}))
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 1000)
    assert isinstance(read(bytes(data))[0], MemberUnreadable)


def test_oversized_member() -> None:
    assert [type(item) for item in read(zip_bytes(FILES), limit=3050)] == [bytes] * 2 + [OversizedInput] * 4


def test_cut_zip_is_truncated_and_other_bytes_unreadable() -> None:
    with pytest.raises(ContainerTruncated):
        planned(zip_bytes(FILES)[:-30])
    with pytest.raises(ContainerUnreadable):
        planned(b"no zip" * 100)


@pytest.mark.timeout(60)
def test_random_damage_never_raises_anything_else() -> None:
    source = random.Random(2)
    clean = zip_bytes(members(4, size=400))
    inputs = planned(clean)
    for _ in range(400):
        data = bytearray(clean)
        for _ in range(source.randint(1, 8)):
            data[source.randrange(len(data))] = source.randrange(256)
        with contextlib.suppress(ContainerTruncated, ContainerUnreadable):
            planned(bytes(data))
        assert len(read(bytes(data), inputs)) == 4


def test_links_and_folders() -> None:
    buffer = io.BytesIO(zip_bytes(FILES))
    with zipfile.ZipFile(buffer, "a") as archive:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    found = list(index_zip(buffer))
    assert [(m.name, m.regular) for m in found] == [(name, True) for name in FILES] + [("link.png", False)]


def test_another_member_at_the_planned_place_is_changed() -> None:
    inputs = planned(zip_bytes(FILES))
    items = read(zip_bytes(members(3, seed=5)), inputs)
    assert [type(item) for item in items] == [bytes] * 3 + [ChangedInput] * 3
    assert {type(item) for item in read(b"no zip", inputs)} == {ChangedInput}
