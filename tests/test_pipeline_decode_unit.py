"""Every planned input becomes a row, whatever it holds, and identifiers leave as hashes only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decode_samples import dicom_bytes, dicom_object
from end_to_end.commands import write_films

from cxr_ray.archives.inputs import image_id_of
from cxr_ray.archives.listing import list_archive
from cxr_ray.archives.storage import open_storage
from cxr_ray.phantoms import write_sample_archive
from cxr_ray.pipeline.decode_unit import InputSettings, decode_unit
from cxr_ray.pipeline.decoding.child_process import ProcessLimits
from cxr_ray.pipeline.plan import PlannedImage
from cxr_ray.pipeline.privacy import Privacy

KEY = b"k" * 32


def planned_images(folder: Path) -> list[PlannedImage]:
    return [
        PlannedImage(
            image_id=image_id_of(source).hex(), uri=source.uri, member=source.member, source=source,
            patient_key=None, study_key=None, label=None, view=None, sex=None, age_years=None, carry=None,
        )
        for source in list_archive(open_storage(str(folder)))
    ]  # fmt: skip


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    write_sample_archive(folder)
    return folder


def rows(folder: Path, **settings: Any) -> dict[str, dict[str, Any]]:
    images = planned_images(folder)
    table = decode_unit(images, InputSettings(**settings))
    names = [Path(image.source.uri).name for image in images]
    return dict(zip(names, table.to_pylist(), strict=True))


def test_good_and_bad_inputs_are_rows(tmp_path: Path) -> None:
    write_films(tmp_path, 2)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.png").write_bytes(b"<html>no film</html>")
    found = rows(tmp_path)
    assert {name: row["reason"] for name, row in found.items()} == {
        "film-000.png": None,
        "film-001.png": None,
        "empty.png": "empty_file",
        "page.png": "unknown_format",
    }
    assert len(found["film-000.png"]["pixels"]) == 300 * 340
    assert found["film-000.png"]["image_rows"] == 400
    assert found["page.png"]["pixels"] is None
    assert found["page.png"]["content_sha256"]
    assert all(str(tmp_path) not in (row["detail"] or "") for row in found.values())


def test_identifiers_need_a_key_and_never_show(sample: Path) -> None:
    without = rows(sample)
    assert all(row["patient_key"] is None for row in without.values())
    keyed = rows(sample, privacy=Privacy(key=KEY))
    dicom = [row for name, row in keyed.items() if name.endswith(".dcm") and row["status"] == "ready"]
    assert dicom
    for row in dicom:
        assert {len(row[name]) for name in ("patient_key", "study_key", "instance_key")} == {32}
        text = str({name: value for name, value in row.items() if name not in ("pixels", "uri")})
        assert "SYNTHETIC-" not in text


def test_years_and_paths_stay_out_when_asked(sample: Path) -> None:
    hidden = rows(sample, privacy=Privacy(key=KEY, keep_uri=False))
    assert all(
        row["uri"] is None and row["member"] is None and row["study_year"] is None for row in hidden.values()
    )


def test_the_manifest_wins_over_the_header(sample: Path) -> None:
    images = [image for image in planned_images(sample) if image.source.uri.endswith(".dcm")]
    told = [replace(image, view="LATERAL", sex="F", age_years=7, patient_key="pseudonym") for image in images]
    table = decode_unit(told, InputSettings(privacy=Privacy(key=KEY)))
    for row in table.to_pylist():
        assert (row["view"], row["sex"], row["age_years"], row["patient_key"]) == (
            "LATERAL",
            "F",
            7,
            "pseudonym",
        )


def test_limits_are_quarantine_codes(tmp_path: Path) -> None:
    write_films(tmp_path, 1)
    assert rows(tmp_path, max_pixels=1000)["film-000.png"]["reason"] == "oversized"
    assert rows(tmp_path, max_bytes=1000)["film-000.png"]["reason"] == "oversized"


def test_rows_are_the_same_from_a_process_of_its_own(sample: Path) -> None:
    """Also for a constant frame, whose header was read before its pixels were refused."""
    constant = dicom_object(np.full((60, 48), 7, np.uint16), PatientID="SYNTHETIC-7", Modality="DX")
    (sample / "constant.dcm").write_bytes(dicom_bytes(constant))
    here = rows(sample, privacy=Privacy(key=KEY))
    there = rows(sample, privacy=Privacy(key=KEY), process_limits=ProcessLimits())
    assert there == here
    refused = here["constant.dcm"]
    assert (refused["reason"], refused["modality"]) == ("constant_pixels", "DX")
    assert refused["patient_key"]
