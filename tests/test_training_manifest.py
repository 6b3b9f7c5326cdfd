"""The training manifest: what is read, what is refused in one sentence, and that raw identifiers stay inside."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from training_material import write_manifest

from cxr_ray.archives.addresses import Addresses
from cxr_ray.archives.exclude import ListingReport
from cxr_ray.archives.manifest_table import ManifestOptions, read_rows
from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import TrainingDataError
from cxr_ray.pipeline.privacy import Privacy
from training.data.example import Example
from training.data.labels import check_classes
from training.data.manifest import ManifestSettings, manifest_root, read_manifest

CLASSES = {"covid": "Covid+", "noncovid": "Covid-"}
ROW = {"file": "a.png", "label": "covid", "patient_id": "Doe^John", "group": "", "age": "58", "pediatric": ""}


def read(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> list[Example]:
    path = write_manifest(folder / "manifest.csv", rows)
    return read_manifest(ManifestSettings(path=str(path), **settings))


def refusal(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> str:
    with pytest.raises(TrainingDataError) as caught:
        read(folder, rows, **settings)
    message = str(caught.value)
    assert "Doe" not in message
    assert "\n" not in message
    return message


def test_only_file_is_needed(tmp_path: Path) -> None:
    (only,) = read(tmp_path, [{"file": "films/a.png"}])
    assert (only.id, only.group, only.group_key, only.row) == ("films/a.png", "films/a.png", "row 1", 1)
    assert only.label is only.patient_key is only.pediatric is only.age_years is None


def test_defaults_follow_the_patient_and_the_age(tmp_path: Path) -> None:
    rows = [
        ROW,
        {**ROW, "file": "b.png", "age": "7", "group": "g1"},
        {**ROW, "file": "c.png", "patient_id": "", "age": "7", "pediatric": "0"},
    ]
    first, second, third = read(tmp_path, rows, label_map=CLASSES)
    assert (first.label, first.group, first.pediatric, first.age_years) == ("Covid+", "Doe^John", False, 58)
    assert (second.group, second.pediatric) == ("g1", True)
    assert (third.group, third.patient, third.pediatric) == ("c.png", None, False)


def test_an_empty_split_is_not_an_absent_one(tmp_path: Path) -> None:
    assert [one.split for one in read(tmp_path, [{**ROW, "split": ""}])] == [""]
    assert [one.split for one in read(tmp_path, [ROW])] == [None]


def test_a_table_with_uri_and_file_is_read_as_ingest_reads_it(tmp_path: Path) -> None:
    row = {"file": "b.png", "uri": "a.png"}
    (only,) = read(tmp_path, [row])
    (listed,) = read_rows(open_storage(str(tmp_path / "manifest.csv")), ManifestOptions(), ListingReport())
    assert (only.file, listed.uri.rsplit("/", 1)[1]) == ("a.png", "a.png")


def test_csv_and_parquet_say_the_same(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "file": "b.png", "label": "noncovid"}]
    from_csv = read(tmp_path, rows)
    pq.write_table(pa_csv.read_csv(tmp_path / "manifest.csv"), tmp_path / "manifest.parquet")
    from_parquet = read_manifest(ManifestSettings(path=str(tmp_path / "manifest.parquet")))
    assert from_parquet == from_csv


def test_keys_never_show_a_raw_identifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**ROW, "file": f"Doe^John/{number}.png"} for number in range(3)]
    unkeyed = read(tmp_path, rows)
    assert [one.patient_key for one in unkeyed] == [None] * 3
    assert {one.group_key for one in unkeyed} == {"row 1"}
    monkeypatch.setenv("TRAINING_KEY", "k" * 32)
    keyed = read(tmp_path, rows, key_env="TRAINING_KEY")
    # The key that ingest writes for the same identifier, so that tables join.
    assert keyed[0].patient_key == Privacy(key=b"k" * 32).hashed("patient", "Doe^John")
    assert keyed[0].group_key == keyed[0].patient_key
    assert [one.id_key for one in unkeyed] == [
        None
    ] * 3  # the default id is the file, which names the patient
    assert len({one.id_key for one in keyed}) == 3
    for example in (*unkeyed, *keyed):
        safe = (example.patient_key, example.group_key, example.unit_key, example.id_key, example.called)
        assert "Doe" not in str(safe)
    pseudonyms = read(tmp_path, rows, manifest_ids="pseudonyms")
    assert pseudonyms[0].patient_key == "Doe^John"


def test_a_path_is_nobodys_pseudonym(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"file": "Smith_John/a.png"}]
    for key in (None, "a secret of some length, " * 2):
        if key is None:
            monkeypatch.delenv("CXR_RAY_KEY", raising=False)
        else:
            monkeypatch.setenv("CXR_RAY_KEY", key)
        (one,) = read(tmp_path, rows, manifest_ids="pseudonyms")
        assert "Smith" not in f"{one.id_key} {one.group_key} {one.unit_key} {one.called}"
        assert (one.id_key is None) == (key is None)


@pytest.mark.parametrize(
    ("rows", "settings", "expected"),
    [
        ([{"picture": "a.png"}], {}, "no column uri or file or path"),
        ([ROW], {"columns": {"label": "diagnosis"}}, "no column 'diagnosis'"),
        ([ROW], {"columns": {"colour": "label"}}, "none of file, member"),
        ([ROW, {**ROW, "file": ""}], {}, "row 2 of the manifest names no file"),
        ([ROW, ROW], {}, "1 rows of the manifest name the same picture"),
        (
            [ROW, {**ROW, "file": "b.png", "pediatric": "maybe"}],
            {},
            "row 2 of the manifest has a pediatric cell",
        ),
        ([{**ROW, "label": "Doe, J"}], {"label_map": CLASSES}, "(rows 1)"),
        (
            [{**ROW, "file": name, "label": "sars"} for name in "ab"],
            {"label_map": CLASSES},
            "2 rows have a label such as 'sars'",
        ),
    ],
)
def test_bad_manifests_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]], settings: dict[str, Any], expected: str
) -> None:
    assert expected in refusal(tmp_path, rows, **settings)


def test_ids_are_unique_and_pictures_may_have_two_masks(tmp_path: Path) -> None:
    two = [
        {"id": "a.v7", "file": "a.png", "mask": "1.png"},
        {"id": "a.jms", "file": "a.png", "mask": "2.png"},
    ]
    assert len(read(tmp_path, two)) == 2
    assert "repeat the id" in refusal(tmp_path, [two[0], {**two[1], "id": "a.v7"}])


def test_absent_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match="there is no manifest"):
        read_manifest(ManifestSettings(path=str(tmp_path / "none.csv")))
    with pytest.raises(TrainingDataError, match=r"manifest\.path"):
        read_manifest(ManifestSettings())
    (tmp_path / "odd.csv").write_text("file,label\nDoe.png,covid\nDoe.png,covid,more\n")
    with pytest.raises(TrainingDataError, match="as many fields") as caught:
        read_manifest(ManifestSettings(path=str(tmp_path / "odd.csv")))
    assert "Doe" not in str(caught.value)


def test_empty_classes_and_labels(tmp_path: Path) -> None:
    examples = read(tmp_path, [ROW, {**ROW, "file": "b.png", "label": "noncovid"}], label_map=CLASSES)
    assert check_classes(examples, ["Covid-", "Covid+"], where="training") == {"Covid-": 1, "Covid+": 1}
    with pytest.raises(TrainingDataError, match=r"class Covid- has no picture in training"):
        check_classes(examples[:1], ["Covid-", "Covid+"], where="training")
    with pytest.raises(TrainingDataError, match="of no class in Covid-"):
        check_classes(examples, ["Covid-"], where="training")
    bare = read(tmp_path, [{"file": "a.png"}])
    with pytest.raises(TrainingDataError, match="1 of 1 pictures in training have no label"):
        check_classes(bare, ["Covid-"], where="training")


@pytest.mark.parametrize("root", [None, "sub", "memory://films"])
def test_addresses_are_those_of_ingest(tmp_path: Path, root: str | None) -> None:
    names = [
        "a.png",
        "./b.png",
        "x/../c d.png",
        "/abs/e.png",
        "s3://bucket/f.png",
        "file:///g.png",
        "h/ü.png",
    ]
    root = str(tmp_path / root) if root == "sub" else root
    path = write_manifest(tmp_path / "manifest.csv", [{"file": name} for name in names])
    listed = read_rows(open_storage(str(path)), ManifestOptions(root=root), ListingReport())
    addresses = Addresses(open_storage(manifest_root(ManifestSettings(path=str(path), root=root))))
    assert sorted(addresses.resolve(name) for name in names) == [row.uri for row in listed]


def test_settings_fit_into_yaml() -> None:
    config = OmegaConf.structured(ManifestSettings)
    merged = OmegaConf.merge(config, {"path": "m.csv", "label_map": CLASSES, "columns": {"patient": "case"}})
    assert OmegaConf.to_object(merged) == ManifestSettings(
        path="m.csv", label_map=CLASSES, columns={"patient": "case"}
    )


def test_real_manifests(shared_dir: Path) -> None:
    data = shared_dir / "data"
    common = {"root": str(data), "manifest_ids": "pseudonyms"}
    pictures = read_manifest(
        ManifestSettings(path=str(data / "cls" / "manifest.csv"), label_map=CLASSES, **common)
    )
    assert Counter((one.split, one.label) for one in pictures) == {
        ("train", "Covid+"): 557,
        ("train", "Covid-"): 895,
        ("test", "Covid+"): 178,
        ("test", "Covid-"): 301,
    }
    assert sum(one.patient is None for one in pictures) == 53
    pairs = read_manifest(ManifestSettings(path=str(data / "seg" / "manifest.csv"), **common))
    assert Counter((one.split, one.mask_style) for one in pairs)["val", "v7"] == 132
    assert all((data / str(one.mask)).is_file() for one in pairs)
