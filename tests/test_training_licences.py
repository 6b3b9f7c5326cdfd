"""Licences: NC and ND as elements, in any spelling; words that only contain the letters pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.data.licences import allows, licence_basis, stated
from training.data.manifest import Example, ManifestSettings, read_manifest


@pytest.mark.parametrize(
    "licence",
    [
        "CC BY-NC-SA 4.0",
        "CC BY-NC-SA",
        "cc-by-nc-4.0",
        "CC BY NC",
        "CC_BY_ND",
        "BY-ND",
        "CC-BYNC",
        "CC BY-NCSA",
        "http://creativecommons.org/licenses/by-nc-nd/4.0/",
        "NonCommercial use",
        "non-commercial research",
        "not for commercial use",
        "no commercial use",
        "NoDerivatives",
        "no-derivs",
        "CC BY 4.0 | mask CC BY-NC-SA 4.0",
    ],
)
def test_restricted(licence: str) -> None:
    assert not allows(licence)


@pytest.mark.parametrize(
    "licence",
    [
        None,
        "",
        "CC BY 4.0",
        "CC BY-SA",
        "CC0 1.0, no rights reserved",
        "MIT and Apache-2.0",
        "listed as authorized for everyone",
        "NCBI terms",
        "University of Illinois/NCSA Open Source License",
        "2nd licence of the land",
        "commercial use allowed",
        "no licence file",
        "none stated in repo (no licence file)",
    ],
)
def test_allowed(licence: str | None) -> None:
    assert allows(licence)


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        (None, False),
        (" ", False),
        ("-", False),
        ("unknown", False),
        ("no license", False),
        ("none stated in repo (no licence file)", False),
        ("not stated per image (repo CC BY 4.0) | mask CC BY 4.0 (V7)", False),
        ("CC BY 4.0 | not stated", False),
        ("CC BY 4.0 (images, README); repo MIT", True),
        ("CC BY 3.0 | mask CC BY 4.0 (V7)", True),
        ("no rights reserved", True),
        ("listed as authorized for everyone", True),
    ],
)
def test_stated(licence: str | None, expected: bool) -> None:
    assert stated(licence) is expected


def test_basis_counts_by_source_and_licence() -> None:
    used = [
        Example(file="a", source="x", licence="CC BY 4.0"),
        Example(file="b", source="x"),
        Example(file="c", source="y", licence="not stated (repo CC BY 4.0)"),
    ]
    basis = licence_basis(used, [Example(file="d", source="y", licence="CC BY-NC 4.0")])
    assert basis["rows"] == 3
    assert basis["by_source"] == {
        "x": {"CC BY 4.0": 1, "none stated": 1},
        "y": {"not stated (repo CC BY 4.0)": 1},
    }
    assert basis["none_stated"] == {"x": 1, "y": 1}
    assert basis["left_out"] == {"y": {"CC BY-NC 4.0": 1}}
    assert "none of them under non-commercial" in basis["sentence"]
    assert "2 without a stated licence of their own (x 1, y 1)" in basis["sentence"]


def test_basis_admits_restricted_rows() -> None:
    sentence = licence_basis([Example(file="a", licence="CC BY-NC 4.0")])["sentence"]
    assert "1 of them under non-commercial" in sentence


def test_real_licences(shared_dir: Path) -> None:
    path = shared_dir / "data" / "cls" / "manifest.csv"
    examples = read_manifest(ManifestSettings(path=str(path), manifest_ids="pseudonyms"))
    refused = [example for example in examples if not allows(example.licence)]
    assert {(example.source, example.licence) for example in refused} == {
        ("cohen", "CC BY-NC-SA"),
        ("cohen", "CC BY-NC-SA 4.0"),
    }
    assert len(refused) == 126
