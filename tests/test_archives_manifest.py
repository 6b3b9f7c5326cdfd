"""Manifests: what a row may name, what it says about it, and what a bad manifest answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archive_samples import container_bytes, members
from s3_server import S3Server

from cxr_ray.archives.inputs import ArchiveInput
from cxr_ray.archives.listing import ListingReport, ManifestOptions, list_archive
from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import ArchiveError

FILES = members(4)


def listed(manifest: Path, report: ListingReport | None = None, **options: Any) -> list[ArchiveInput]:
    storage = open_storage(str(manifest))
    return list(list_archive(storage, manifest=ManifestOptions(**options), report=report))


def write(folder: Path, text: str, name: str = "films.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.png").write_bytes(b"film a")
    (tmp_path / "sub" / "b, c.png").write_bytes(b"film b")
    for kind in ("tar", "tar.gz", "zip"):
        (tmp_path / f"box.{kind}").write_bytes(container_bytes(kind, {**FILES, "notes.txt": b"x"}))
    return tmp_path


def test_columns_aliases_and_carry(folder: Path) -> None:
    manifest = write(
        folder,
        "\ufeffFile,patient_id,Study,label,view,sex,age,ward,note\r\n"
        'a.png,007,S1,covid,PA,F,63,north,"line one\nline two"\r\n'
        '"sub/b, c.png",8,,,,,,,\r\n',
    )
    a, b = listed(manifest, carry=["ward", "note"])
    assert (a.uri, a.size) == (f"file://{folder}/a.png", 6)
    assert (a.patient, a.study, a.label, a.view, a.sex, a.age) == ("007", "S1", "covid", "PA", "F", "63")
    assert a.carry == (("ward", "north"), ("note", "line one\nline two"))
    assert (b.patient, b.study, b.label, b.carry) == ("8", None, None, ())
    assert b.version is not None


def test_own_column_names_and_root(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("lists")
    manifest = write(elsewhere, "img;who;path\nsub/../a.png;p1;ignored\n")
    (one,) = listed(manifest, columns={"uri": "img", "patient": "who"}, root=str(folder))
    assert (one.uri, one.patient, one.failure) == (f"file://{folder}/a.png", "p1", None)


def test_absolute_addresses(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    manifest = write(tmp_path_factory.mktemp("lists"), f"uri\n{folder}/a.png\nfile://{folder}/box.zip\n")
    found = listed(manifest)
    assert [one.kind for one in found] == ["file", *["zip"] * 4]


def test_parquet_of_any_scalar_types(folder: Path) -> None:
    table = pa.table(
        {
            "uri": pa.array(["a.png", "sub/b, c.png"]).dictionary_encode(),
            "patient": pa.array([7, 8], pa.int64()),
            "age": pa.array([63, None], pa.int16()),
        }
    )
    pq.write_table(table, folder / "films.parquet")
    found = listed(folder / "films.parquet")
    assert [(one.patient, one.age) for one in found] == [("7", "63"), ("8", None)]


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_members_come_in_the_order_of_their_container(folder: Path, kind: str) -> None:
    names = list(FILES)
    manifest = write(
        folder,
        "uri,member,label\n"
        f"box.{kind},{names[3]},d\n"
        f"a.png,,film\n"
        f"box.{kind},gone.png,x\n"
        f"box.{kind},./{names[1]},b\n",
    )
    report = ListingReport()
    found = listed(manifest, report)
    assert [(one.member, one.label, one.failure) for one in found] == [
        (None, "film", None),
        (names[1], "b", None),
        (names[3], "d", None),
        ("gone.png", "x", "missing"),
    ]
    whole = {one.member: one for one in list_archive(open_storage(str(folder / f"box.{kind}")))}
    assert (found[1].offset, found[1].ordinal) == (whole[names[1]].offset, whole[names[1]].ordinal)
    assert (report.listed, report.excluded, report.containers) == (4, 0, 1)


def test_whole_container_and_single_members_together(folder: Path) -> None:
    names = list(FILES)
    manifest = write(folder, f"uri,member,label\nbox.tar,,rest\nbox.tar,{names[2]},this\n")
    report = ListingReport()
    found = listed(manifest, report)
    assert [(one.member, one.label) for one in found] == [
        (name, "this" if name == names[2] else "rest") for name in names
    ]
    assert report.excluded == 1  # notes.txt


def test_a_member_named_by_the_user_is_never_left_out(folder: Path) -> None:
    manifest = write(folder, "uri,member\nbox.tar,notes.txt\n")
    assert [(one.member, one.failure) for one in listed(manifest)] == [("notes.txt", None)]


def test_missing_files_and_containers(folder: Path) -> None:
    manifest = write(folder, "uri,member\nnope.png,\nnope.tar,a.png\nnope.tar,b.png\nnope.zip,\nsub,\n")
    # A folder is no file: naming it is as good as naming nothing.
    assert [(one.uri.rsplit("/", 1)[1], one.member, one.failure) for one in listed(manifest)] == [
        ("nope.png", None, "missing"),
        ("nope.tar", "a.png", "missing"),
        ("nope.tar", "b.png", "missing"),
        ("nope.zip", None, "missing"),
        ("sub", None, "missing"),
    ]


def test_broken_containers(folder: Path) -> None:
    names = list(FILES)
    (folder / "cut.tar").write_bytes(container_bytes("tar", FILES)[:5000])
    (folder / "junk.zip").write_bytes(b"junk" * 100)
    manifest = write(
        folder,
        f"uri,member\ncut.tar,{names[0]}\ncut.tar,{names[3]}\njunk.zip,x.png\na.png,member.png\n",
    )
    assert [(one.uri.rsplit("/", 1)[1], one.member, one.failure) for one in listed(manifest)] == [
        ("a.png", "member.png", "container_unreadable"),
        ("cut.tar", names[0], None),
        ("cut.tar", names[3], "container_truncated"),
        ("junk.zip", "x.png", "container_unreadable"),
    ]
    whole = write(folder, "uri\ncut.tar\n", "whole.csv")
    assert [(one.member, one.failure) for one in listed(whole)] == [
        (names[0], None),
        (None, "container_truncated"),
    ]


def test_repeated_and_empty_rows_are_counted(folder: Path) -> None:
    manifest = write(
        folder,
        "uri,member,label\na.png,,first\n,,none\n./a.png,,second\n"
        "box.tar,films/00000.png,x\nbox.tar,films/00000.png,y\n",
    )
    report = ListingReport()
    found = listed(manifest, report)
    assert [one.label for one in found] == ["first", "x"]
    assert (report.repeated_rows, report.rows_without_uri, report.listed) == (2, 1, 2)


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("name,patient\nx,1\n", {}, "Columns found: name, patient"),
        ("uri,patient\na.png,1\n", {"columns": {"patient": "mrn"}}, "has no column 'mrn'"),
        ("uri,patient\na.png,1\n", {"columns": {"pateint": "patient"}}, "Unknown manifest column"),
        ("uri,patient\na.png,1\n", {"carry": ["ward"]}, "has no column 'ward'"),
        ("uri,uri\na.png,1\n", {}, "more than one column 'uri'"),
        ("uri,patient\na.png,Jane Doe,3,4\n", {}, "as many fields"),
        ("", {}, "Columns found: none"),
    ],
)
def test_bad_manifest(folder: Path, text: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ArchiveError, match=says) as caught:
        listed(write(folder, text), **options)
    assert "Jane" not in str(caught.value)


def test_no_table_at_all(folder: Path) -> None:
    (folder / "x.parquet").write_bytes(b"no parquet")
    (folder / "x.csv").write_bytes(b"uri\n\xff\xfe\xfd.png\n")
    for name in ("x.parquet", "x.csv"):
        with pytest.raises(ArchiveError, match="cannot be read"):
            listed(folder / name)


def test_options_for_what_is_no_manifest(folder: Path) -> None:
    with pytest.raises(ArchiveError, match="Manifest options"):
        list(list_archive(open_storage(str(folder)), manifest=ManifestOptions()))


def test_manifest_on_s3_and_a_local_one_that_names_s3(s3_server: S3Server, tmp_path: Path) -> None:
    bucket, fs = s3_server.make_bucket(), s3_server.filesystem()
    fs.pipe({f"{bucket}/a.png": b"film", f"{bucket}/box.tgz": container_bytes("tar.gz", FILES)})
    text = f"uri,member,label\na.png,,x\nbox.tgz,{list(FILES)[2]},y\nnope.png,,z\n"
    fs.pipe(f"{bucket}/films.csv", text.encode())
    there = list(list_archive(open_storage(f"s3://{bucket}/films.csv", s3_server.storage_options)))
    assert [(one.uri, one.label, one.failure) for one in there] == [
        (f"s3://{bucket}/a.png", "x", None),
        (f"s3://{bucket}/box.tgz", "y", None),
        (f"s3://{bucket}/nope.png", "z", "missing"),
    ]
    here = write(tmp_path, text.replace("\na.png", f"\ns3://{bucket}/a.png"))
    storage = open_storage(str(here), s3_server.storage_options)
    found = list(list_archive(storage, manifest=ManifestOptions(root=f"s3://{bucket}")))
    assert found == there


@pytest.mark.shared
def test_real_manifest(shared_dir: Path) -> None:
    data = shared_dir / "data"
    columns = {"uri": "file", "patient": "patient_id"}
    found = listed(data / "cls" / "manifest.csv", columns=columns, root=str(data), carry=["source"])
    assert len(found) == 1931
    assert not [one for one in found if one.failure]
    assert all(one.label and one.carry for one in found)
    assert len({one.patient for one in found}) > 1000
