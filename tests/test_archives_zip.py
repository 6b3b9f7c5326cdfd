"""Zip: listing from the directory, members that lie, are damaged or encrypted."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import warnings
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


def planned(data: bytes, *, places: bool = True) -> list[ArchiveInput]:
    return [
        ArchiveInput(
            uri="u",
            member=m.name,
            kind="zip",
            ordinal=m.ordinal,
            size=m.size,
            offset=m.offset if places else None,
        )
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
    inputs = planned(zip_bytes(FILES), places=False)
    items = read(zip_bytes(members(3, seed=5)), inputs)
    assert [type(item) for item in items] == [bytes] * 3 + [ChangedInput] * 3
    inputs = planned(zip_bytes(FILES))
    renamed = {name.replace("films", "FILMS"): data for name, data in FILES.items()}
    assert {type(item) for item in read(zip_bytes(renamed), inputs)} == {ChangedInput}
    assert {type(item) for item in read(b"no zip", inputs)} == {ChangedInput}


class CountingFile(io.BytesIO):
    """Counts the bytes that are read."""

    bytes_read = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.bytes_read += len(data)
        return data


def unusual_zips() -> dict[str, bytes]:
    """Zips that differ in how their directory is found or written."""
    commented = io.BytesIO(zip_bytes(FILES))
    with zipfile.ZipFile(commented, "a") as archive:
        archive.comment = b"a long comment " * 50
    names = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(names, "w") as archive:
        warnings.simplefilter("ignore", UserWarning)  # the same name twice
        for name in (
            "films/\u00fc\u4e2d.png",
            "caf\u00e9.png",
            "a//b.png",
            "./c.png",
            "same.png",
            "same.png",
        ):
            archive.writestr(name, name.encode())
        with archive.open(zipfile.ZipInfo("large.png"), "w", force_zip64=True) as member:
            member.write(b"sizes in the extra field")
    streamed = io.BytesIO()

    class Pipe(io.RawIOBase):  # zipfile then writes sizes and checksums behind the data
        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            return streamed.write(data)

    with zipfile.ZipFile(Pipe(), "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[arg-type]
        for name, data in FILES.items():
            archive.writestr(name, data)
    return {
        "comment": commented.getvalue(),
        "program in front": b"#!/bin/sh\nexit\n" * 1000 + zip_bytes(FILES),
        "names": names.getvalue(),
        "streamed": streamed.getvalue(),
        "empty": zip_bytes({}),
    }


@pytest.mark.parametrize("name", list(unusual_zips()))
@pytest.mark.parametrize("places", [True, False])
def test_the_same_members_as_zipfile_finds(name: str, places: bool) -> None:
    data = unusual_zips()[name]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        contents = [archive.read(entry) for entry in entries]
    found = planned(data, places=places)
    assert [(one.member, one.size) for one in found] == [(one.filename, one.file_size) for one in entries]
    assert read(data, found) == contents


def test_zip64_directory_of_many_members_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    data = zip_bytes(FILES)
    assert b"PK\x06\x06" in data
    assert read(data) == list(FILES.values())
    # The same with something in front, so that positions must be shifted.
    assert read(b"front" * 99 + data) == list(FILES.values())


def test_a_member_behind_4_gib_is_read() -> None:
    """A zip of which the first 5 GiB are a hole."""
    small = zip_bytes({"film.png": b"behind"})
    hole = 5 << 30

    class Far(io.RawIOBase):
        position = 0

        def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
            base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: hole + len(small)}[whence]
            self.position = base + offset
            return self.position

        def tell(self) -> int:
            return self.position

        def read(self, size: int | None = -1) -> bytes:
            size = len(small) if size is None or size < 0 else size
            zeros = bytes(max(min(hole - self.position, size), 0))
            start = max(self.position - hole, 0)
            data = zeros + small[start : start + size - len(zeros)]
            self.position += len(data)
            return data

    (member,) = [one for one in index_zip(Far()) if one.regular]  # type: ignore[arg-type]
    one = ArchiveInput(uri="u", member=member.name, kind="zip", size=member.size, offset=member.offset)
    assert list(read_zip(Far(), [one], max_bytes=100)) == [b"behind"]  # type: ignore[arg-type]


def test_a_unit_reads_its_own_part_of_the_directory_only() -> None:
    many = {f"films/{number:05d}.png": b"film" for number in range(20_000)}
    data = zip_bytes(many, zipfile.ZIP_STORED)
    found = planned(data)[15_000:15_020]
    file = CountingFile(data)
    assert list(read_zip(file, found, max_bytes=100)) == [b"film"] * 20
    directory = len(data) - data.index(b"PK\x01\x02")
    assert directory > 1_000_000
    # The tail of the file, one stretch of the directory, and the members.
    assert file.bytes_read < 450_000
    counting = CountingFile(data)
    scattered = planned(data)[::5000]
    assert len(list(read_zip(counting, scattered, max_bytes=100))) == 4


def test_members_before_a_damaged_directory_entry_are_listed() -> None:
    data = bytearray(zip_bytes(FILES))
    places = [one.offset for one in planned(bytes(data))]
    assert places[4] is not None
    data[places[4] : places[4] + 2] = b"XX"
    found = index_zip(io.BytesIO(bytes(data)))
    assert [next(found).name for _ in range(4)] == list(FILES)[:4]
    with pytest.raises(ContainerTruncated, match="directory"):
        next(found)


def test_an_entry_damaged_since_planning_costs_only_itself() -> None:
    data = bytearray(zip_bytes(FILES))
    inputs = planned(bytes(data))
    assert inputs[2].offset is not None
    data[inputs[2].offset] = 0
    assert [isinstance(item, bytes) for item in read(bytes(data), inputs)] == [True, True, False] + [True] * 3
