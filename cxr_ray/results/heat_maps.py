"""From a row of the score table back to the published heat maps (REFERENCE_SPEC section 8).

NumPy and OpenCV only: reading results needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_ray.errors import OutputError, UsageError
from cxr_ray.nets.heat_maps import HeatMaps, rebuild
from cxr_ray.pipeline.map_encoding import (
    EVIDENCE_SHAPE,
    MASK_SHAPE,
    decode_heat_map_png,
    decode_lung_mask_png,
)

__all__ = ["HeatMaps", "decode_heat_map", "decode_lung_mask", "rebuild_maps"]


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
    return rebuild(evidence_HW, mask_HW)


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
