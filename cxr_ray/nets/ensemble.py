"""Module 2 whole: scattering once, k paths, and the mean of their class maps (REFERENCE_SPEC sections 5 to 7)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cxr_ray.nets.gate import pool_mask
from cxr_ray.nets.path import MASK_THRESHOLD, Path, Variant
from cxr_ray.nets.scattering import Scattering


class Ensemble(nn.Module):
    """k paths over one scattering. The ensemble's logits are the mean of the path logits, not of the softmaxes."""

    def __init__(
        self,
        *,
        rows: int,
        columns: int,
        paths: int = 6,
        classes: int = 2,
        mask_threshold: float = MASK_THRESHOLD,
        lung_gate: bool = False,
    ) -> None:
        super().__init__()
        self.scattering = Scattering(rows, columns)
        self.paths = nn.ModuleList(
            Path(classes=classes, mask_threshold=mask_threshold, lung_gate=lung_gate) for _ in range(paths)
        )

    def inputs(self, x_BHW: Tensor, mask_BHW: Tensor) -> Tensor:
        """``path_inputs`` of this ensemble's scattering."""
        return path_inputs(self.scattering, x_BHW, mask_BHW)

    def forward(self, x_B50hw: Tensor, variant: Variant | None = None) -> Tensor:
        """Path input -> path maps ``[B, K, C, h, w]``; ``ensemble_map`` and ``class_logits`` read them."""
        return torch.stack([path(x_B50hw, variant) for path in self.paths], dim=1)


def path_inputs(scattering: nn.Module, x_BHW: Tensor, mask_BHW: Tensor) -> Tensor:
    """Standardised frame and combined mask -> the 50-channel path input ``[B, 50, h, w]``."""
    return torch.cat((scattering(x_BHW), pool_mask(mask_BHW).unsqueeze(1)), dim=1)


def ensemble_map(path_maps_BKChw: Tensor) -> Tensor:
    """Mean over the paths: ``[B, C, h, w]``."""
    return path_maps_BKChw.mean(dim=1)


def class_logits(class_map: Tensor) -> Tensor:
    """Global average over the last two axes. Positions outside the lungs are zeros and count in the divisor."""
    return class_map.mean(dim=(-2, -1))


def log_odds(logits: Tensor, positive: int) -> Tensor:
    """Log of p / (1 - p) of one class, from class logits ``[..., C]``, without ever forming p. Returns ``[...]``."""
    # Slices: a list of indices would be copied to a GPU, and waited for, at every call.
    others = torch.cat((logits[..., :positive], logits[..., positive + 1 :]), dim=-1)
    return logits[..., positive] - others.logsumexp(dim=-1)
