"""Heat maps: from the ensemble map through the two PNGs of a row back to the published figure's arrays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from encoded_maps import heat_columns

from cxr_ray.errors import OutputError, UsageError
from cxr_ray.pipeline.map_encoding import encode_heat_map, encode_lung_mask
from cxr_ray.results import decode_heat_map, decode_lung_mask, rebuild_maps

RNG = np.random.default_rng(0)


def row_of(evidence: np.ndarray, mask: np.ndarray) -> dict:
    return {**heat_columns(evidence), "lung_mask": encode_lung_mask(mask)}


def test_published_maps_come_back_within_a_hundredth(shared_dir: Path) -> None:
    """Within 0.01 everywhere inside the mask, same NaN pattern."""
    sizes, worst = [], 0.0
    goldens = [
        path for path in sorted((shared_dir / "reference/golden").glob("*.npz")) if path.name[0] != "_"
    ]
    assert len(goldens) >= 12
    for path in goldens:
        golden = np.load(path)
        evidence = golden["ens_map"][..., 0] - golden["ens_map"][..., 1]
        row = row_of(evidence, golden["heat_mask"].astype(bool))
        maps = rebuild_maps(decode_heat_map(row), decode_lung_mask(row))
        for rebuilt, name in ((maps.positive, "heat_pos"), (maps.difference, "heat_diff")):
            published = golden[name].astype(np.float32)
            assert np.array_equal(np.isnan(rebuilt), np.isnan(published)), path.name
            worst = max(worst, float(np.nanmax(np.abs(rebuilt - published))))
        sizes.append(len(row["heat_map"]) + len(row["lung_mask"]))
    assert worst < 0.01
    assert np.median(sizes) < 3700  # leaves 0.8 KB of the 4.5 KB for the light columns
    assert max(sizes) < 6000


def test_without_quantisation_the_published_maps_come_back_exactly(shared_dir: Path) -> None:
    golden = np.load(shared_dir / "reference/golden/002130-004-1.npz")
    evidence = golden["ens_map"][..., 0] - golden["ens_map"][..., 1]
    maps = rebuild_maps(evidence, golden["heat_mask"].astype(bool))
    assert np.nanmax(np.abs(maps.positive - golden["heat_pos"])) < 1e-6
    assert np.nanmax(np.abs(maps.negative - golden["heat_neg"])) < 3e-6
    assert np.nanmax(np.abs(maps.difference - golden["heat_diff"])) < 4e-6


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_evidence_survives_to_half_a_grey_level(scale: float) -> None:
    evidence = (RNG.normal(size=(75, 85)) * scale).astype(np.float32)
    mask = RNG.random((300, 340)) > 0.5
    row = row_of(evidence, mask)
    decoded = decode_heat_map(row)
    span = float(evidence.max()) - float(evidence.min())
    assert decoded.dtype == np.float32
    assert np.abs(decoded.astype(float) - evidence).max() <= 0.501 * span / 255
    assert decoded.min() == evidence.min()
    assert decoded.max() == pytest.approx(evidence.max(), rel=1e-6)
    assert np.array_equal(decode_lung_mask(row), mask)


def test_grey_levels_mean_what_the_table_says() -> None:
    evidence = np.full((75, 85), -2.0, np.float32)
    evidence[3, 4], evidence[5, 6] = 8.0, 3.0
    row = heat_columns(evidence)
    grey = cv2.imdecode(np.frombuffer(row["heat_map"], np.uint8), cv2.IMREAD_UNCHANGED)
    assert grey.dtype == np.uint8
    assert grey.shape == (75, 85)
    assert (row["heat_lo"], row["heat_hi"]) == (-2.0, 8.0)
    assert (grey[0, 0], grey[3, 4], grey[5, 6]) == (0, 255, 128)
    bits = encode_lung_mask(np.eye(300, 340, dtype=bool))
    assert bits[24] == 1  # PNG bit depth
    assert bits[25] == 0  # PNG colour type: grey


def test_encoding_is_deterministic() -> None:
    evidence, mask = RNG.normal(size=(75, 85)), RNG.random((300, 340)) > 0.5
    assert heat_columns(evidence) == heat_columns(evidence.copy())
    assert encode_lung_mask(mask) == encode_lung_mask(mask.copy())


def test_maps_are_min_max_inside_the_mask_only() -> None:
    evidence = np.linspace(0, 1, 75 * 85).reshape(75, 85)
    mask = np.zeros((300, 340), bool)
    mask[100:120, 50:60] = True
    maps = rebuild_maps(evidence, mask)
    inside = maps.positive[mask]
    assert (inside.min(), inside.max()) == (0.0, 1.0)
    assert np.isnan(maps.positive[~mask]).all()
    assert np.array_equal(maps.negative[mask], 1 - inside)
    assert np.array_equal(maps.difference[mask], 2 * inside - 1)
    moved = rebuild_maps(1000 * evidence - 7, mask)
    assert np.abs(moved.positive[mask] - inside).max() < 1e-6


@pytest.mark.parametrize("case", ["constant map", "constant inside the mask", "empty mask"])
def test_undefined_maps_are_nan_everywhere(case: str) -> None:
    evidence = np.full((75, 85), 0.1)
    mask = np.zeros((300, 340), bool)
    if case != "empty mask":
        mask[40:80, 40:80] = True
    if case != "constant map":
        evidence[70, 80] = 5.0
    maps = rebuild_maps(evidence, mask)
    assert np.isnan([maps.positive, maps.negative, maps.difference]).all()


def test_a_constant_map_survives_its_row() -> None:
    row = row_of(np.full((75, 85), 0.3, np.float32), np.ones((300, 340), bool))
    assert row["heat_lo"] == row["heat_hi"]
    assert (decode_heat_map(row) == np.float32(0.3)).all()


def test_wrong_input_is_said() -> None:
    for wrong in (np.zeros((85, 75), np.uint8), np.zeros((75, 85), np.float32)):
        with pytest.raises(ValueError, match="uint8 levels of shape"):
            encode_heat_map(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bool"):
        encode_lung_mask(np.zeros((300, 340)))  # type: ignore[arg-type]
    quarantined = {"heat_map": None, "heat_lo": None, "heat_hi": None, "reason": "no_lungs"}
    with pytest.raises(UsageError, match="quarantined: no_lungs"):
        decode_heat_map(quarantined)
    with pytest.raises(UsageError, match="no column heat_lo"):
        decode_heat_map({"heat_map": b"x"})
    with pytest.raises(OutputError, match="75 x 85, got no picture"):
        decode_heat_map({"heat_map": b"no PNG", "heat_lo": 0.0, "heat_hi": 1.0})
    mask = encode_lung_mask(np.ones((300, 340), bool))
    with pytest.raises(OutputError, match="75 x 85, got 300 x 340"):
        decode_heat_map({"heat_map": mask, "heat_lo": 0.0, "heat_hi": 1.0})
    with pytest.raises(OutputError, match="expected evidence"):
        rebuild_maps(np.zeros((10, 10)), np.ones((300, 340), bool))


def test_reading_maps_needs_no_torch() -> None:
    load = "import sys, cxr_ray.results as results; results.rebuild_maps; results.open_scores"
    check = "sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", f"{load}; {check}"], check=False).returncode == 0
