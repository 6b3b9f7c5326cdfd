"""The 54 real files of ``../shared/data/raw`` and the 12 reference films: who decodes, who is refused, why."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_ray.decode import decode, facts_of
from cxr_ray.errors import InputError

pytestmark = pytest.mark.shared

REFUSED = {
    "dcm_dicomdir": "no_pixels",
    "dcm_structured_report.dcm": "no_pixels",
    "dcm_is_really_html.dcm": "unknown_format",
    "dcm_wrong_transfer_syntax.dcm": "not_radiograph",
    "dcm_ct_bad_sequence.dcm": "not_radiograph",
    "dcm_mr_j2k_too_short.dcm": "not_radiograph",
    "dcm_mr_multiframe_big_endian.dcm": "not_radiograph",
    "dcm_seg_deflated.dcm": "not_radiograph",
}
FLAGS = {
    "dcm_chest_j2k_lossy_mono1.dcm": {"monochrome1_inverted"},
    "dcm_chest_jpegls_near_mono1.dcm": {"monochrome1_inverted"},
    "dcm_chest_jpeg_baseline_rsna.dcm": set(),
    "dcm_chest_jpeg_baseline_mono1_tag.dcm": {"monochrome1_inverted"},
    "dcm_leg_animal_jpeg_ybr422.dcm": {"colour"},
    "dcm_leg_j2k_lossless_mono1.dcm": {"monochrome1_inverted", "body_part_not_chest"},
    "dcm_leg_jpeg_lossless_sv1.dcm": {"monochrome1_inverted", "body_part_not_chest"},
    "dcm_leg_jpegls_lossless.dcm": {"monochrome1_inverted", "body_part_not_chest"},
    "dcm_leg_jpeg_extended12.dcm": {"monochrome1_inverted", "body_part_not_chest"},
    "dcm_leg_rle.dcm": {"monochrome1_inverted", "body_part_not_chest"},
    "dcm_hip_jpeg_extended12.dcm": {"body_part_not_chest"},
    "dcm_palette_photo.dcm": {"colour", "modality_unusual"},
    "dcm_rgb_secondary_capture.dcm": {"colour", "modality_unusual", "low_resolution"},
    "png_tiny_cohen_1.png": {"low_resolution"},
}


@pytest.fixture(scope="module")
def raw_dir(shared_dir: Path) -> Path:
    return shared_dir / "data" / "raw"


def read(raw_dir: Path, name: str) -> bytes:
    return (raw_dir / name).read_bytes()


def test_every_file_decodes_or_is_refused_as_listed(raw_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (raw_dir / "manifest.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 54
    codes = {}
    for row in rows:
        name = Path(row["file"]).name
        try:
            radiograph = decode(read(raw_dir, name))
        except InputError as error:
            codes[name] = error.code
            continue
        assert radiograph.pixels.shape == (int(row["height"]), int(row["width"])), name
        assert set(radiograph.flags) == FLAGS.get(name, set()), name
        if row["container"] == "DICOM":
            assert radiograph.facts.photometric == row["photometric"]
            assert radiograph.facts.bits_stored == int(row["bits"])
            assert (radiograph.facts.transfer_syntax or "") == row["transfer_syntax"]
            assert radiograph.facts.modality == row["modality"]
            assert (radiograph.facts.view or "") == row["view"]
        assert radiograph.pixels.min() < radiograph.pixels.max()
    assert codes == REFUSED
    assert not {row["file"] for row in rows if row["kind"] == "chest"} & {f"raw/{name}" for name in codes}
    assert capfd.readouterr() == ("", "")


def test_the_same_film_tagged_monochrome1_comes_out_reversed(raw_dir: Path) -> None:
    plain, tagged = "dcm_chest_jpeg_baseline_rsna.dcm", "dcm_chest_jpeg_baseline_mono1_tag.dcm"
    np.testing.assert_array_equal(
        decode(read(raw_dir, tagged)).pixels, 255 - decode(read(raw_dir, plain)).pixels
    )
    np.testing.assert_array_equal(
        decode(read(raw_dir, tagged), policy="published").pixels,
        decode(read(raw_dir, plain), policy="published").pixels,
    )


def test_one_film_in_five_encodings_has_the_same_pixels(raw_dir: Path) -> None:
    legs = ("j2k_lossless_mono1", "jpeg_lossless_sv1", "jpegls_lossless", "rle")
    first, *others = (decode(read(raw_dir, f"dcm_leg_{leg}.dcm")).pixels for leg in legs)
    for other in others:
        np.testing.assert_array_equal(other, first)
    lossy = decode(read(raw_dir, "dcm_leg_jpeg_extended12.dcm")).pixels
    assert np.abs(lossy.astype(int) - first).mean() < 2
    assert np.abs(lossy.astype(int) - first).max() < 60


def test_refused_files_keep_their_facts(raw_dir: Path) -> None:
    with pytest.raises(InputError) as caught:
        decode(read(raw_dir, "dcm_mr_j2k_too_short.dcm"))
    assert facts_of(caught.value).modality == "MR"
    assert facts_of(caught.value).image_rows == 64


def test_real_films_cut_short_are_refused(raw_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = ["dcm_chest_jpeg_baseline_rsna.dcm", "dcm_leg_jpeg_extended12.dcm", "dcm_leg_rle.dcm"]
    names += [
        "jpeg_progressive_armiro_1.jpeg",
        "jpeg_figure1_1.jpg",
        "png_gray_nih_1.png",
        "webp_armiro_1.webp",
    ]
    for name in names:
        data = read(raw_dir, name)
        for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
            with pytest.raises(InputError) as caught:
                decode(data[: int(share * len(data))])
            assert caught.value.code == "truncated", (name, share)
    assert capfd.readouterr() == ("", "")


def test_reference_films_equal_plain_opencv(shared_dir: Path) -> None:
    films = sorted((shared_dir / "reference" / "raw").iterdir())
    assert len(films) == 12
    for film in films:
        expected = cv2.imread(str(film), cv2.IMREAD_GRAYSCALE)
        for policy in ("corrected", "published", "windowed"):
            np.testing.assert_array_equal(decode(film.read_bytes(), policy=policy).pixels, expected)
