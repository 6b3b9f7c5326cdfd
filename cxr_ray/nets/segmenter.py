"""Module 1: the lung segmenter (REFERENCE_SPEC sections 2 and 4); 59,941 numbers, any frame size."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cxr_ray.nets.dropout import SpatialDropout
from cxr_ray.nets.layers import LEAKY_SLOPE, ResidualBlock, he_normal_

BLOCKS = 6
"""A stem without pre-activation, then five more."""
FILTERS = 16
LUNG_CHANNEL = 0
"""Channel 0 of the softmax is lung, channel 1 is everything else."""


class Segmenter(nn.Module):
    """Equalised frame -> two-channel map of lung against non-lung.

    Spatial dropout (whole channels) follows each block but the last; it acts in train mode only.
    """

    def __init__(self, *, filters: int = FILTERS, blocks: int = BLOCKS) -> None:
        super().__init__()
        width = 3 * filters
        self.blocks = nn.ModuleList(
            ResidualBlock(1 if i == 0 else width, filters, pre_activation=i > 0) for i in range(blocks)
        )
        self.dropouts = nn.ModuleList(SpatialDropout(place=i) for i in range(blocks - 1))
        self.head = nn.Conv2d(width, 2, 1)

    def initialise(self, seed: int = 5) -> Segmenter:
        """Start values for training (he_normal, zero biases), the same for the same seed; returns self."""
        he_normal_(self, torch.Generator().manual_seed(seed))
        return self

    def forward(self, x_BHW: Tensor) -> Tensor:
        """``x_BHW``: float32 equalised pixels / 255, any H and W. Returns logits ``[B, 2, H, W]`` (after LeakyReLU)."""
        x = x_BHW.unsqueeze(1)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i + 1 < len(self.blocks):
                x = self.dropouts[i](x)
        return F.leaky_relu(self.head(x), LEAKY_SLOPE)


def lung_probability(logits_B2HW: Tensor) -> Tensor:
    """Softmax over the two channels; returns the lung channel ``[B, H, W]``, 0 to 1."""
    return logits_B2HW.softmax(dim=1)[:, LUNG_CHANNEL]
