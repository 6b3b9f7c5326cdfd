"""From pixels and lung probability to the inputs of Module 2 (REFERENCE_SPEC section 3), exact to the last bit.

Everything here is a table look-up or a fixed order of float32 operations, so that devices cannot disagree.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

TISSUE_DARKEST = 6
TISSUE_BRIGHTEST = 225
"""Equalised pixels outside these two (inclusive) bounds are no tissue; bounds of the published flow."""
POOL = 4


def quantise(probability: Tensor) -> Tensor:
    """Probability 0..1 (float32) -> 8-bit level, round half to even; any shape, uint8. Part of the published flow."""
    return (probability * 255.0).round().clamp(0, 255).to(torch.uint8)


def level_table() -> Tensor:
    """float32 ``[256]``: value of each 8-bit mask level, level / 255 computed in float64 and rounded once."""
    return torch.from_numpy((np.arange(256) / 255.0).astype(np.float32))


def standard_table(mean: float, std: float) -> Tensor:
    """float32 ``[256]``: standardised value (grey - mean) / std of each grey level, float64 rounded once."""
    return torch.from_numpy(((np.arange(256) - mean) / std).astype(np.float32))


def look_up(table: Tensor, levels_u8: Tensor) -> Tensor:
    """``table[levels]`` for a 256-entry table and uint8 levels of any shape."""
    return table.index_select(0, levels_u8.reshape(-1).int()).view(levels_u8.shape)


def packed_bits(mask_BHW: Tensor) -> Tensor:
    """Boolean masks ``[B, H, W]`` -> uint8 ``[B, ceil(H * W / 8)]``, as ``np.packbits`` orders them: row after row,
    the first pixel in the highest bit, zeros at the end."""
    pixels = mask_BHW[0].numel()
    octets = nn.functional.pad(mask_BHW.flatten(1).float(), (0, -pixels % 8)).unflatten(1, (-1, 8))
    # Sums of different powers of two, exact in float32 in any order.
    weights = 2.0 ** torch.arange(7, -1, -1, device=mask_BHW.device)
    return (octets @ weights).to(torch.uint8)


def tissue(pixels_u8: Tensor) -> Tensor:
    """True where the equalised pixel is neither almost black nor almost white; any shape, bool."""
    return (pixels_u8 >= TISSUE_DARKEST) & (pixels_u8 <= TISSUE_BRIGHTEST)


def pool_mask(mask_BHW: Tensor) -> Tensor:
    """4 x 4 mean of the combined mask: ``[B, H, W]`` -> ``[B, H // 4, W // 4]``, float32.

    A row-major sequential sum of the 16 values, then / 16. The order is part of the contract: 0.3 is an exact
    tie for cells whose 16 mask levels sum to 1224, and another order of summation decides ties differently
    (REFERENCE_SPEC section 13). Spelled out, so that no back-end's pooling kernel can choose its own order.
    """
    B, H, W = mask_BHW.shape
    h, w = H // POOL, W // POOL
    cells = mask_BHW[:, : h * POOL, : w * POOL].reshape(B, h, POOL, w, POOL)
    total = cells[:, :, 0, :, 0]
    for index in range(1, POOL * POOL):
        total = total + cells[:, :, index // POOL, :, index % POOL]
    return total / (POOL * POOL)
