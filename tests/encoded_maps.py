"""An evidence map as a row of the score table has it, by the steps that the scorer and the pipeline take."""

from __future__ import annotations

import numpy as np
import torch

from cxr_ray.nets.evidence import grey_levels
from cxr_ray.pipeline.map_encoding import encode_heat_map


def levels_of(evidence_BHW: np.ndarray) -> dict[str, np.ndarray]:
    """heat_map, heat_lo and heat_hi of a ``Scores`` with these evidence maps."""
    levels, low, high = grey_levels(torch.from_numpy(np.asarray(evidence_BHW, np.float32)))
    return {"heat_map": levels.numpy(), "heat_lo": low.numpy(), "heat_hi": high.numpy()}


def bits_of(mask_BHW: np.ndarray) -> np.ndarray:
    """lung_bits of a ``Scores`` with these masks."""
    return np.packbits(mask_BHW.reshape(len(mask_BHW), -1), axis=1)


def heat_columns(evidence_HW: np.ndarray) -> dict[str, bytes | np.float32]:
    """heat_map, heat_lo and heat_hi of a row."""
    found = levels_of(evidence_HW[None])
    return {
        "heat_map": encode_heat_map(found["heat_map"][0]),
        "heat_lo": found["heat_lo"][0],
        "heat_hi": found["heat_hi"][0],
    }
