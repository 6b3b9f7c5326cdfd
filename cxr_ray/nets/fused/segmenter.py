"""A ``Segmenter`` whose arithmetic is compiled code: weights packed for it, one call per image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cxr_ray.nets.folding import fold
from cxr_ray.nets.fused.library import Library
from cxr_ray.nets.fused.packing import packed, pointer, scale_and_shift, workspace
from cxr_ray.nets.layers import BRANCHES, BatchNorm, Branch, ResidualBlock
from cxr_ray.nets.segmenter import FILTERS, Segmenter

COMPILED_FILTERS, COMPILED_BRANCHES = 16, ((3, 1), (5, 3), (7, 5))
"""What ``segmenter.cpp`` is written for."""


class FusedSegmenter(nn.Module):
    """The function of a trained ``Segmenter`` in eval mode, on one CPU thread, for frames ``library.pixels`` divides.

    It keeps a workspace (26 MB for 300 x 340), so one object serves one thread at a time. Values differ from the
    plain form by rounding (probability 3e-6), and are the same bits for every instruction set.

    Args:
        segmenter: as loaded, before its blocks are folded.
        library: from ``find_library``.
    """

    def __init__(self, segmenter: Segmenter, library: Library) -> None:
        super().__init__()
        if segmenter.training:
            raise ValueError("the compiled form needs a segmenter in eval mode")
        assert (FILTERS, BRANCHES) == (COMPILED_FILTERS, COMPILED_BRANCHES)
        self.library = library
        self.blocks = len(segmenter.blocks)
        self.weights = pack(segmenter, library.lanes)
        self._workspace: dict[tuple[int, int], Tensor] = {}

    def forward(self, x_BHW: Tensor) -> Tensor:
        """As ``Segmenter.forward``."""
        B, H, W = x_BHW.shape
        x_BHW = x_BHW.contiguous()
        logits_B2HW = x_BHW.new_empty(B, 2, H, W)
        scratch = self._workspace_for(H, W)
        for image in range(B):
            self.library.functions.fused_segment(
                pointer(x_BHW[image]),
                H,
                W,
                pointer(self.weights),
                self.blocks,
                pointer(scratch),
                pointer(logits_B2HW[image]),
            )
        return logits_B2HW

    def _workspace_for(self, H: int, W: int) -> Tensor:
        if W % self.library.pixels:
            raise ValueError(f"frames of {W} columns are no multiple of {self.library.pixels}")
        if (H, W) not in self._workspace:
            self._workspace = {(H, W): workspace(self.library.functions.fused_workspace(H, W))}
        return self._workspace[H, W]


@torch.no_grad()
def pack(segmenter: Segmenter, lanes: int) -> Tensor:
    """All weights in the order in which ``fused_segment`` reads them, float32, batch norms folded."""
    arrays: list[Tensor] = []
    for block in segmenter.blocks:
        assert isinstance(block, ResidualBlock)
        if block.pre_norm is not None:
            arrays += scale_and_shift(block.pre_norm)
        assert isinstance(block.shortcut_norm, BatchNorm)
        shortcut, bias = fold(block.shortcut, block.shortcut_norm)
        branches = [branch for branch in block.branches if isinstance(branch, Branch)]
        last = [branch.second.pointwise.bias for branch in branches]
        assert all(one is not None for one in last)
        arrays += [_matrix(shortcut, lanes), bias + torch.cat([one for one in last if one is not None])]
        for branch in branches:
            assert isinstance(branch.norm, BatchNorm)
            first, first_bias = fold(branch.first.pointwise, branch.norm)
            arrays += [
                _depthwise(branch.first.depthwise.weight, lanes),
                _matrix(first, lanes),
                first_bias,
                _depthwise(branch.second.depthwise.weight, lanes),
                _matrix(branch.second.pointwise.weight, lanes),
            ]
    assert segmenter.head.bias is not None
    arrays += [segmenter.head.weight, segmenter.head.bias]
    return packed(arrays)


def _depthwise(weight: Tensor, lanes: int) -> Tensor:
    """``[C, 1, k, k]`` -> ``[C / lanes, k * k, lanes]``; one channel stays alone."""
    taps = weight.flatten(1)
    return taps if len(taps) == 1 else taps.unflatten(0, (-1, lanes)).transpose(1, 2)


def _matrix(weight: Tensor, lanes: int) -> Tensor:
    """``[out, in, 1, 1]`` -> ``[out / lanes, in, lanes]``."""
    return weight.flatten(1).unflatten(0, (-1, lanes)).transpose(1, 2)
