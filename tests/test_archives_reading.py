"""Reading planned inputs back: bytes, order, what changed since, and the storage's own failures."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from archive_samples import container_bytes, members
from s3_server import S3Server

from cxr_ray.archives import containers, fetch
from cxr_ray.archives.fetch import RangeFile, facts
from cxr_ray.archives.inputs import ArchiveInput
from cxr_ray.archives.listing import list_archive
from cxr_ray.archives.reading import read_inputs
from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import (
    ChangedInput,
    ContainerTruncated,
    InputError,
    MissingInput,
    OversizedInput,
    StorageReadError,
)

FILES = members(12)
NAMES = {"file": "", "tar": "box.tar", "tar.gz": "box.tar.gz", "zip": "box.zip"}
Item = bytes | InputError


class Place:
    """An archive of one kind with FILES in it, local or on S3."""

    def __init__(self, url: str, kind: str, options: dict[str, Any], fs: Any) -> None:
        self.root, self.kind, self.options, self.fs = url, kind, options, fs
        self.put(FILES)
        self.planned = list(list_archive(open_storage(self.url, options)))

    @property
    def url(self) -> str:
        return f"{self.root}/{NAMES[self.kind]}".rstrip("/")

    def put(self, files: dict[str, bytes]) -> None:
        if self.kind == "file":
            for name, data in files.items():
                self.write(f"{self.root}/{name}", data)
        else:
            self.write(self.url, container_bytes(self.kind, files))

    def write(self, url: str, data: bytes) -> None:
        path = url.removeprefix("s3://")
        if self.fs is None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(data)
        else:
            self.fs.pipe(path, data)

    def remove(self, url: str) -> None:
        path = url.removeprefix("s3://").removeprefix("file://")
        if self.fs is None:
            os.remove(path)
        else:
            self.fs.rm(path)

    def read(self, inputs: Sequence[ArchiveInput] | None = None, **more: Any) -> list[Item]:
        return list(read_inputs(self.planned if inputs is None else inputs, self.options, **more))


def make(request: pytest.FixtureRequest, tmp_path: Path, where: str, kind: str) -> Place:
    if where == "local":
        return Place(str(tmp_path / "archive"), kind, {}, None)
    server: S3Server = request.getfixturevalue("s3_server")
    return Place(f"s3://{server.make_bucket()}/archive", kind, server.storage_options, server.filesystem())


@pytest.fixture(params=[f"{where} {kind}" for where in ("local", "s3") for kind in NAMES])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    where, kind = request.param.split()
    return make(request, tmp_path, where, kind)


def test_all_some_and_too_large(place: Place) -> None:
    values = list(FILES.values())
    assert place.read() == values
    assert place.read(place.planned[2:9:3]) == values[2:9:3]
    limited = place.read(max_bytes=3200)
    assert [item for item in limited if isinstance(item, bytes)] == [v for v in values if len(v) <= 3200]
    assert {type(item) for item in limited} == {bytes, OversizedInput}


def test_changed_since_planning(place: Place) -> None:
    place.put(members(12, size=3000, seed=9))  # same names and sizes, other bytes
    assert [type(item) for item in place.read()] == [ChangedInput] * 12
    place.put(members(5, size=100))
    assert all(isinstance(item, ChangedInput) for item in place.read()[:5])


def test_missing_since_planning(place: Place) -> None:
    place.remove(place.planned[3].uri)
    items = place.read()
    missing = [i for i, item in enumerate(items) if isinstance(item, MissingInput)]
    assert missing == ([3] if place.kind == "file" else list(range(12)))
    assert all("/" not in str(item) for item in items if isinstance(item, InputError))


def test_known_failures_are_yielded_without_reading(tmp_path: Path) -> None:
    film = tmp_path / "a.png"
    film.write_bytes(b"film")
    (good,) = list_archive(open_storage(str(film)))
    uri = "s3://nowhere/x.tar"
    bad = ArchiveInput(uri=uri, kind="tar", failure="container_truncated", failure_detail="It breaks off.")
    items = list(read_inputs([good, bad, good]))
    assert items[0] == items[2] == b"film"
    assert isinstance(items[1], ContainerTruncated)
    assert str(items[1]) == "It breaks off."


def test_missing_root_is_no_missing_input(tmp_path: Path) -> None:
    root = tmp_path / "mount"
    root.mkdir()
    for name in ("a.png", "b.png"):
        (root / name).write_bytes(b"x")
    planned = list(list_archive(open_storage(str(root))))
    (root / "a.png").unlink()
    assert [type(item) for item in read_inputs(planned, root=str(root))] == [MissingInput, bytes]
    (root / "b.png").unlink()  # what an unmounted disk leaves behind
    with pytest.raises(StorageReadError, match="mounted"):
        list(read_inputs(planned, root=str(root)))
    shutil.rmtree(root)
    with pytest.raises(StorageReadError, match="mounted"):
        list(read_inputs(planned, root=str(root)))


# -- requests on S3 ----------------------------------------------------------------------------------


def test_requests_per_input(request: pytest.FixtureRequest, tmp_path: Path, s3_server: S3Server) -> None:
    """A file costs one GET; a tar's neighbours share one; zip and tar.gz one HEAD and windows."""
    counts = {}
    for kind in NAMES:
        place = make(request, tmp_path, "s3", kind)
        s3_server.clear_log()
        assert place.read() == list(FILES.values())
        log = s3_server.requests()
        counts[kind] = [sum(one["method"] == method for one in log) for method in ("HEAD", "GET")]
    assert counts["file"] == [0, 12]
    assert counts["tar"] == [0, 1]
    assert counts["tar.gz"] == [1, 1]
    assert counts["zip"][0] == 1
    assert counts["zip"][1] <= 3


def test_targz_is_downloaded_once_at_planning_and_once_at_reading(
    request: pytest.FixtureRequest, tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "WINDOW", 4096)
    monkeypatch.setattr(containers, "HEAD", 1000)
    place = make(request, tmp_path, "s3", "tar.gz")
    storage = open_storage(place.url, place.options)
    size = facts(storage, storage.path).size
    assert size > 5 * 4096

    def downloaded() -> int:
        return sum(one["bytes"] for one in s3_server.requests("GET", "box.tar.gz"))

    s3_server.clear_log()
    assert len(list(list_archive(storage))) == len(FILES)
    assert downloaded() == size + 1000  # and its beginning once more, to see what it is
    s3_server.clear_log()
    assert place.read() == list(FILES.values())
    assert downloaded() <= size


def test_tar_is_read_in_ranges_not_whole(
    request: pytest.FixtureRequest, tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make(request, tmp_path, "s3", "tar")
    s3_server.clear_log()
    assert place.read([place.planned[7]]) == [FILES["films/00007.png"]]
    (one,) = s3_server.requests("GET")
    assert one["bytes"] == len(FILES["films/00007.png"])


@pytest.mark.parametrize("kind", list(NAMES))
def test_busy_server_and_broken_bodies(
    request: pytest.FixtureRequest, tmp_path: Path, s3_server: S3Server, kind: str
) -> None:
    place = make(request, tmp_path, "s3", kind)
    bucket = place.root.split("/")[2]
    s3_server.set_faults(0.3, kinds=["503", "truncate"], match=bucket, seed=1)
    try:
        assert place.read() == list(FILES.values())
    finally:
        s3_server.clear_faults()


@pytest.mark.parametrize("kind", list(NAMES))
def test_refused_access_is_the_storages_failure(
    request: pytest.FixtureRequest, tmp_path: Path, s3_server: S3Server, kind: str
) -> None:
    place = make(request, tmp_path, "s3", kind)
    s3_server.set_faults(1.0, kinds=["403"], match=place.root.split("/")[2])
    try:
        with pytest.raises(StorageReadError, match="access denied") as caught:
            place.read()
        assert "box" not in str(caught.value)
    finally:
        s3_server.clear_faults()


def test_a_change_between_two_windows_is_changed(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "WINDOW", 4096)
    place = make(request, tmp_path, "s3", "tar.gz")
    items = read_inputs(place.planned, place.options)
    assert next(items) == FILES["films/00000.png"]
    place.put(members(12, seed=4))
    rest = list(items)
    assert isinstance(rest[-1], ChangedInput)
    kept = [item for item in rest if isinstance(item, bytes)]
    assert kept == list(FILES.values())[1 : 1 + len(kept)]


def test_range_file_reads_like_a_file(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "WINDOW", 1000)
    bucket, data = s3_server.make_bucket(), members(1, size=10_000)["films/00000.png"]
    s3_server.filesystem().pipe(f"{bucket}/x", data)
    storage = open_storage(f"s3://{bucket}/x", s3_server.storage_options)
    for prefetch in (False, True):
        with RangeFile(storage, storage.path, facts(storage, storage.path), prefetch=prefetch) as file:
            assert file.read(10) == data[:10]
            assert file.seek(9_990) == 9_990
            assert file.read(100) == data[9_990:]
            assert file.read(1) == b""
            file.seek(-500, os.SEEK_END)
            assert file.read() == data[-500:]
            file.seek(900)
            assert file.read(3000) == data[900:3900]
            file.seek(0)
            assert b"".join(iter(lambda: file.read(777), b"")) == data


@pytest.mark.parametrize(("size", "most_requests", "most_bytes"), [(2_000, 14, 1.1), (60_000, 32, 0.2)])
def test_indexing_a_tar_reads_on_over_small_members_and_jumps_over_large_ones(
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    most_requests: int,
    most_bytes: float,
) -> None:
    monkeypatch.setattr(fetch, "WINDOW", 10_000)
    monkeypatch.setattr(fetch, "FIRST_WINDOW", 1024)
    monkeypatch.setattr(containers, "HEAD", 512)
    bucket, data = s3_server.make_bucket(), container_bytes("tar", members(25, size=size))
    s3_server.filesystem().pipe(f"{bucket}/box.tar", data)
    s3_server.clear_log()
    assert len(list(list_archive(open_storage(f"s3://{bucket}/box.tar", s3_server.storage_options)))) == 25
    log = s3_server.requests("GET", "box.tar")
    assert len(log) <= most_requests
    assert sum(one["bytes"] for one in log) <= most_bytes * len(data)


def test_other_filesystems() -> None:
    storage = open_storage("memory://reading-test")
    for kind, name in NAMES.items():
        if name:
            storage.fs.pipe(f"/reading-test/{name}", container_bytes(kind, FILES))
    storage.fs.pipe("/reading-test/a.png", b"film")
    planned = list(list_archive(storage))
    # A memory filesystem is shared by all its instances within one process.
    items = list(read_inputs(planned))
    assert items == [b"film", *list(FILES.values()) * 3]
    changed = [dataclasses.replace(one, version="other") for one in planned]
    assert {type(item) for item in read_inputs(changed)} == {ChangedInput}


@pytest.mark.shared
def test_real_files_in_every_container(shared_dir: Path, tmp_path: Path) -> None:
    raw = sorted((shared_dir / "data" / "raw").iterdir())[:12]
    films = {path.name: path.read_bytes() for path in raw}
    for kind in ("tar", "tar.gz", "zip"):
        box = tmp_path / NAMES[kind]
        box.write_bytes(container_bytes(kind, films))
        planned = list(list_archive(open_storage(str(box))))
        assert list(read_inputs(planned)) == list(films.values())
