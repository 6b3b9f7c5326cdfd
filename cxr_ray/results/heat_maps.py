"""From a row of the score table back to the published heat maps (REFERENCE_SPEC section 8).

NumPy and OpenCV only: reading results needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_ray.errors import OutputError, UsageError
from cxr_ray.pipeline.map_encoding import (
    EVIDENCE_SHAPE,
    MASK_SHAPE,
    decode_heat_map_png,
    decode_lung_mask_png,
)


@dataclass(frozen=True, kw_only=True)
class HeatMaps:
    """Three maps of ``[300, 340]`` float32, NaN outside the lung mask (and everywhere if undefined)."""

    positive: NDArray[np.float32]
    """Evidence of the positive class, 0 to 1 over the mask."""
    negative: NDArray[np.float32]
    """1 - positive."""
    difference: NDArray[np.float32]
    """2 * positive - 1, so -1 to 1. It says where, never how much: it does not fade when scores are close."""


def decode_heat_map(row: Mapping[str, Any]) -> NDArray[np.float32]:
    """The evidence map ``[75, 85]`` float32 of one row, in units of the ensemble map.

    Args:
        row: a mapping with the columns ``heat_map``, ``heat_lo`` and ``heat_hi`` (one element of
            ``table.to_pylist()``); ``reason`` is used for the message if it is there.

    Raises:
        UsageError: the row has no heat map (it was quarantined, or the column was not selected).
        OutputError: the column holds something else than such a map.
    """
    png, lo, hi = _columns(row, "heat_map", "heat_lo", "heat_hi")
    return decode_heat_map_png(png, lo, hi)


def decode_lung_mask(row: Mapping[str, Any]) -> NDArray[np.bool_]:
    """The full-resolution gated lung mask ``[300, 340]`` bool of one row (column ``lung_mask``).

    Raises: as :func:`decode_heat_map`.
    """
    (png,) = _columns(row, "lung_mask")
    return decode_lung_mask_png(png)


def rebuild_maps(evidence_HW: NDArray[np.floating], mask_HW: NDArray[np.bool_]) -> HeatMaps:
    """The published positive, negative and difference maps.

    Resize bilinearly (half-pixel centres, edges clamped, no anti-aliasing), keep the mask, min-max inside it.
    From the 8-bit map of the score table the result is within 0.01 of the published one.

    Args:
        evidence_HW: ``[75, 85]`` float, any unit: the maps do not depend on scale and offset.
        mask_HW: ``[300, 340]`` bool.

    Raises:
        OutputError: another shape.
    """
    if evidence_HW.shape != EVIDENCE_SHAPE or mask_HW.shape != MASK_SHAPE:
        raise OutputError(
            f"expected evidence {EVIDENCE_SHAPE} and mask {MASK_SHAPE}, "
            f"got {evidence_HW.shape} and {mask_HW.shape}"
        )
    rows, columns = MASK_SHAPE
    # float64: with float32 the min-max of a nearly constant map would amplify the rounding of the resize.
    full_HW = cv2.resize(
        np.ascontiguousarray(evidence_HW, dtype=np.float64), (columns, rows), interpolation=cv2.INTER_LINEAR
    )
    positive_HW = np.full(MASK_SHAPE, np.nan, dtype=np.float32)
    inside = full_HW[mask_HW]
    if inside.size:
        lo, hi = inside.min(), inside.max()
        # Equal values resize to equal ones only up to rounding; one grey level at the least bilinear weight
        # is 6e-5 of the range, so anything below 1e-9 is rounding and the map is constant inside the mask.
        if hi - lo > 1e-9 * (float(evidence_HW.max()) - float(evidence_HW.min())):
            positive_HW[mask_HW] = (inside - lo) / (hi - lo)
    return HeatMaps(positive=positive_HW, negative=1.0 - positive_HW, difference=2.0 * positive_HW - 1.0)


def _columns(row: Mapping[str, Any], *names: str) -> tuple[Any, ...]:
    absent = [name for name in names if name not in row]
    if absent:
        raise UsageError(
            f"the row has no column {absent[0]}; select {', '.join(names)} when reading the table"
        )
    values = tuple(row[name] for name in names)
    if any(value is None for value in values):
        reason = f" (quarantined: {row['reason']})" if row.get("reason") else ""
        raise UsageError(f"the row has no {names[0]}{reason}; only scored rows have one")
    return values
