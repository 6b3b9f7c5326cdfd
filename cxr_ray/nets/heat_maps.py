"""The published positive, negative and difference maps in closed form (REFERENCE_SPEC section 8). NumPy only.

The original differentiates the softmax with respect to the ensemble map. For two classes the positive map is
F[positive] - F[negative] times a positive factor, which the min-max inside the mask removes; so no backward pass is
needed, and negative = 1 - positive and difference = 2 * positive - 1 hold exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class HeatMaps:
    """float32 ``[H, W]`` each, NaN outside the lung mask; all NaN if the mask is empty or the map constant in it."""

    positive: NDArray[np.float32]
    """0 to 1: how much a place speaks for the positive class."""
    negative: NDArray[np.float32]
    """0 to 1: 1 - positive."""
    difference: NDArray[np.float32]
    """-1 to 1: positive - negative."""


def rebuild(evidence_hw: NDArray[np.floating], lung_mask_HW: NDArray[np.bool_]) -> HeatMaps:
    """The three maps at full resolution, from the evidence map (also one stored in 8 bits) and the lung mask.

    Bilinear resize to the mask's size, masked, min-max normalised inside the mask.
    """
    (h, w), (H, W) = evidence_hw.shape, lung_mask_HW.shape
    full_HW = _interpolation(h, H) @ evidence_hw.astype(np.float64) @ _interpolation(w, W).T
    positive = np.full(lung_mask_HW.shape, np.nan, dtype=np.float32)
    inside = full_HW[lung_mask_HW]
    if inside.size:
        low, high = inside.min(), inside.max()
        # Equal values resize to equal ones only up to rounding; one grey level at the least bilinear weight is
        # 6e-5 of the range, so anything below 1e-9 of it is rounding and the map is constant inside the mask.
        if high - low > 1e-9 * (float(evidence_hw.max()) - float(evidence_hw.min())):
            positive[lung_mask_HW] = (inside - low) / (high - low)
    return HeatMaps(positive, 1 - positive, 2 * positive - 1)


@lru_cache(maxsize=8)
def _interpolation(size: int, new_size: int) -> NDArray[np.float64]:
    """``[new_size, size]``: linear interpolation at half-pixel centres, edges clamped, as a matrix."""
    positions = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    return np.stack([np.interp(positions, np.arange(size), unit) for unit in np.eye(size)], axis=1)
