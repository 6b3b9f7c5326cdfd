"""Heat maps in closed form: identities, NaN pattern, and independence of torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from cxr_ray.nets.heat_maps import rebuild
from cxr_ray.preprocess import resize_bilinear


def made() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.zeros((40, 60), bool)
    mask[5:35, 8:50] = True
    return rng.normal(size=(10, 15)).astype(np.float32), mask


def test_maps_are_normalised_inside_the_mask_and_nan_outside() -> None:
    evidence_hw, mask = made()
    maps = rebuild(evidence_hw, mask)
    assert np.array_equal(np.isnan(maps.positive), ~mask)
    assert (np.nanmin(maps.positive), np.nanmax(maps.positive)) == (0.0, 1.0)
    assert np.array_equal(maps.negative[mask], 1 - maps.positive[mask])
    assert np.array_equal(maps.difference[mask], 2 * maps.positive[mask] - 1)


def test_scale_and_offset_of_the_evidence_cancel() -> None:
    evidence_hw, mask = made()
    same = rebuild(evidence_hw * 40 - 3, mask).positive
    assert np.allclose(same, rebuild(evidence_hw, mask).positive, atol=1e-5, equal_nan=True)


def test_enlarging_is_the_resize_of_the_preprocessing() -> None:
    evidence_hw, mask = made()
    full = resize_bilinear(evidence_hw, rows=40, columns=60)[mask]
    expected = (full - full.min()) / (full.max() - full.min())
    assert np.allclose(rebuild(evidence_hw, mask).positive[mask], expected, atol=1e-6)


def test_an_empty_mask_or_a_constant_map_gives_nan() -> None:
    evidence_hw, mask = made()
    assert np.isnan(rebuild(evidence_hw, np.zeros_like(mask)).difference).all()
    assert np.isnan(rebuild(np.ones_like(evidence_hw), mask).positive).all()


def test_pictures_need_no_torch() -> None:
    code = "import sys, cxr_ray.nets.heat_maps; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
