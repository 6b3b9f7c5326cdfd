"""The evidence map of every image, and its 8-bit form, on whatever device the network runs (DESIGN section 4)."""

from __future__ import annotations

import torch
from torch import Tensor

GREY_LEVELS = 255


def evidence(ensemble_map_BChw: Tensor, positive: int) -> Tensor:
    """``[B, C, h, w]`` -> ``[B, h, w]``: map of class ``positive`` minus the mean of the other classes' maps."""
    others = torch.cat((ensemble_map_BChw[:, :positive], ensemble_map_BChw[:, positive + 1 :]), dim=1)
    return ensemble_map_BChw[:, positive] - others.mean(dim=1)


def grey_levels(evidence_Bhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every map quantised to 8 bits over its own range.

    Args:
        evidence_Bhw: ``[B, h, w]`` float32.

    Returns:
        ``(levels, low, high)``: ``[B, h, w]`` uint8, and ``[B]`` float32, the values of grey levels 0 and 255.
        ``low == high`` says that a map is constant (all levels 0). In a map with NaN or infinity at least one of the
        two is not finite, and its levels mean nothing.
    """
    low_B, high_B = evidence_Bhw.amin(dim=(1, 2)), evidence_Bhw.amax(dim=(1, 2))
    # float64: in float32 the span of two huge values overflows and a tiny one loses the levels.
    low_B11 = low_B.double()[:, None, None]
    span_B11 = high_B.double()[:, None, None] - low_B11
    levels_Bhw = (evidence_Bhw.double() - low_B11) / span_B11 * GREY_LEVELS
    # Without a finite span there is NaN, which no integer stands for.
    return levels_Bhw.round().nan_to_num(0.0, 0.0, 0.0).to(torch.uint8), low_B, high_B
