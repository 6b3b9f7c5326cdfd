"""One path of Module 2: 50 channels at quarter size -> a masked class map (REFERENCE_SPEC section 6);
20,467 numbers."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cxr_ray.nets.attention import CrossAttention, glorot_uniform_
from cxr_ray.nets.dropout import SpatialDropout
from cxr_ray.nets.layers import LEAKY_SLOPE, BatchNorm, ResidualBlock, he_normal_

SCATTERING_CHANNELS = 49
IN_CHANNELS = SCATTERING_CHANNELS + 1
TRUNK_CHANNELS = IN_CHANNELS + 1
"""49 scattering channels, the pooled mask, the attention map."""
PATH_BRANCHES = ((3, 1), (3, 2), (3, 3))
MASK_THRESHOLD = 0.3
Variant = Literal["threshold", "multiply"]
VARIANTS: tuple[Variant, ...] = ("threshold", "multiply")


class Path(nn.Module):
    """The trunk that six folds trained six times.

    Args:
        classes: channels of the class map, at least 2.
        mask_threshold: pooled mask above it counts as lung (0.3 in the published network).
        lung_gate: also multiply the scattering channels by the binary lung mask before anything reads them, so
            that a path cannot see outside the lungs. False in the published network.
    """

    def __init__(
        self, *, classes: int = 2, mask_threshold: float = MASK_THRESHOLD, lung_gate: bool = False
    ) -> None:
        super().__init__()
        self.mask_threshold = mask_threshold
        self.lung_gate = lung_gate
        self.attention = CrossAttention()
        self.dropouts = nn.ModuleList(SpatialDropout(place=i) for i in range(3))
        self.norm = BatchNorm(TRUNK_CHANNELS)
        filters = TRUNK_CHANNELS // 3
        self.block_a = ResidualBlock(TRUNK_CHANNELS, filters, branches=PATH_BRANCHES, pre_activation=False)
        self.block_b = ResidualBlock(TRUNK_CHANNELS, filters, branches=PATH_BRANCHES)
        self.block_c = ResidualBlock(TRUNK_CHANNELS, classes, branches=PATH_BRANCHES, merge="add")

    def initialise(self, seed: int = 5) -> Path:
        """Start values for training (he_normal, attention Glorot uniform, zero biases), the same for the
        same seed; returns self."""
        generator = torch.Generator().manual_seed(seed)
        he_normal_(self, generator)
        glorot_uniform_(self.attention, generator)
        return self

    def forward(self, x_B50hw: Tensor, variant: Variant | None = None) -> Tensor:
        """``x_B50hw``: 49 scattering channels, then the pooled mask. Returns the class map ``[B, C, h, w]``.

        The map is unbounded (about +-300 with the published weights) and 0 outside the lungs; its mean over *all*
        positions gives the class logits.
        """
        m0 = x_B50hw[:, SCATTERING_CHANNELS]
        m1 = (m0 > self.mask_threshold).to(x_B50hw.dtype)
        scattering = x_B50hw[:, :SCATTERING_CHANNELS]
        if self.lung_gate:
            scattering = scattering * m1.unsqueeze(1)
        a0 = scattering[:, 0]
        attention = self.attention(a0, m1, m0)
        x = torch.cat((scattering, m0.unsqueeze(1), attention.unsqueeze(1)), dim=1)
        x = self.norm(self.dropouts[0](x))
        x = self.dropouts[1](self.block_a(x))
        x = self.dropouts[2](self.block_b(x))
        class_map = F.leaky_relu(self.block_c(x), LEAKY_SLOPE)
        if variant is not None:
            class_map = class_map * variant_weight(a0, variant).unsqueeze(1)
        return class_map * m1.unsqueeze(1)


def variant_weight(a0_Bhw: Tensor, variant: Variant) -> Tensor:
    """Factor ``[B, h, w]`` of the two optional variants, from the low-pass channel; minimum and maximum per image.

    (The original takes them over the whole batch, which makes a score depend on its neighbours; equal at batch 1.)
    """
    low = a0_Bhw.amin(dim=(1, 2), keepdim=True)
    if variant == "threshold":
        return (a0_Bhw > 0.6 * low).to(a0_Bhw.dtype)
    span = a0_Bhw.amax(dim=(1, 2), keepdim=True) - low
    # A flat channel has no contrast to multiply by: weight 0 instead of 0 / 0.
    return (a0_Bhw - low) / span.clamp(min=torch.finfo(span.dtype).tiny)
