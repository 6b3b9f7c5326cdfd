"""An ensemble for inference whose paths go together: one gate, all attentions at once, one call for all trunks."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from cxr_ray.nets.attention import RowAttention, attend
from cxr_ray.nets.ensemble import Ensemble, path_inputs
from cxr_ray.nets.path import SCATTERING_CHANNELS, Path, Variant, variant_weight


class JointPaths(nn.Module, ABC):
    """The function of a trained ``Ensemble`` in eval mode, but for the trunks of its paths, which subclasses bring.

    Args:
        ensemble: as loaded, before its blocks are folded.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        if ensemble.training:
            raise ValueError("joint paths need an ensemble in eval mode")
        self.scattering: nn.Module = ensemble.scattering
        paths = paths_of(ensemble)
        self.mask_threshold, self.lung_gate = paths[0].mask_threshold, paths[0].lung_gate
        self.classes = paths[0].block_c.out_channels
        self.rows = _Attentions([path.attention.rows for path in paths])
        self.columns = _Attentions([path.attention.columns for path in paths])

    @abstractmethod
    def trunks(self, x_B50hw: Tensor, attention_KBhw: Tensor) -> Tensor:
        """Path input, gated where the bundle says so, and each path's attention -> ``[B, K, C, h, w]``, before
        variant and mask."""

    def inputs(self, x_BHW: Tensor, mask_BHW: Tensor) -> Tensor:
        """As ``Ensemble.inputs``."""
        return path_inputs(self.scattering, x_BHW, mask_BHW)

    def forward(self, x_B50hw: Tensor, variant: Variant | None = None) -> Tensor:
        """As ``Ensemble.forward``."""
        m0_Bhw = x_B50hw[:, SCATTERING_CHANNELS]
        m1_Bhw = (m0_Bhw > self.mask_threshold).to(x_B50hw.dtype)
        if self.lung_gate:
            x_B50hw = x_B50hw * m1_Bhw.unsqueeze(1)
            x_B50hw[:, SCATTERING_CHANNELS] = m0_Bhw
        a0_Bhw = x_B50hw[:, 0]
        rows = self.rows(a0_Bhw, m1_Bhw, m0_Bhw)
        columns = self.columns(a0_Bhw.mT, m1_Bhw.mT, m0_Bhw.mT).mT
        maps_BKChw = self.trunks(x_B50hw.contiguous(), (a0_Bhw * rows * columns).contiguous())
        if variant is not None:
            maps_BKChw = maps_BKChw * variant_weight(a0_Bhw, variant)[:, None, None]
        return maps_BKChw * m1_Bhw[:, None, None]


def paths_of(ensemble: Ensemble) -> list[Path]:
    """The paths in order, with their type."""
    return [path for path in ensemble.paths if isinstance(path, Path)]


class _Attentions(nn.Module):
    """The same attention layer of K paths at once: ``[B, H, W]`` -> ``[K, B, H, W]``."""

    scales: Tensor
    weights: Tensor
    bias: Tensor

    def __init__(self, layers: list[RowAttention]) -> None:
        super().__init__()
        with torch.no_grad():
            pairs = [layer.coefficients() for layer in layers]
            # Of no more than three axes: a network is made channels-last as a whole.
            self.register_buffer("scales", torch.stack([scales for scales, _ in pairs], dim=1))
            self.register_buffer("weights", torch.stack([weights for _, weights in pairs], dim=1))
            self.register_buffer("bias", torch.stack([layer.bias for layer in layers]))

    def forward(self, a0_BHW: Tensor, m1_BHW: Tensor, m0_BHW: Tensor) -> Tensor:
        scales, weights = (values[..., None, None, None].unbind() for values in (self.scales, self.weights))
        return attend(a0_BHW, m1_BHW, m0_BHW, scales, weights, self.bias[..., None, None])
