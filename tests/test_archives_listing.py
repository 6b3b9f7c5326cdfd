"""Listing whole archives: order, exclusion, containers told by their bytes, local and on S3."""

from __future__ import annotations

import fnmatch
import io
import os
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from archive_samples import container_bytes, members, tar_bytes
from s3_server import S3Server

from cxr_ray.archives import s3
from cxr_ray.archives.directory import walk
from cxr_ray.archives.exclude import DEFAULT_EXCLUDE, Exclusion
from cxr_ray.archives.inputs import ArchiveInput
from cxr_ray.archives.listing import ListingReport, check_access, list_archive
from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import ArchiveError

PNG = b"\x89PNG\r\n\x1a\n" + bytes(50)


class Place:
    """A writable folder, local or on S3, and how to list it."""

    def __init__(self, url: str, options: dict[str, Any], fs: Any = None) -> None:
        self.url, self.options, self.fs = url, options, fs

    def put(self, name: str, data: bytes) -> str:
        if self.fs is not None:
            self.fs.pipe(f"{self.url[5:]}/{name}", data)
        else:
            path = Path(self.url) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return f"{self.url}/{name}"

    def listed(self, url: str | None = None, **more: Any) -> list[ArchiveInput]:
        return list(list_archive(open_storage(url or self.url, self.options), **more))

    def names(self, inputs: list[ArchiveInput]) -> list[str]:
        prefix = open_storage(self.url, self.options).url + "/"
        return [one.uri.removeprefix(prefix) + (f"!{one.member}" if one.member else "") for one in inputs]


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "local":
        yield Place(str(tmp_path / "archive"), {})
    else:
        server: S3Server = request.getfixturevalue("s3_server")
        yield Place(f"s3://{server.make_bucket()}/archive", server.storage_options, server.filesystem())


def test_tree_in_order_of_addresses(place: Place) -> None:
    names = ["b.png", "a/z.png", "a.png", "a/b/c.dcm", "a-1/x.png", "a0.png", "noextension", "b/ü é.png"]
    random.Random(0).shuffle(names)
    for name in names:
        place.put(name, PNG)
    found = place.listed()
    assert place.names(found) == sorted(names)
    assert {(one.kind, one.size, one.member, one.failure) for one in found} == {("file", 58, None, None)}
    assert len({one.version for one in found}) >= 1
    assert all(one.version for one in found)
    assert place.listed() == found


def test_left_out_files_are_counted_in_folders_and_containers(place: Place) -> None:
    for name in ("a.png", "notes.TXT", ".hidden.png", ".git/x.png", "__MACOSX/a.png", "x/Thumbs.db", "m.csv"):
        place.put(name, PNG)
    place.put("t.tar", tar_bytes({"./a.png": b"1", "read.me.md": b"2", "__MACOSX/._a.png": b"3"}))
    report = ListingReport()
    assert place.names(place.listed(report=report)) == ["a.png", "t.tar!./a.png"]
    assert (report.listed, report.excluded, report.containers) == (2, 8, 1)
    assert len(place.listed(exclude=())) == 10


def test_only_a_marker_object_is_no_input(s3_server: S3Server) -> None:
    bucket, fs = s3_server.make_bucket(), s3_server.filesystem()
    fs.call_s3("put_object", Bucket=bucket, Key="films/", Body=b"")
    fs.pipe(f"{bucket}/films/empty.png", b"")
    found = list(list_archive(open_storage(f"s3://{bucket}", s3_server.storage_options)))
    assert [(one.uri, one.size) for one in found] == [(f"s3://{bucket}/films/empty.png", 0)]


def test_more_than_one_page_of_keys(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket, fs = s3_server.make_bucket(), s3_server.filesystem()
    fs.pipe({f"{bucket}/{i % 7}/{i:04d}.png": b"x" for i in range(130)})
    monkeypatch.setattr(s3, "PAGE", 50)
    s3_server.clear_log()
    found = list(list_archive(open_storage(f"s3://{bucket}", s3_server.storage_options)))
    assert len(found) == 130
    assert [one.uri for one in found] == sorted(one.uri for one in found)
    # Three pages, however many folders, and none of the objects is touched.
    assert len([one for one in s3_server.requests("GET") if "max-keys=50" in one["query"]]) == 3
    assert s3_server.requests("HEAD", ".png") == []


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
@pytest.mark.parametrize("name", ["x.{kind}", "wrong.bin"])
def test_single_container_is_told_by_its_bytes(place: Place, kind: str, name: str) -> None:
    files = members(3)
    url = place.put(name.format(kind=kind), container_bytes(kind, files))
    found = place.listed(url)
    assert [one.member for one in found] == list(files)
    assert [one.size for one in found] == [len(data) for data in files.values()]
    assert {one.kind for one in found} == {kind}
    assert len({one.version for one in found}) == 1
    assert [one.ordinal for one in found] == [1, 2, 3]
    assert all((one.offset is not None) == (kind != "tar.gz") for one in found)


def test_containers_inside_a_folder(place: Place) -> None:
    files = members(2)
    place.put("1.png", PNG)
    place.put("2.tar", container_bytes("tar", files))
    place.put("3.tgz", container_bytes("tar.gz", files))
    place.put("4.zip", container_bytes("tar", files))  # really a tar
    place.put("5.tar", PNG)  # really an image
    place.put("6.bin", container_bytes("zip", files))  # not named like a container: an input of its own
    found = place.listed()
    assert place.names(found) == [
        "1.png",
        *(f"2.tar!{name}" for name in files),
        *(f"3.tgz!{name}" for name in files),
        *(f"4.zip!{name}" for name in files),
        "5.tar",
        "6.bin",
    ]
    assert [one.kind for one in found] == [
        "file",
        *["tar"] * 2,
        *["tar.gz"] * 2,
        *["tar"] * 2,
        "file",
        "file",
    ]


def test_broken_containers_become_one_row_each(place: Place) -> None:
    files = members(3)
    tar = container_bytes("tar", files)
    place.put("a.tar", tar[: tar.index(files["films/00002.png"]) + 10])
    place.put("b.tgz", container_bytes("tar.gz", files)[:-3000])
    place.put("c.zip", container_bytes("zip", files)[:-30])
    place.put("d.tar", b"junk" * 1000)
    place.put("e.tar.gz", b"\x1f\x8bjunk" * 1000)
    place.put("f.zip", b"junk" * 1000)
    place.put("g.tar", b"")
    found = place.listed()
    failures = [
        (name, one.failure) for name, one in zip(place.names(found), found, strict=True) if one.failure
    ]
    assert failures == [
        ("a.tar", "container_truncated"),
        ("b.tgz", "container_truncated"),
        ("c.zip", "container_truncated"),
        ("d.tar", "container_unreadable"),
        ("e.tar.gz", "container_unreadable"),
        ("f.zip", "container_unreadable"),
        ("g.tar", "container_unreadable"),
    ]
    assert place.names(found)[:3] == ["a.tar!films/00000.png", "a.tar!films/00001.png", "a.tar"]
    assert [one.failure for one in found if one.uri.endswith("b.tgz")][-1] == "container_truncated"
    assert all(one.failure_detail and "/" not in one.failure_detail for one in found if one.failure)


def test_repeated_member_names_get_occurrences(place: Place) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("a.png", "b.png", "a.png", "a.png"):
            entry = tarfile.TarInfo(name)
            entry.size = 1
            archive.addfile(entry, io.BytesIO(b"x"))
    url = place.put("x.tar", buffer.getvalue())
    assert [(i.member, i.occurrence) for i in place.listed(url)] == [
        ("a.png", 0),
        ("b.png", 0),
        ("a.png", 1),
        ("a.png", 2),
    ]


def test_one_image_is_an_archive(place: Place) -> None:
    found = place.listed(place.put("film.txt", PNG))  # named by the user, so never left out
    assert [(one.kind, one.size) for one in found] == [("file", 58)]


def test_empty_folder_lists_nothing(tmp_path: Path) -> None:
    assert list(list_archive(open_storage(str(tmp_path)))) == []


def test_missing_archive_is_one_sentence(place: Place) -> None:
    place.put("a.png", PNG)
    for url in (place.url + "/nope", place.url + "/nope.tar", place.url + "/a.pn"):
        with pytest.raises(ArchiveError, match="There is no archive at") as caught:
            place.listed(url)
        assert str(caught.value).count(". ") == 0


def test_unreachable_bucket_and_refused_access(s3_server: S3Server) -> None:
    with pytest.raises(ArchiveError, match="no archive"):
        check_access(open_storage("s3://no-such-bucket/x", s3_server.storage_options))
    closed = {**s3_server.storage_options, "endpoint_url": "http://127.0.0.1:9"}
    with pytest.raises(ArchiveError, match="no answer"):
        check_access(open_storage("s3://bucket/x", closed))
    bucket = s3_server.make_bucket()
    s3_server.set_faults(1.0, kinds=["403"], match=bucket)
    try:
        with pytest.raises(ArchiveError, match="access denied"):
            check_access(open_storage(f"s3://{bucket}/x", s3_server.storage_options))
    finally:
        s3_server.clear_faults()


def test_listing_survives_a_busy_server(s3_server: S3Server) -> None:
    bucket, fs = s3_server.make_bucket(), s3_server.filesystem()
    fs.pipe(f"{bucket}/a.png", PNG)
    fs.pipe(f"{bucket}/b.tar", tar_bytes(members(3)))
    s3_server.set_faults(0.3, kinds=["503", "500", "truncate"], match=bucket, seed=3)
    try:
        for _ in range(2):
            assert len(list(list_archive(open_storage(f"s3://{bucket}", s3_server.storage_options)))) == 4
    finally:
        assert s3_server.clear_faults() > 0


# -- what only a local disk has ----------------------------------------------------------------------


def test_links(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "sub").mkdir(parents=True)
    outside.mkdir()
    (outside / "film.png").write_bytes(PNG)
    (root / "a.png").symlink_to(outside / "film.png")
    (root / "dead.png").symlink_to(tmp_path / "nothing")
    (root / "linked").symlink_to(outside)
    (root / "sub" / "loop").symlink_to(root)
    os.mkfifo(root / "pipe")
    report = ListingReport()
    found = list(list_archive(open_storage(str(root)), report=report))
    prefix = f"file://{root}/"
    assert [(one.uri.removeprefix(prefix), one.failure) for one in found] == [
        ("a.png", None),
        ("dead.png", "missing"),
        ("linked/film.png", None),
    ]
    assert report.not_regular == 2  # the pipe, and the link back up


def test_folder_without_permission_is_refused_not_skipped(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read every folder")
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(ArchiveError, match="closed"):
        list(list_archive(open_storage(str(tmp_path))))


def test_walk_is_lazy(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(PNG)
    files = walk(open_storage(str(tmp_path)), ListingReport())
    assert next(files).relative == "a/x.png"
    (tmp_path / "b" / "y.png").write_bytes(PNG)
    assert [one.relative for one in files] == ["b/x.png", "b/y.png"]


def test_walk_on_another_filesystem() -> None:
    storage = open_storage("memory://walk-test")
    for name in ("b.png", "a/x.png", "a.png", "c.tar"):
        storage.fs.pipe(f"/walk-test/{name}", tar_bytes(members(2)) if name == "c.tar" else PNG)
    found = list(list_archive(storage))
    assert [one.uri.removeprefix("memory:///walk-test/") for one in found] == [
        "a.png",
        "a/x.png",
        "b.png",
        "c.tar",
        "c.tar",
    ]
    assert all(one.version for one in found)


@pytest.mark.parametrize(
    ("name", "out"),
    [
        ("a.png", False),
        ("./a.png", False),
        ("a.b.csv", True),
        ("A.CSV", True),
        ("csv", False),
        (".a/x.png", True),
        ("x/.a/y.png", True),
        ("x/__macosx/y.png", True),
        ("MACOSX/y.png", False),
        ("dcm_dicomdir", False),
        ("x.md/y.png", False),
    ],
)
def test_default_exclusion(name: str, out: bool) -> None:
    assert Exclusion(DEFAULT_EXCLUDE)(name) is out


def test_own_patterns_are_shell_patterns_of_names_and_of_the_ends_of_paths() -> None:
    source = random.Random(0)
    parts = ["a", "b", "x", ".", "..", "", ".h", "Q.CSV", "z.png", "y1", "e.", "ab", "c.tar.gz"]
    for patterns in [
        DEFAULT_EXCLUDE,
        ("*/x/*", "a*b", "[ab]*.png", "x/*.png", "*.T?T", "x/*/y*"),
        ("A/*",),
        ("*",),
        (),
    ]:
        exclusion = Exclusion(patterns)
        for _ in range(2000):
            path = "/".join(source.choices(parts, k=source.randint(1, 5)))
            plain = [part for part in path.lower().split("/") if part not in ("", ".", "..")]
            expected = any(
                fnmatch.fnmatchcase("/".join(plain), prefix + pattern.lower())
                if "/" in pattern
                else fnmatch.fnmatchcase(plain[-1], pattern.lower())
                for pattern in patterns
                for prefix in ("", "*/")
                if plain
            )
            assert exclusion(path) is expected, (path, patterns)


@pytest.mark.shared
def test_real_odd_files(shared_dir: Path) -> None:
    report = ListingReport()
    found = list(list_archive(open_storage(str(shared_dir / "data" / "raw")), report=report))
    assert len(found) == 54
    assert report.excluded == 1
