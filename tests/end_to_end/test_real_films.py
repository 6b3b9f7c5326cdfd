"""The published network on real films, from files to part: parity with the original, and odd input."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxr_ray.results.heat_maps import decode_heat_map, decode_lung_mask, rebuild_maps
from end_to_end.commands import read_table, run_job

#: Inputs of data/raw that are no readable radiograph, with the code that fits.
UNREADABLE = {
    "dcm_dicomdir": "no_pixels",
    "dcm_is_really_html.dcm": "unknown_format",
    "dcm_structured_report.dcm": "no_pixels",
}


@pytest.fixture(scope="module")
def originals(shared_dir: Path, published_bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The twelve originals ingested, and scored from the shards."""
    folder = tmp_path_factory.mktemp("originals")
    done = run_job("ingest", f"archive={shared_dir}/reference/raw", f"output={folder}/ingest")
    assert done.code == 0, done.err[-2000:]
    done = run_job(
        "score", f"archive={folder}/ingest", f"output={folder}/out", f"weights={published_bundle_dir}"
    )
    assert done.code == 0, done.err[-2000:]
    return folder


def goldens(shared_dir: Path) -> dict[str, tuple[dict[str, Any], Any]]:
    """File name of an original -> its manifest entry and arrays."""
    folder = shared_dir / "reference" / "golden"
    manifest = json.loads((folder / "manifest.json").read_text())
    return {
        entry["src"]: (entry, np.load(folder / f"{name}.npz"))
        for name, entry in manifest.items()
        if entry["kind"] == "raw"
    }


def test_preprocessed_pixels_are_the_originals(shared_dir: Path, originals: Path) -> None:
    expected = goldens(shared_dir)
    rows = read_table(originals / "ingest" / "shards").to_pylist()
    assert len(rows) == 12
    for row in rows:
        pixels = np.frombuffer(row["pixels"], np.uint8).reshape(300, 340)
        assert np.count_nonzero(pixels != expected[Path(row["uri"]).name][1]["eq_u8"]) == 0


def test_scores_are_the_originals(shared_dir: Path, originals: Path) -> None:
    expected = goldens(shared_dir)
    for row in read_table(originals / "out" / "scores").to_pylist():
        entry, arrays = expected[Path(row["uri"]).name]
        assert row["p_covid"] == pytest.approx(entry["score"][0], abs=2e-5)
        paths = 1 / (1 + np.exp(-np.array(row["path_logits"], np.float64)))
        assert np.abs(paths - arrays["path_softmax"][:, 0]).max() < 2e-5


def test_heat_maps_rebuilt_from_the_part_are_the_originals(shared_dir: Path, originals: Path) -> None:
    expected = goldens(shared_dir)
    for row in read_table(originals / "out" / "scores").to_pylist():
        arrays = expected[Path(row["uri"]).name][1]
        maps = rebuild_maps(decode_heat_map(row), decode_lung_mask(row))
        for ours, golden in ((maps.positive, arrays["heat_pos"]), (maps.difference, arrays["heat_diff"])):
            golden = golden.astype(np.float32)
            assert np.array_equal(np.isnan(ours), np.isnan(golden))
            assert np.nanmax(np.abs(ours - golden)) < 0.01


def test_odd_files_are_rows(shared_dir: Path, published_bundle_dir: Path, tmp_path: Path) -> None:
    options = (
        f"archive={shared_dir}/data/raw",
        f"output={tmp_path}/out",
        f"weights={published_bundle_dir}",
    )
    done = run_job("score", *options)
    assert done.code == 0, done.err[-2000:]
    assert "Traceback" not in done.out + done.err
    rows = {Path(row["uri"]).name: row for row in read_table(tmp_path / "out" / "scores").to_pylist()}
    assert len(rows) == 54
    for name, reason in UNREADABLE.items():
        assert rows[name]["reason"] == reason
    with open(shared_dir / "data" / "raw" / "manifest.csv", newline="") as handle:
        kinds = {Path(entry["file"]).name: entry["kind"] for entry in csv.DictReader(handle)}
    for name, row in rows.items():
        if kinds[name] == "chest":
            assert row["status"] == "scored", (name, row["reason"], row["detail"])
    assert "monochrome1_inverted" in rows["dcm_chest_jpeg_baseline_mono1_tag.dcm"]["flags"]
    again = run_job("score", *options, "max_quarantined=0.01")
    assert again.code == 3
