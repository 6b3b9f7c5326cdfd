"""The gate: exact tables, bounds, and the summation order that decides ties of the pooled mask."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from cxr_ray.nets.gate import level_table, look_up, packed_bits, pool_mask, quantise, standard_table, tissue


def test_quantisation_rounds_half_to_even_and_saturates() -> None:
    assert quantise(torch.tensor([0.0, 0.5, 1.0, 1.0000001])).tolist() == [0, 128, 255, 255]
    assert quantise(torch.tensor([0.1, 0.3, 0.7])).tolist() == [26, 76, 178]


def test_every_level_survives_the_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(quantise(look_up(level_table(), levels)), levels)


def test_tables_are_rounded_once() -> None:
    levels = np.arange(256)
    assert np.array_equal(level_table().numpy(), (levels.astype(np.float64) / 255).astype(np.float32))
    expected = ((levels - 124.07157127013421) / 75.97485671901313).astype(np.float32)
    assert np.array_equal(standard_table(124.07157127013421, 75.97485671901313).numpy(), expected)


@pytest.mark.parametrize("shape", [(2, 300, 340), (3, 5, 7), (1, 1, 1)])
def test_bits_are_packed_as_numpy_does(shape: tuple[int, int, int]) -> None:
    mask = np.random.default_rng(0).random(shape) > 0.5
    assert np.array_equal(
        packed_bits(torch.from_numpy(mask)), np.packbits(mask.reshape(shape[0], -1), axis=1)
    )


def test_look_up_keeps_the_shape() -> None:
    levels = torch.tensor([[[0, 255], [128, 1]]], dtype=torch.uint8)
    assert look_up(torch.arange(256.0), levels).tolist() == [[[0.0, 255.0], [128.0, 1.0]]]


def test_tissue_bounds_are_inclusive() -> None:
    grey = torch.tensor([0, 5, 6, 225, 226, 255], dtype=torch.uint8)
    assert tissue(grey).tolist() == [False, False, True, True, False, False]


def test_pooled_mask_sums_row_major_in_float32() -> None:
    # Cells whose 16 levels sum to 1224 = 0.3 * 16 * 255 are ties that only the order of summation decides.
    rng = np.random.default_rng(0)
    cells: list[np.ndarray] = []
    while len(cells) < 400:
        cell = rng.integers(0, 154, 16)
        cell[-1] += 1224 - cell.sum()
        if 0 <= cell[-1] <= 255:
            cells.append(cell)
    levels = torch.from_numpy(np.array(cells, dtype=np.uint8)).view(-1, 4, 4)
    assert {Fraction(int(cell.sum()), 16 * 255) for cell in levels} == {Fraction(3, 10)}
    mask = look_up(level_table(), levels)

    got = pool_mask(mask).flatten()
    expected = []
    for cell in mask.numpy().reshape(-1, 16):
        total = np.float32(0)
        for value in cell:
            total = np.float32(total + value)
        expected.append(np.float32(total / np.float32(16)))
    assert np.array_equal(got.numpy(), np.array(expected))
    assert torch.equal(got, torch.nn.functional.avg_pool2d(mask[:, None], 4).flatten())
    above = int((got > 0.3).sum())
    assert 0 < above < len(cells)  # the ties really fall both ways


def test_pool_mask_of_a_frame() -> None:
    mask = torch.rand(2, 300, 340)
    assert torch.equal(pool_mask(mask), torch.nn.functional.avg_pool2d(mask[:, None], 4)[:, 0])
