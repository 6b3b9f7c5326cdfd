"""Evidence maps of any number of classes, and their 8 bits on the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cxr_ray.nets.evidence import evidence, grey_levels

RNG = np.random.default_rng(0)


def test_evidence_of_two_and_of_three_classes() -> None:
    maps = torch.from_numpy(RNG.normal(size=(2, 3, 4, 5)).astype(np.float32))
    assert torch.equal(evidence(maps[:, :2], 0), maps[:, 0] - maps[:, 1])
    assert torch.equal(evidence(maps[:, :2], 1), maps[:, 1] - maps[:, 0])
    assert torch.allclose(evidence(maps, 1), maps[:, 1] - (maps[:, 0] + maps[:, 2]) / 2, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30, 1e38])
def test_levels_are_those_of_float64_arithmetic(scale: float) -> None:
    """Also where float32 would overflow. The expected values are NumPy's."""
    maps_BHW = np.clip(RNG.normal(size=(3, 75, 85)), -3, 3).astype(np.float32) * np.float32(scale)
    levels, low, high = grey_levels(torch.from_numpy(maps_BHW))
    for index, map_HW in enumerate(maps_BHW.astype(np.float64)):
        expected = np.rint((map_HW - map_HW.min()) / (map_HW.max() - map_HW.min()) * 255)
        assert np.array_equal(levels[index].numpy(), expected)
        assert (low[index], high[index]) == (map_HW.min(), map_HW.max())


def test_a_constant_map_is_black_and_says_so() -> None:
    levels, low, high = grey_levels(torch.full((1, 75, 85), 0.3))
    assert levels.eq(0).all()
    assert low.item() == high.item() == np.float32(0.3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_shows_in_the_range_of_its_own_map_only(value: float) -> None:
    maps = torch.from_numpy(RNG.normal(size=(2, 75, 85)).astype(np.float32))
    alone = grey_levels(maps[:1])
    maps[1, 40, 7] = value
    levels, low, high = grey_levels(maps)
    assert not torch.isfinite(torch.stack([low[1], high[1]])).all()
    assert torch.equal(levels[:1], alone[0])
    assert torch.equal(torch.stack([low[:1], high[:1]]), torch.stack(alone[1:]))
