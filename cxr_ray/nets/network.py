"""The whole network of one bundle, from equalised pixels to class maps, in the published order of steps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from cxr_ray.nets.ensemble import Ensemble, ensemble_map
from cxr_ray.nets.gate import level_table, look_up, quantise, standard_table, tissue
from cxr_ray.nets.joint_paths import JointPaths
from cxr_ray.nets.path import Variant
from cxr_ray.nets.segmenter import lung_probability


@dataclass(frozen=True)
class Activations:
    """What the network computed on the way, float32."""

    lung_probability: Tensor
    """[B, H, W] Module 1, before gate and quantisation."""
    mask: Tensor
    """[B, H, W] gated (and quantised) mask."""
    path_inputs: Tensor
    """[B, 50, h, w] scattering, then the pooled mask."""
    path_maps: Tensor
    """[B, K, C, h, w]"""
    ensemble_map: Tensor
    """[B, C, h, w]"""


class Network(nn.Module):
    """Segmenter, gate, standardisation and ensemble in one (REFERENCE_SPEC sections 2 to 7).

    Args:
        segmenter, ensemble: with their weights; ``segmenter`` is a ``Segmenter`` or behaves like one.
        mean, std: standardisation, in grey levels.
        quantise_mask: round the lung probability to 8 bits, as the published flow does.
        variant: None or an optional variant of the paths.
    """

    level_table: Tensor
    standard_table: Tensor

    def __init__(
        self,
        segmenter: nn.Module,
        ensemble: Ensemble | JointPaths,
        *,
        mean: float,
        std: float,
        quantise_mask: bool = True,
        variant: Variant | None = None,
    ) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.ensemble = ensemble
        self.quantise_mask = quantise_mask
        self.variant = variant
        self.register_buffer("level_table", level_table(), persistent=False)
        self.register_buffer("standard_table", standard_table(mean, std), persistent=False)

    def forward(self, pixels_BHW: Tensor) -> Activations:
        """``pixels_BHW``: equalised uint8 pixels of the frame size that the ensemble was built for."""
        probability = lung_probability(self.segmenter(look_up(self.level_table, pixels_BHW)))
        soft = look_up(self.level_table, quantise(probability)) if self.quantise_mask else probability
        mask = soft * tissue(pixels_BHW)
        inputs = self.ensemble.inputs(look_up(self.standard_table, pixels_BHW), mask)
        path_maps = self.ensemble(inputs, self.variant).contiguous()
        return Activations(probability, mask, inputs, path_maps, ensemble_map(path_maps))
