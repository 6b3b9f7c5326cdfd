"""Phantoms and the sample archive: deterministic, of every promised format, and synthetic on every face."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image

from cxr_ray.decode import decode
from cxr_ray.errors import OutputError, TruncatedImage, UsageError
from cxr_ray.phantoms import MAXIMUM, draw_phantom, phantom, write_sample_archive
from cxr_ray.phantoms.drawing import LABEL


def test_one_seed_gives_one_phantom() -> None:
    first, again, other = (phantom(np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)
    assert first.dtype == np.uint16
    assert first.max() <= MAXIMUM


def test_frame_size_and_opacities_are_as_asked_for() -> None:
    clear = draw_phantom(np.random.default_rng(1), rows=200, columns=180, opacities=False)
    patchy = draw_phantom(np.random.default_rng(1), rows=200, columns=180, opacities=True)
    assert clear.pixels.shape == patchy.pixels.shape == clear.lungs.shape == (200, 180)
    assert (clear.has_opacities, patchy.has_opacities) == (False, True)
    assert patchy.pixels[patchy.lungs].mean() > clear.pixels[clear.lungs].mean() + 50
    with pytest.raises(ValueError, match="64 x 64"):
        draw_phantom(np.random.default_rng(0), rows=10, columns=100)


@pytest.mark.parametrize("seed", range(4))
def test_lungs_are_two_dark_fields_inside_a_brighter_body(seed: int) -> None:
    drawn = draw_phantom(np.random.default_rng(seed), opacities=False)
    rows, columns = drawn.pixels.shape
    assert 0.2 < drawn.lungs.mean() < 0.4
    _, labels, stats, _ = cv2.connectedComponentsWithStats(drawn.lungs.astype(np.uint8))
    assert int((stats[1:, cv2.CC_STAT_AREA] > 0.05 * rows * columns).sum()) == 2
    spine = drawn.pixels[rows // 3 : 2 * rows // 3, int(0.48 * columns) : int(0.52 * columns)]
    air = drawn.pixels[: rows // 20, : columns // 20]
    assert air.mean() < drawn.pixels[drawn.lungs].mean() < 0.6 * spine.mean()
    assert labels.shape == (rows, columns)


def test_sample_archive_is_mixed_deterministic_and_ends_with_a_broken_file(tmp_path: Path) -> None:
    files = write_sample_archive(tmp_path / "a")
    again = write_sample_archive(tmp_path / "b")
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    assert len(files) == 12
    assert {file.suffix for file in files} == {".png", ".jpg", ".dcm"}
    with pytest.raises(TruncatedImage):
        decode(files[-1].read_bytes())
    decoded = [decode(file.read_bytes()) for file in files[:-1]]
    assert {radiograph.pixels.dtype for radiograph in decoded} == {np.dtype("uint8"), np.dtype("uint16")}
    assert {radiograph.facts.photometric for radiograph in decoded} >= {"MONOCHROME1", "MONOCHROME2"}
    # Both polarities decode to bright bone on dark air.
    for radiograph in decoded:
        pixels = radiograph.pixels
        assert pixels[:20, :20].mean() < pixels[:, pixels.shape[1] // 2].mean()
    shorter = write_sample_archive(tmp_path / "c", count=4)
    assert [file.read_bytes() for file in shorter[:3]] == [file.read_bytes() for file in files[:3]]
    other = write_sample_archive(tmp_path / "d", count=2, seed=1)
    assert other[0].read_bytes() != files[0].read_bytes()


def test_every_file_says_that_it_is_synthetic(tmp_path: Path) -> None:
    files = write_sample_archive(tmp_path)
    assert "SYNTHETIC" in (tmp_path / "README.txt").read_text()
    for file in files[:-1]:
        assert "synthetic" in file.name
        data = file.read_bytes()
        if file.suffix == ".dcm":
            header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
            assert header.SeriesDescription == "SYNTHETIC PHANTOM"
            assert header.PatientID.startswith("SYNTHETIC-")
            assert str(header.PatientName).startswith("SYNTHETIC")
        else:
            info = Image.open(io.BytesIO(data)).info
            assert info.get("Description", info.get("comment", b"")) in (
                "SYNTHETIC PHANTOM",
                b"SYNTHETIC PHANTOM",
            )


def test_the_label_is_burned_in() -> None:
    pixels = phantom(np.random.default_rng(0), rows=500, columns=500)
    corner = pixels[460:, :200]
    assert corner.max() >= 255 * 13
    assert (corner >= 200 * 13).sum() > 10 * len(LABEL)


def test_phantoms_are_never_mixed_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "film.dcm").write_bytes(b"a real one")
    with pytest.raises(OutputError, match="never mixed"):
        write_sample_archive(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["film.dcm"]
    with pytest.raises(UsageError, match="at least 2"):
        write_sample_archive(tmp_path / "new", count=1)
    with pytest.raises(OutputError, match="cannot be written"):
        write_sample_archive(tmp_path / "film.dcm" / "below")
