"""Inventories: taken at their word without a request per file, and compared as far as they say when read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archive_samples import container_bytes, members
from s3_server import S3Server

from cxr_ray.archives.addresses import manifest_addresses
from cxr_ray.archives.batches import FileBatch
from cxr_ray.archives.inputs import ArchiveInput
from cxr_ray.archives.inventory import moment
from cxr_ray.archives.listing import ListingReport, ManifestOptions, list_archive, list_batches
from cxr_ray.archives.reading import read_inputs
from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import ArchiveError

FILES = members(3)
ETAG = "0123456789abcdef0123456789abcdef"


def listed(path: Path | str, report: ListingReport | None = None, **options: Any) -> list[ArchiveInput]:
    return list(list_archive(open_storage(str(path)), manifest=ManifestOptions(**options), report=report))


def outcomes(inputs: Sequence[ArchiveInput], options: dict[str, Any] | None = None) -> list[str]:
    items = read_inputs(inputs, options)
    return ["read" if isinstance(item, bytes) else item.code for item in items]


def write(folder: Path, text: str) -> Path:
    (folder / "films.csv").write_text(text, encoding="utf-8")
    return folder / "films.csv"


def test_nothing_is_asked_of_the_storage_and_the_order_is_kept(tmp_path: Path) -> None:
    inventory = write(
        tmp_path,
        "uri,size,ETag,patient_id,age,ward\n"
        f's3://nowhere/b.png,20,"""{ETAG}""",P2,63,north\n'
        f"s3://nowhere/a.png,10,{ETAG}-7,P1,,\n"
        ",5,x,,,\n"
        f"s3://nowhere/b.png,20,{ETAG},P2,63,north\n",
    )
    report = ListingReport()
    found = listed(inventory, report, carry=["ward"])
    assert [(one.uri, one.size, one.version) for one in found] == [
        ("s3://nowhere/b.png", 20, ETAG),
        ("s3://nowhere/a.png", 10, f"{ETAG}-7"),
        ("s3://nowhere/b.png", 20, ETAG),  # planning drops it, by its id
    ]
    assert [(one.patient, one.age, one.carry) for one in found[:2]] == [
        ("P2", "63", (("ward", "north"),)),
        ("P1", None, ()),
    ]
    assert (report.listed, report.rows_without_uri, report.loose_versions) == (3, 1, 0)
    (batch,) = list_batches(open_storage(str(inventory)))
    assert isinstance(batch, FileBatch)


def test_parquet_types(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"film")
    os.utime(tmp_path / "a.png", (1_700_000_000, 1_700_000_000))
    table = pa.table(
        {
            "path": pa.array(["a.png"]).dictionary_encode(),
            "size": pa.array([4], pa.int32()),
            "last_modified": pa.array([1_700_000_000_000], pa.timestamp("ms", "UTC")),
            "patient": pa.array([7]),
        }
    )
    pq.write_table(table, tmp_path / "films.parquet")
    (one,) = listed(tmp_path / "films.parquet")
    assert (one.uri, one.version, one.patient) == (f"file://{tmp_path}/a.png", "size=4 time=1700000000", "7")
    assert outcomes([one]) == ["read"]


@pytest.mark.parametrize("exact", ["ns", "find", "seconds", "size"])
def test_local_files_are_compared_as_exactly_as_the_inventory_says(tmp_path: Path, exact: str) -> None:
    names = ["same.png", "gone.png", "longer.png", "later.png", "moment.png"]
    rows = []
    for name in names:
        (tmp_path / name).write_bytes(b"film")
        nanoseconds = os.stat(tmp_path / name).st_mtime_ns
        seconds, rest = divmod(nanoseconds, 10**9)
        time = {"ns": nanoseconds, "find": f"{seconds}.{rest:09d}0", "seconds": seconds, "size": "yesterday"}
        rows.append(f"{name},4,{time[exact]}\n")
    report = ListingReport()
    found = listed(write(tmp_path, "uri,size,mtime\n" + "".join(rows)), report)
    assert report.loose_versions == (0 if exact in ("ns", "find") else 5)
    (tmp_path / "gone.png").unlink()
    (tmp_path / "longer.png").write_bytes(b"longer")
    (tmp_path / "later.png").write_bytes(b"FILM")
    old = os.stat(tmp_path / "later.png").st_mtime_ns
    os.utime(tmp_path / "later.png", ns=(old + 10**10, old + 10**10))
    (tmp_path / "moment.png").write_bytes(b"FILM")
    old = os.stat(tmp_path / "same.png").st_mtime_ns
    other = old + 1 if (old + 1) // 10**9 == old // 10**9 else old - 1
    os.utime(tmp_path / "moment.png", ns=(other, other))
    later = "read" if exact == "size" else "changed"
    moment_ = "changed" if exact in ("ns", "find") else "read"
    assert outcomes(found)[:4] == ["read", "missing", "changed", later]
    if os.stat(tmp_path / "same.png").st_mtime_ns // 10**9 == other // 10**9:
        assert outcomes(found)[4] == moment_


def test_s3_objects_by_etag_or_by_size(s3_server: S3Server, tmp_path: Path) -> None:
    bucket, fs = s3_server.make_bucket(), s3_server.filesystem()
    names = ["same.png", "gone.png", "other.png", "sized.png", "resized.png", "lying.png"]
    fs.pipe({f"{bucket}/{name}": b"film" for name in names})
    etag = {name: fs.info(f"{bucket}/{name}")["ETag"].strip('"') for name in names}
    etag["sized.png"] = etag["resized.png"] = "a-version-id"
    rows = [f"{name},{5 if name == 'lying.png' else 4},{etag[name]}\n" for name in names]
    fs.pipe(f"{bucket}/films.csv", ("uri,size,version\n" + "".join(rows)).encode())
    before = len(s3_server.requests())
    report = ListingReport()
    storage = open_storage(f"s3://{bucket}/films.csv", s3_server.storage_options)
    found = list(list_archive(storage, report=report))
    assert not [one for one in s3_server.requests()[before:] if ".png" in str(one)]
    assert report.loose_versions == 2
    fs.rm_file(f"{bucket}/gone.png")
    fs.pipe(
        {f"{bucket}/other.png": b"FILM", f"{bucket}/sized.png": b"FILM", f"{bucket}/resized.png": b"FILMS"}
    )
    assert outcomes(found, s3_server.storage_options) == [
        "read", "missing", "changed", "read", "changed", "changed",
    ]  # fmt: skip


def test_containers_are_opened_in_their_place(tmp_path: Path) -> None:
    for kind in ("tar", "tar.gz", "zip"):
        (tmp_path / f"box.{kind}").write_bytes(container_bytes(kind, {**FILES, "notes.txt": b"x"}))
    rows = ["a.png", "box.zip", "b.png", "c.png", "gone.tar", "BOX.TAR", "box.tar.gz", "d.png"]
    text = "uri,size,etag,label\n" + "".join(f"{name},1,x,of {name}\n" for name in rows)
    found = listed(write(tmp_path, text))
    names = list(FILES)
    assert [(one.uri.rsplit("/", 1)[1], one.member, one.failure) for one in found] == [
        ("a.png", None, None),
        *[("box.zip", name, None) for name in names],
        ("b.png", None, None),
        ("c.png", None, None),
        ("gone.tar", None, "missing"),
        ("BOX.TAR", None, "missing"),
        *[("box.tar.gz", name, None) for name in names],
        ("d.png", None, None),
    ]
    assert found[1].label == "of box.zip"
    whole = listed(write(tmp_path, "uri\nbox.zip\n"))
    assert [one.version for one in found[1:4]] == [one.version for one in whole]


def test_what_is_an_inventory(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"film")
    asked = f"{4}-{os.stat(tmp_path / 'a.png').st_mtime_ns}"
    for header, row, options, version in [
        ("uri,size,etag", "a.png,9,x", {}, "size=9"),
        ("uri,size,etag", "a.png,9,x", {"inventory": False}, asked),
        ("uri,size", "a.png,9", {}, asked),
        ("uri,etag", "a.png,x", {}, asked),
        ("uri,bytes,etag", "a.png,9,x", {"columns": {"size": "bytes"}}, "size=9"),
        ("uri,size,etag,member", "a.png,9,x,", {}, asked),
        ("uri,size,version", "a.png,big,x", {"inventory": False}, asked),
    ]:
        (one,) = listed(write(tmp_path, f"{header}\n{row}\n"), **options)
        assert one.version == version, header
    with pytest.raises(ArchiveError, match="needs columns size and etag"):
        listed(write(tmp_path, "uri,size\na.png,9\n"), inventory=True)


@pytest.mark.parametrize("size", ["12 kB", "1.5", "-3"])
def test_a_size_that_is_no_number_of_bytes_is_refused(tmp_path: Path, size: str) -> None:
    with pytest.raises(ArchiveError, match=r"whole numbers of bytes.*manifest.inventory=false"):
        listed(write(tmp_path, f"uri,size,etag\na.png,{size},x\n"))


def test_a_row_without_size_is_looked_at_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"film")
    (one,) = listed(write(tmp_path, "uri,size,etag\na.png,,\n"))
    assert (one.size, one.version) == (None, None)
    assert outcomes([one]) == ["read"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1700000000", (1_700_000_000, None)),
        ("1700000000.25", (1_700_000_000, None)),
        ("1700000000.1234567890", (1_700_000_000, 1_700_000_000_123_456_789)),
        ("1700000000123", (1_700_000_000, None)),
        ("1700000000123456", (1_700_000_000, None)),
        ("1700000000123456789", (1_700_000_000, 1_700_000_000_123_456_789)),
        ("2023-11-14T22:13:20Z", (1_700_000_000, None)),
        ("2023-11-14T22:13:20.900Z", (1_700_000_000, None)),
        ("2023-11-14 23:13:20+01:00", (1_700_000_000, None)),
        ("2023-11-14 22:13:20", (1_700_000_000, None)),
        ("yesterday", (None, None)),
        ("", (None, None)),
        (None, (None, None)),
    ],
)
def test_times(text: str | None, found: tuple[int | None, int | None]) -> None:
    assert moment(text) == found


@pytest.mark.parametrize("root", [None, "/other/", "s3://bucket/films", "http://host/x"])
def test_addresses_by_column_are_those_one_by_one(root: str | None) -> None:
    addresses = manifest_addresses(open_storage("/data/films.csv"), root)
    written = [
        "a.png", "x/b.png", " s3://b/k/x.png ", "s3://b/k/", "s3://b//x.png", "s3a://b/x", "/abs/x.png",
        "/abs/../x.png", "~/x.png", "file:///a/b.png", "file:///a/../b.png", "./a.png", "a//b.png", "a/", "..",
        "a/..b/c.png", "a/b..", "/a/b/.", "x.png\\x41", "http://h/x.png", "\u00e9/\u00fc.png", "/", "a\nb.png",
    ]  # fmt: skip
    one_by_one = [addresses.resolve(text.strip()) for text in written]
    assert addresses.canonical(pa.array(written)).to_pylist() == one_by_one
    assert addresses.canonical(pa.array(["", None, "  "])).to_pylist() == [None, None, None]
