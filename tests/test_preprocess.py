"""Preprocessing: 0 differing pixels against the published flow, dtypes and memory layouts, coded errors."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_ray.errors import ConstantPixels, NonfinitePixels, PixelShape
from cxr_ray.preprocess import COLUMNS, ROWS, equalise, preprocess, resize_bilinear


def film(rows: int = 97, columns: int = 131, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4096, (rows, columns)).astype(np.uint16)


def test_synthetic_reference_cases_to_the_pixel(shared_dir: Path) -> None:
    cases = np.load(shared_dir / "reference" / "golden" / "_preprocess_cases.npz")
    for index in range(5):
        assert (preprocess(cases[f"raw{index}"]) != cases[f"eq{index}"]).sum() == 0


def test_raw_originals_to_the_pixel(shared_dir: Path) -> None:
    reference = shared_dir / "reference"
    manifest = json.loads((reference / "golden" / "manifest.json").read_text())
    raw = {key: entry["src"] for key, entry in manifest.items() if entry["kind"] == "raw"}
    assert len(raw) == 12
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    for key, name in raw.items():
        data = np.frombuffer((reference / "raw" / name).read_bytes(), np.uint8)
        pixels = cv2.imdecode(data, flags)
        assert pixels is not None
        assert (preprocess(pixels) != np.load(reference / "golden" / f"{key}.npz")["eq_u8"]).sum() == 0, key


def test_result_is_a_contiguous_uint8_frame() -> None:
    frame = preprocess(film())
    assert (frame.shape, frame.dtype) == ((ROWS, COLUMNS), np.uint8)
    assert frame.flags.c_contiguous
    assert (frame.min(), frame.max()) == (0, 255)


def test_the_input_is_not_changed() -> None:
    pixels = film()
    before = pixels.copy()
    preprocess(pixels)
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint32", "int64", "float32", "float64", ">u2", ">i2"])
def test_the_container_type_does_not_matter(dtype: str) -> None:
    assert np.array_equal(preprocess(film().astype(dtype)), preprocess(film()))


def test_min_max_does_not_overflow_the_stored_type() -> None:
    pixels = film().astype(np.int32) * 16 - 32768
    assert np.array_equal(preprocess(pixels.astype(np.int16)), preprocess(pixels.astype(np.float64)))


def test_strides_do_not_matter() -> None:
    pixels = film()
    padded = np.zeros((194, 262), np.uint16)
    padded[::2, ::2] = pixels
    assert np.array_equal(preprocess(padded[::2, ::2]), preprocess(pixels))
    assert np.array_equal(preprocess(np.asfortranarray(pixels)), preprocess(pixels))


def test_a_rising_affine_change_of_grey_values_cancels() -> None:
    assert np.array_equal(preprocess(film().astype(np.float64) * 8 + 1024), preprocess(film()))


def test_min_max_reads_pixels_that_the_resize_skips() -> None:
    pixels = np.full((ROWS * 30, 40), 100, np.uint16)
    pixels[:, 20:] = 200
    assert preprocess(pixels).max() == 255
    # One bright pixel that the resize never looks at squeezes all the rest into grey level 0.
    pixels[0, 0] = 60_000
    assert resize_bilinear(pixels, rows=ROWS, columns=COLUMNS).max() == 200
    assert preprocess(pixels).max() == 0


def test_resize_keeps_a_frame_of_the_target_size() -> None:
    pixels = film(ROWS, COLUMNS)
    assert np.array_equal(resize_bilinear(pixels, rows=ROWS, columns=COLUMNS), pixels)


def test_resize_blends_at_half_pixel_centres_and_clamps_edges() -> None:
    row = resize_bilinear(np.array([[0.0, 8.0], [0.0, 8.0]]), rows=2, columns=4)[0]
    assert row.tolist() == [0.0, 2.0, 6.0, 8.0]


def test_equalise_leaves_one_grey_level_alone() -> None:
    image = np.full((4, 5), 77, np.uint8)
    assert np.array_equal(equalise(image), image)


@pytest.mark.parametrize("shape", [(5,), (1, 9), (9, 1), (0, 9), (3, 4, 3), (2, 3, 4, 5), ()])
def test_frames_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PixelShape, match="2-D"):
        preprocess(np.zeros(shape, np.uint8))


def test_complex_pixels_are_refused() -> None:
    with pytest.raises(PixelShape, match="complex"):
        preprocess(film().astype(np.complex64))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_pixels_are_refused(value: float) -> None:
    pixels = film().astype(np.float32)
    pixels[40, 50] = value
    with pytest.raises(NonfinitePixels):
        preprocess(pixels)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float64", "bool"])
def test_constant_frames_are_refused(dtype: str) -> None:
    with pytest.raises(ConstantPixels):
        preprocess(np.ones((20, 30), dtype))
