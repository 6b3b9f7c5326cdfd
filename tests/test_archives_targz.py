"""Compressed tar: one pass, breaks and checksums, and that neither disk nor memory is filled."""

from __future__ import annotations

import gzip
import io
import random
import tracemalloc

import pytest
from archive_samples import members, tar_bytes

from cxr_ray.archives.inputs import ArchiveInput
from cxr_ray.archives.members import Member
from cxr_ray.archives.targz import index_targz, read_targz
from cxr_ray.errors import ChangedInput, ContainerTruncated, ContainerUnreadable, OversizedInput

FILES = members(30, size=5000)
DATA = tar_bytes(FILES, "w:gz")


class CountingFile(io.BytesIO):
    """Counts the bytes read, and refuses to go back."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.bytes_read = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.bytes_read += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        raise AssertionError("a compressed stream is read front to back")


def index_until_break(data: bytes) -> tuple[list[Member], Exception | None]:
    found = []
    try:
        for member in index_targz(CountingFile(data)):
            found.append(member)
    except (ContainerTruncated, ContainerUnreadable) as error:
        return found, error
    return found, None


def planned(data: bytes = DATA) -> list[ArchiveInput]:
    return [
        ArchiveInput(uri="u", member=m.name, kind="tar.gz", ordinal=m.ordinal, size=m.size)
        for m in index_targz(io.BytesIO(data))
    ]


def test_planning_and_reading_each_take_one_pass() -> None:
    file = CountingFile(DATA)
    assert [member.name for member in index_targz(file)] == list(FILES)
    assert file.bytes_read == len(DATA)
    file = CountingFile(DATA)
    assert list(read_targz(file, planned(), max_bytes=1 << 20)) == list(FILES.values())
    assert file.bytes_read <= len(DATA)


def test_reading_stops_after_the_last_wanted_member() -> None:
    file = CountingFile(DATA)
    assert list(read_targz(file, [planned()[0]], max_bytes=1 << 20)) == [FILES["films/00000.png"]]
    # Not the whole file: gzip reads its input in blocks ahead of what it decompresses.
    assert file.bytes_read < len(DATA) - 8192


def test_a_subset_is_read_in_order() -> None:
    some = planned()[3:30:7]
    assert list(read_targz(io.BytesIO(DATA), some, max_bytes=1 << 20)) == [
        FILES[one.member or ""] for one in some
    ]


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95])
def test_cut_stream(share: float) -> None:
    found, error = index_until_break(DATA[: int(len(DATA) * share)])
    assert [member.name for member in found] == list(FILES)[: len(found)]
    assert abs(len(found) - share * len(FILES)) < 3
    assert isinstance(error, ContainerTruncated)


def test_cut_between_last_member_and_checksum() -> None:
    found, error = index_until_break(DATA[:-4])
    assert len(found) == len(FILES)
    assert isinstance(error, ContainerTruncated)


def test_wrong_checksum_at_the_end_is_reported() -> None:
    found, error = index_until_break(DATA[:-8] + bytes(4) + DATA[-4:])
    assert len(found) == len(FILES)
    assert isinstance(error, ContainerTruncated)
    assert "checksum" in str(error)


def test_damage_in_the_middle_keeps_what_came_before() -> None:
    middle = len(DATA) // 2
    found, error = index_until_break(DATA[:middle] + b"\xff" * 64 + DATA[middle + 64 :])
    assert [member.name for member in found] == list(FILES)[: len(found)]
    assert error is not None


def test_several_gzip_members_are_one_stream() -> None:
    tar = tar_bytes(FILES)
    parts = gzip.compress(tar[:40_000]) + gzip.compress(tar[40_000:])
    assert [member.name for member in index_targz(io.BytesIO(parts))] == list(FILES)


@pytest.mark.timeout(60)
def test_random_damage_never_raises_anything_else() -> None:
    source = random.Random(3)
    for _ in range(100):
        data = bytearray(DATA)
        for _ in range(source.randint(1, 4)):
            data[source.randrange(len(data))] = source.randrange(256)
        index_until_break(bytes(data))
        assert len(list(read_targz(io.BytesIO(bytes(data)), planned(), max_bytes=1 << 20))) == len(FILES)


def test_break_that_planning_did_not_see_is_changed() -> None:
    items = list(read_targz(io.BytesIO(DATA[: len(DATA) // 2]), planned(), max_bytes=1 << 20))
    assert len(items) == len(FILES)
    whole = [item for item in items if isinstance(item, bytes)]
    assert whole == list(FILES.values())[: len(whole)]
    assert all(isinstance(item, ChangedInput) for item in items[len(whole) :])
    assert 10 < len(whole) < 20


def test_another_member_at_the_planned_place_is_changed() -> None:
    other = tar_bytes({name.replace("films", "other"): data for name, data in FILES.items()}, "w:gz")
    items = list(read_targz(io.BytesIO(other), planned(), max_bytes=1 << 20))
    assert [type(item) for item in items] == [ChangedInput] * len(FILES)


def test_memory_stays_at_one_member_and_an_oversized_one_is_never_held() -> None:
    files = {"bomb.png": bytes(200 << 20), "film.png": b"film"}
    data = tar_bytes(files, "w:gz", compresslevel=1)
    files.clear()
    tracemalloc.start()
    inputs = planned(data)
    items = list(read_targz(io.BytesIO(data), inputs, max_bytes=10 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(items[0], OversizedInput)
    assert items[1] == b"film"
    assert peak < 20 << 20
