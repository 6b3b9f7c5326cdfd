"""Warps, degradation and mirror: the published goldens to the bit, and what the settings promise."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy import ndimage

from cxr_ray.nets.scattering import Scattering
from cxr_ray.preprocess import equalise
from training.augmentation import (
    ClassificationWarpSettings,
    DegradationSettings,
    SegmentationWarp,
    SegmentationWarpSettings,
    degrade,
    draw_classification_warp,
    draw_segmentation_warp,
    mirror_features,
    warp_pair,
    warp_pixels,
    warp_standardised,
)

ROWS, COLUMNS = 300, 340
NO_SEGMENTATION_WARP = SegmentationWarpSettings(
    rotation_degrees=0, shift=0, shear_degrees=0, zoom=0, flip_horizontal=False, flip_vertical=False
)
CLASSIFICATION_SEEDS = (*range(8), 15, 28)


def picture(rows: int = ROWS, columns: int = COLUMNS, *, seed: int = 0) -> np.ndarray:
    """Smooth, uint8, using the whole grey scale."""
    noise = np.random.RandomState(seed).standard_normal((rows, columns))
    smooth = ndimage.gaussian_filter(noise, 3)
    return np.rint(255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)


def numbers(warp: SegmentationWarp) -> list[float]:
    """In the order of the goldens, which is the order of the draws."""
    return list(dataclasses.astuple(warp)[:8])


# -- Module 1 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(4))
def test_published_segmentation_warp_to_the_bit(shared_dir: Path, case: int) -> None:
    golden = np.load(shared_dir / "reference" / "golden" / "_augment1_cases.npz")
    random = np.random.RandomState(int(golden["seeds"][case]))
    warp = draw_segmentation_warp(random, SegmentationWarpSettings(), rows=ROWS, columns=COLUMNS)
    assert numbers(warp) == golden[f"params{case}"].tolist()
    assert random.random_sample() == golden[f"next{case}"]
    assert np.array_equal(warp.matrix()[:2, :2], golden[f"matrix{case}"])
    assert np.array_equal(warp.matrix()[:2, 2], golden[f"offset{case}"])
    image, lungs, non_lungs = warp_pair(warp, golden[f"eq_u8_{case}"], golden[f"lungs_u8_{case}"])
    assert image.dtype == lungs.dtype == non_lungs.dtype == np.float32
    assert np.abs(image - golden[f"img{case}"]).max() < 1e-6
    assert np.array_equal(lungs, golden[f"lungs{case}"])
    assert np.array_equal(non_lungs, golden[f"non_lungs{case}"])


def test_published_generator_seeds_each_batch(shared_dir: Path) -> None:
    golden = np.load(shared_dir / "reference" / "golden" / "_augment1_cases.npz")
    for batch in range(3):
        random = np.random.RandomState(1 + batch)
        for image in range(2):
            warp = draw_segmentation_warp(random, SegmentationWarpSettings(), rows=ROWS, columns=COLUMNS)
            assert numbers(warp) == golden[f"gen_params_b{batch}_{image}"].tolist()


def test_small_frames_equal_scipy() -> None:
    random = np.random.RandomState(3)
    frame, lungs = picture(150, 170), np.where(picture(150, 170, seed=1) > 128, 255, 0).astype(np.uint8)
    settings = SegmentationWarpSettings(flip_horizontal=False, flip_vertical=False)
    warp = draw_segmentation_warp(random, settings, rows=150, columns=170)
    image, lungs_out, _ = warp_pair(warp, frame, lungs)
    matrix = warp.matrix()
    # The centre of the warp is n / 2 + 0.5, so without a shift this place would stay.
    still = dataclasses.replace(warp, shift_rows=0.0, shift_columns=0.0).matrix()
    assert still @ (75.5, 85.5, 1) == pytest.approx((75.5, 85.5, 1))
    theirs, theirs_lungs = (
        ndimage.affine_transform(plane / 255, matrix[:2, :2], matrix[:2, 2], order=1, mode="reflect")
        for plane in (frame, lungs)
    )
    assert np.abs(image - theirs).max() < 1e-6
    assert np.array_equal(lungs_out, np.rint(theirs_lungs))


def test_a_switched_off_segmentation_warp_changes_nothing_but_takes_its_numbers() -> None:
    frame, lungs = picture(), np.where(picture(seed=1) > 128, 255, 0).astype(np.uint8)
    random, control = np.random.RandomState(8), np.random.RandomState(8)
    warp = draw_segmentation_warp(random, NO_SEGMENTATION_WARP, rows=ROWS, columns=COLUMNS)
    draw_segmentation_warp(control, SegmentationWarpSettings(), rows=ROWS, columns=COLUMNS)
    assert random.random_sample() == control.random_sample()
    image, lungs_out, non_lungs = warp_pair(warp, frame, lungs)
    assert np.abs(image - frame / 255).max() < 1e-6
    assert np.array_equal(lungs_out, lungs / 255)
    assert np.array_equal(non_lungs, 1 - lungs / 255)


def test_segmentation_flips_come_after_the_warp() -> None:
    frame, lungs = picture(), np.zeros((ROWS, COLUMNS), np.uint8)
    warp = draw_segmentation_warp(
        np.random.RandomState(2), SegmentationWarpSettings(), rows=ROWS, columns=COLUMNS
    )
    plain = dataclasses.replace(warp, flip_left_right=False, flip_up_down=False)
    both = dataclasses.replace(warp, flip_left_right=True, flip_up_down=True)
    assert np.array_equal(warp_pair(both, frame, lungs)[0], warp_pair(plain, frame, lungs)[0][::-1, ::-1])


def test_an_exact_tie_is_neither_lung_nor_background() -> None:
    lungs = np.zeros((8, 8), np.uint8)
    lungs[:, 4:] = 255
    warp = draw_segmentation_warp(np.random.RandomState(0), NO_SEGMENTATION_WARP, rows=8, columns=8)
    half = dataclasses.replace(warp, shift_columns=0.5)
    _, inside, outside = warp_pair(half, picture(8, 8), lungs)
    assert inside[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert outside[0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


def test_segmentation_warp_refuses_what_does_not_fit() -> None:
    warp = draw_segmentation_warp(np.random.RandomState(0), SegmentationWarpSettings(), rows=8, columns=9)
    good = np.full((8, 9), 255, np.uint8)
    with pytest.raises(ValueError, match="a picture of 8 x 9"):
        warp_pair(warp, good.T, good)
    with pytest.raises(ValueError, match="a mask of 8 x 9"):
        warp_pair(warp, good, good.T)
    with pytest.raises(ValueError, match="0 and 255"):
        warp_pair(warp, good, good // 255)


# -- Module 2 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", CLASSIFICATION_SEEDS)
def test_published_classification_warp(shared_dir: Path, seed: int) -> None:
    folder = shared_dir / "reference" / "golden"
    golden, film = np.load(folder / "_augment_cases.npz"), np.load(folder / "002130-004-1.npz")
    random = np.random.RandomState(seed)
    warp = draw_classification_warp(random, ClassificationWarpSettings(), rows=ROWS, columns=COLUMNS)
    assert random.random_sample() == golden[f"next{seed}"]
    geometric, left_right, up_down, both = golden[f"flags{seed}"].astype(bool)
    assert (warp.matrix is not None) == geometric
    assert (warp.flip_left_right, warp.flip_up_down) == (left_right or both, up_down or both)
    if warp.matrix is not None:
        assert np.array_equal(warp.matrix, golden[f"mat{seed}"])
    x, mask = film["x_std"].astype(np.float64), film["mask_comb"].astype(np.float64)
    for ours, name in zip(warp_standardised(warp, x, mask), ("x", "m"), strict=True):
        assert ours.dtype == np.float32
        assert np.abs(ours - golden[f"{name}{seed}"].astype(np.float64)).max() < 1e-3


def test_places_are_rounded_to_a_part_of_a_pixel() -> None:
    # A ramp reads back the place itself; un-rounded places would give fractions finer than 1/32.
    ramp = np.tile(np.arange(COLUMNS, dtype=np.float64), (ROWS, 1))
    settings = ClassificationWarpSettings(probability=1, flip_horizontal=0, flip_vertical=0)
    warp = draw_classification_warp(np.random.RandomState(0), settings, rows=ROWS, columns=COLUMNS)
    parts = 32 * warp_standardised(warp, ramp, ramp)[0].astype(np.float64)
    assert np.abs(parts - np.rint(parts)).max() < 1e-3


def test_grey_levels_take_the_same_warp() -> None:
    frame = picture()
    for seed in range(4):
        warp = draw_classification_warp(
            np.random.RandomState(seed), ClassificationWarpSettings(), rows=ROWS, columns=COLUMNS
        )
        soft, _ = warp_standardised(warp, frame.astype(np.float64), frame.astype(np.float64))
        grey = warp_pixels(warp, frame)
        assert grey.dtype == np.uint8
        assert np.abs(grey - soft).max() <= 0.5


def test_a_switched_off_classification_warp_changes_nothing() -> None:
    settings = ClassificationWarpSettings(probability=0, flip_horizontal=0, flip_vertical=0, flip_both=0)
    warp = draw_classification_warp(np.random.RandomState(0), settings, rows=ROWS, columns=COLUMNS)
    assert np.array_equal(warp_pixels(warp, picture()), picture())


def test_scale_above_one_magnifies() -> None:
    disc = np.zeros((ROWS, COLUMNS), np.uint8)
    disc[100:200, 120:220] = 255
    settings = ClassificationWarpSettings(
        probability=1, rotation_degrees=0, shift=0, scale=0, flip_horizontal=0, flip_vertical=0
    )
    warp = draw_classification_warp(np.random.RandomState(0), settings, rows=ROWS, columns=COLUMNS)
    # The fixed aspect factor alone zooms by the root of 1.1, so the area grows by a tenth.
    assert (warp_pixels(warp, disc) / 255).sum() == pytest.approx(1.1 * 100 * 100, rel=0.002)


def test_classification_warp_refuses_another_size() -> None:
    warp = draw_classification_warp(np.random.RandomState(0), ClassificationWarpSettings(), rows=8, columns=9)
    with pytest.raises(ValueError, match="a frame of 8 x 9"):
        warp_pixels(warp, np.zeros((9, 8), np.uint8))


# -- degradation -----------------------------------------------------------------------------------


def only(**changes: object) -> DegradationSettings:
    """Settings that do nothing but what is named."""
    off = DegradationSettings(gamma=0, sharpness_probability=0, noise_probability=0, jpeg_probability=0)
    return dataclasses.replace(off, **changes)  # type: ignore[arg-type]


def roughness(frame: np.ndarray) -> float:
    return float(np.abs(np.diff(frame.astype(float), axis=0)).mean())


def test_degradation_is_seeded_and_gives_an_equalised_picture() -> None:
    frame = equalise(picture())
    before = frame.copy()
    copies = [degrade(np.random.RandomState(seed), frame, DegradationSettings()) for seed in (1, 1, 2)]
    assert np.array_equal(copies[0], copies[1])
    assert not np.array_equal(copies[0], copies[2])
    assert np.array_equal(frame, before)
    for copy in copies:
        assert (copy.dtype, copy.shape) == (np.uint8, frame.shape)
        assert np.array_equal(equalise(copy), copy) or np.abs(equalise(copy).astype(int) - copy).max() <= 2
        assert np.corrcoef(copy.ravel(), frame.ravel())[0, 1] > 0.9


def test_with_everything_off_only_equalisation_is_left() -> None:
    assert np.array_equal(degrade(np.random.RandomState(0), picture(), only()), equalise(picture()))


def test_each_step_does_what_it_says() -> None:
    frame = picture()
    plain = degrade(np.random.RandomState(0), frame, only())
    noisy = degrade(np.random.RandomState(0), frame, only(noise_probability=1, noise=(0.03, 0.03)))
    coded = degrade(np.random.RandomState(0), frame, only(jpeg_probability=1, jpeg_quality=(25, 25)))
    assert roughness(noisy) > 1.5 * roughness(plain)
    assert 0.2 < np.abs(coded.astype(int) - plain).mean() < 10
    # Contrast alone is mostly undone by the equalisation; what is left is that some levels fall together.
    bent = degrade(np.random.RandomState(0), frame, only(gamma=0.5))
    assert 0 < np.abs(bent.astype(int) - plain).mean() < 2
    sharpness = only(sharpness_probability=1, blur_pixels=(1.6, 1.6), downscale=(0.4, 0.4))
    ratios = [
        roughness(degrade(np.random.RandomState(seed), frame, sharpness)) / roughness(plain)
        for seed in range(12)
    ]
    assert min(ratios) < 0.97
    assert max(ratios) > 1.03


def test_the_scalars_drawn_do_not_depend_on_the_settings() -> None:
    streams = [np.random.RandomState(5) for _ in range(2)]
    degrade(streams[0], picture(), only())
    degrade(streams[1], picture(), only(gamma=0.5, sharpness_probability=1, jpeg_probability=1))
    assert streams[0].random_sample() == streams[1].random_sample()


@pytest.mark.parametrize(
    "settings", [SegmentationWarpSettings, ClassificationWarpSettings, DegradationSettings]
)
def test_settings_go_through_yaml(settings: type) -> None:
    text = OmegaConf.to_yaml(OmegaConf.structured(settings))
    merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(settings), OmegaConf.create(text)))
    assert isinstance(merged, settings)
    if isinstance(merged, DegradationSettings):  # its ranges come back as lists, which must do as well
        degrade(np.random.RandomState(0), picture(32, 32), merged)


# -- mirror ----------------------------------------------------------------------------------------


def path_inputs(frame_HW: np.ndarray, scattering: Scattering) -> torch.Tensor:
    """``[50, h, w]`` of a float picture, with a made mask that is mirrored exactly."""
    x_HW = torch.from_numpy(np.ascontiguousarray(frame_HW, dtype=np.float32))
    return torch.cat((scattering(x_HW[None])[0], x_HW[None, ::4, ::4]))


def test_mirroring_twice_gives_the_input_back() -> None:
    x = torch.randn(2, 50, 5, 7, generator=torch.Generator().manual_seed(0))
    once = mirror_features(x)
    assert not torch.equal(once, x)
    assert torch.equal(mirror_features(once), x)
    assert torch.equal(mirror_features(x[0]), once[0])
    assert torch.equal(once[:, 49], x[:, 49].flip(-1))


def test_mirror_is_the_scattering_of_the_mirrored_picture() -> None:
    rows, columns = 96, 120
    scattering = Scattering(rows, columns)
    frame = ndimage.gaussian_filter(np.random.RandomState(0).standard_normal((rows, columns)), 1.5)
    frame /= frame.std()
    # A tilted wave: every orientation answers differently, so a wrong order cannot pass.
    frame += np.cos(0.5 * np.arange(columns) + 0.9 * np.arange(rows)[:, None])
    mirrored = mirror_features(path_inputs(frame, scattering))[:49]
    # Mirrored about the sampling grid (column 0 <-> column n - 4) the two are the same transform, but at the edges.
    on_grid = np.concatenate((frame[:, columns - 4 :: -1], frame[:, 1:4]), axis=1)
    theirs = scattering(torch.from_numpy(on_grid.astype(np.float32))[None])[0]
    inner = (slice(None), slice(6, -6), slice(6, -6))
    assert relative(mirrored[inner], theirs[inner]) < 1e-4
    without_reordering = path_inputs(frame, scattering)[:49].flip(-1)
    assert relative(without_reordering[inner], theirs[inner]) > 0.1


def test_mirror_is_close_on_a_real_film(shared_dir: Path) -> None:
    film = np.load(shared_dir / "reference" / "golden" / "002130-004-1.npz")["x_std"][100:212, 60:188]
    scattering = Scattering(*film.shape)
    mirrored = mirror_features(path_inputs(film, scattering))[:49]
    theirs = path_inputs(film[:, ::-1], scattering)[:49]
    # Cell by cell the grid lies 3 pixels aside; what each wavelet answers on the whole is the same.
    assert relative(mirrored, theirs) < 0.2
    assert relative(mirrored[1:].mean((1, 2)), theirs[1:].mean((1, 2))) < 0.02


def test_mirror_needs_the_scattering_channels() -> None:
    with pytest.raises(ValueError, match="at least 49 channels"):
        mirror_features(torch.zeros(2, 12, 5, 7))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())
