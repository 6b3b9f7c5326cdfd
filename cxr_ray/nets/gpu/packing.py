"""Weights of a residual block as the Triton kernels read them: batch norms folded, channels in groups."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cxr_ray.nets.folding import fold
from cxr_ray.nets.fused.packing import scale_and_shift
from cxr_ray.nets.layers import BatchNorm, Branch, ResidualBlock

GROUP, GROUPS = 16, 3
"""Channels of a group, the filters of a branch; groups, the branches. An input of one channel is a group of its own."""


class PackedBranch(nn.Module):
    """Branch ``place`` of ``block``, and its third of what follows.

    Buffers, all with the output channel last; G groups of C channels come in, F filters go out, k is the kernel's size.
    Depthwise kernels and everything that is added are float32, matrices have the storage type.

    Args:
        after: ``[2, GROUPS * F]``, for what is done with the block's output: scale and shift of the next block's
            first norm, or the head's matrix.
        dtype: storage type.
    """

    first_weights: Tensor
    """[G, k * k, C]"""
    first_matrix: Tensor
    """[G, C, F], the branch's norm folded in."""
    first_bias: Tensor
    """[F]"""
    second_weights: Tensor
    """[k * k, F]"""
    second_matrix: Tensor
    """[F, F]"""
    shortcut: Tensor
    """[G, C, F], its norm folded in."""
    bias: Tensor
    """[F], of shortcut and second matrix."""
    after: Tensor
    """[2, F]"""

    def __init__(self, block: ResidualBlock, place: int, after: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        branch = block.branches[place]
        assert isinstance(branch, Branch)
        assert isinstance(branch.norm, BatchNorm)
        assert isinstance(block.shortcut_norm, BatchNorm)
        self.kernel, self.dilation = branch.first.depthwise.kernel_size[0], branch.first.depthwise.dilation[0]
        first_matrix, first_bias = fold(branch.first.pointwise, branch.norm)
        shortcut, shortcut_bias = fold(block.shortcut, block.shortcut_norm)
        last_bias = branch.second.pointwise.bias
        assert last_bias is not None
        own = slice(place * GROUP, (place + 1) * GROUP)
        arrays = {
            "first_weights": _grouped(branch.first.depthwise.weight.flatten(1)).transpose(1, 2),
            "first_matrix": _grouped(first_matrix.flatten(1).t()).to(dtype),
            "first_bias": first_bias,
            "second_weights": branch.second.depthwise.weight.flatten(1).t(),
            "second_matrix": branch.second.pointwise.weight.flatten(1).t().to(dtype),
            "shortcut": _grouped(shortcut[own].flatten(1).t()).to(dtype),
            "bias": shortcut_bias[own] + last_bias,
            "after": after[:, own].float(),
        }
        for name, array in arrays.items():
            self.register_buffer(name, array.detach().contiguous())


def pack_blocks(blocks: nn.ModuleList, head: nn.Conv2d, dtype: torch.dtype) -> nn.ModuleList:
    """The branches of one block after the other."""
    packed = nn.ModuleList()
    for i, block in enumerate(blocks):
        assert isinstance(block, ResidualBlock)
        after = head.weight.flatten(1)
        if i + 1 < len(blocks):
            following = blocks[i + 1]
            assert isinstance(following, ResidualBlock)
            assert following.pre_norm is not None
            after = torch.stack(scale_and_shift(following.pre_norm))
        packed.append(nn.ModuleList(PackedBranch(block, q, after, dtype) for q in range(len(block.branches))))
    return packed


def _grouped(array: Tensor) -> Tensor:
    """``[inputs, n]`` -> ``[G, C, n]``."""
    return array.unflatten(0, (-1, min(len(array), GROUP)))
