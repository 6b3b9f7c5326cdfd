"""Tar: the index against tarfile, and every way a tar can break."""

from __future__ import annotations

import io
import random
import tarfile

import pytest
from archive_samples import members, tar_bytes

from cxr_ray.archives.members import Member
from cxr_ray.archives.tar import ForwardReader, index_tar
from cxr_ray.errors import ContainerTruncated, ContainerUnreadable


def cut(data: bytes, member: Member) -> bytes:
    assert member.offset is not None
    return data[member.offset : member.offset + member.size]


def index(data: bytes, *, stream: bool = False) -> list[Member]:
    return list(index_tar(ForwardReader(io.BytesIO(data), None if stream else len(data))))


def index_until_break(data: bytes, *, stream: bool = False) -> tuple[list[Member], Exception | None]:
    found = []
    try:
        for member in index_tar(ForwardReader(io.BytesIO(data), None if stream else len(data))):
            found.append(member)
    except (ContainerTruncated, ContainerUnreadable) as error:
        return found, error
    return found, None


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("stream", [False, True])
def test_offsets_and_names(tar_format: int, stream: bool) -> None:
    files = members(20)
    if tar_format != tarfile.USTAR_FORMAT:
        files["long/" * 40 + "ü" * 70 + ".png"] = b"long name"
    data = tar_bytes(files, format=tar_format)
    found = index(data, stream=stream)
    assert {member.name: cut(data, member) for member in found} == files
    assert [member.ordinal for member in found] == list(range(1, len(files) + 1))  # 0 is the folder


def test_links_and_devices_are_no_regular_members() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in [("a", tarfile.SYMTYPE), ("b", tarfile.LNKTYPE), ("c", tarfile.FIFOTYPE)]:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
        entry = tarfile.TarInfo("film.png")
        entry.size = 3
        archive.addfile(entry, io.BytesIO(b"abc"))
    found = index(buffer.getvalue())
    assert [(member.name, member.regular, member.size) for member in found] == [
        ("a", False, 0),
        ("b", False, 0),
        ("c", False, 0),
        ("film.png", True, 3),
    ]


def test_empty_tar_has_no_members() -> None:
    assert index(bytes(10240)) == []


@pytest.mark.parametrize("stream", [False, True])
def test_every_cut_yields_whole_members_and_one_break(stream: bool) -> None:
    files = members(4, size=700)
    data = tar_bytes(files)
    whole = index(data)
    end_marker = -(-(whole[-1].offset + whole[-1].size) // 512) * 512  # type: ignore[operator]
    for cut in range(512, end_marker + 512, 128):
        found, error = index_until_break(data[:cut], stream=stream)
        expected = [member for member in whole if member.offset + member.size <= cut]  # type: ignore[operator]
        assert found == expected, cut
        assert isinstance(error, ContainerTruncated), cut
    assert index_until_break(data[: end_marker + 512])[1] is None  # one block of zeros is an end


@pytest.mark.parametrize("data", [b"", b"x", b"no tar at all" * 100, bytes(100), b"\xff" * 2000])
def test_no_tar(data: bytes) -> None:
    found, error = index_until_break(data)
    assert found == []
    assert isinstance(error, ContainerUnreadable)


def test_damaged_header_in_the_middle_is_not_taken_for_the_end() -> None:
    files = members(6)
    data = bytearray(tar_bytes(files))
    third = index(bytes(data))[2]
    data[third.offset - 512 + 10] ^= 0xFF  # type: ignore[operator]
    found, error = index_until_break(bytes(data))
    assert [member.name for member in found] == list(files)[:2]
    assert isinstance(error, ContainerTruncated)


@pytest.mark.parametrize("size", [-512, -10_000, 1 << 62])
def test_hostile_size_ends_the_listing(size: int) -> None:
    data = bytearray(tar_bytes(members(3)))
    second = index(bytes(data))[1]
    start = second.offset - 512  # type: ignore[operator]
    header = tarfile.TarInfo("evil.png")
    header.size = size
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    data[start : start + 512] = block[:512]
    found, error = index_until_break(bytes(data))
    assert [member.name for member in found] == ["films/00000.png"]
    assert isinstance(error, ContainerTruncated)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE])
@pytest.mark.parametrize("size", [-512, 1 << 40])
def test_hostile_extended_header(kind: bytes, size: int) -> None:
    header = tarfile.TarInfo("evil.png")
    header.size, header.type = size, kind
    data = tar_bytes(members(1))[:-10240] + header.tobuf(tarfile.GNU_FORMAT)[:512] + bytes(4096)
    found, error = index_until_break(data)
    assert len(found) <= 1
    assert error is not None or not any(member.name == "evil.png" and member.regular for member in found)


@pytest.mark.timeout(60)
def test_random_damage_never_raises_anything_else_and_ends() -> None:
    source = random.Random(1)
    clean = tar_bytes(members(4, size=600), format=tarfile.PAX_FORMAT)
    for _ in range(600):
        data = bytearray(clean)
        for _ in range(source.randint(1, 8)):
            data[source.randrange(len(data))] = source.randrange(256)
        found, _ = index_until_break(bytes(data), stream=source.random() < 0.5)
        assert all(member.offset + member.size <= len(data) for member in found)  # type: ignore[operator]
