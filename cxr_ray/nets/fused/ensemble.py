"""An ``Ensemble`` whose scattering and paths are compiled code; gate and attention stay torch's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cxr_ray.nets.ensemble import Ensemble
from cxr_ray.nets.folding import fold
from cxr_ray.nets.fused.library import Library
from cxr_ray.nets.fused.packing import packed, pointer, scale_and_shift, workspace
from cxr_ray.nets.fused.scattering import FusedScattering, able
from cxr_ray.nets.gate import pool_mask
from cxr_ray.nets.joint_paths import JointPaths, paths_of
from cxr_ray.nets.layers import BatchNorm, Branch, ResidualBlock
from cxr_ray.nets.path import PATH_BRANCHES, SCATTERING_CHANNELS, TRUNK_CHANNELS, Path

COMPILED_BRANCHES = ((3, 1), (3, 2), (3, 3))
"""What ``paths.cpp`` is written for."""


class FusedEnsemble(JointPaths):
    """The function of a trained ``Ensemble`` in eval mode, on one CPU thread.

    It keeps a workspace (6 MB), so one object serves one thread at a time. Path maps differ from the plain form by
    rounding (4e-4 of values up to 300), and are the same bits for every instruction set.

    Args:
        ensemble: as loaded, before its blocks are folded.
        library: from ``find_library``.
    """

    def __init__(self, ensemble: Ensemble, library: Library) -> None:
        super().__init__(ensemble)
        assert PATH_BRANCHES == COMPILED_BRANCHES
        self.library = library
        if able(ensemble.scattering, library):
            self.scattering = FusedScattering(ensemble.scattering, library)
        self.weights = [pack(path) for path in paths_of(ensemble)]
        self._workspace: dict[tuple[int, int], Tensor] = {}

    def inputs(self, x_BHW: Tensor, mask_BHW: Tensor) -> Tensor:
        """As ``Ensemble.inputs``."""
        if not isinstance(self.scattering, FusedScattering):
            return super().inputs(x_BHW, mask_BHW)
        inputs_B50hw = self.scattering(x_BHW, spare=1)
        inputs_B50hw[:, SCATTERING_CHANNELS] = pool_mask(mask_BHW)
        return inputs_B50hw

    def trunks(self, x_B50hw: Tensor, attention_KBhw: Tensor) -> Tensor:
        B, _, h, w = x_B50hw.shape
        scratch = self._workspace_for(h, w)
        maps_BKChw = x_B50hw.new_empty(B, len(self.weights), self.classes, h, w)
        for image in range(B):
            for path, weights in enumerate(self.weights):
                self.library.functions.fused_path(
                    pointer(x_B50hw[image]),
                    pointer(attention_KBhw[path, image]),
                    h,
                    w,
                    TRUNK_CHANNELS,
                    self.classes,
                    pointer(weights),
                    pointer(scratch),
                    pointer(maps_BKChw[image, path]),
                )
        return maps_BKChw

    def _workspace_for(self, h: int, w: int) -> Tensor:
        if (h, w) not in self._workspace:
            floats = self.library.functions.fused_path_workspace(h, w, TRUNK_CHANNELS)
            self._workspace = {(h, w): workspace(floats)}
        return self._workspace[h, w]


@torch.no_grad()
def pack(path: Path) -> Tensor:
    """A path's weights in the order in which ``fused_path`` reads them, float32, batch norms folded."""
    arrays: list[Tensor] = []
    for block, before in ((path.block_a, path.norm), (path.block_b, None), (path.block_c, None)):
        norm = before if before is not None else block.pre_norm
        assert isinstance(norm, BatchNorm)
        arrays += [*scale_and_shift(norm), *_block(block)]
    return packed(arrays)


def _block(block: ResidualBlock) -> list[Tensor]:
    assert isinstance(block.shortcut_norm, BatchNorm)
    shortcut, bias = fold(block.shortcut, block.shortcut_norm)
    branches = [branch for branch in block.branches if isinstance(branch, Branch)]
    last = torch.stack([_bias(branch.second.pointwise) for branch in branches])
    arrays = [_matrix(shortcut), bias + (last.flatten() if block.merge == "concat" else last.sum(dim=0))]
    for branch in branches:
        assert isinstance(branch.norm, BatchNorm)
        first, first_bias = fold(branch.first.pointwise, branch.norm)
        arrays += [
            branch.first.depthwise.weight,
            _matrix(first),
            first_bias,
            branch.second.depthwise.weight,
            _matrix(branch.second.pointwise.weight),
        ]
    return arrays


def _matrix(weight: Tensor) -> Tensor:
    """``[out, in, 1, 1]`` -> ``[in, out]``."""
    return weight.flatten(1).t()


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None  # every 1x1 convolution of the network has one
    return conv.bias
