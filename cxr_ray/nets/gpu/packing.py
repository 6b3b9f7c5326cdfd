"""Weights of a residual block as the Triton kernels read them: batch norms folded, channels in groups, all padded."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cxr_ray.nets.folding import fold
from cxr_ray.nets.fused.packing import scale_and_shift
from cxr_ray.nets.layers import BatchNorm, Branch, ResidualBlock

LEAST = 16
"""Channels or filters that a matrix product of a kernel takes at least; their number is a power of two."""


class PackedBranch(nn.Module):
    """Branch ``place`` of ``block``, and its part of what follows.

    Buffers, all with the output channel last; G groups of C channels come in, F filters go out, k is the kernel's size.
    Depthwise kernels and everything that is added are float32, matrices have the storage type. What is padded is zero.

    Args:
        after: ``[2, outputs of the block]``, for what is done with them: scale and shift of the next block's first
            norm, or the head's matrix.
        dtype: storage type.
        group: C, except where one channel comes in.

    Attributes:
        filters: of the branch, before padding.
        first: the first channel of the block's output that is the branch's.
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
    """[G, C, F], its norm folded in; no groups where the branches are added up and another one brings it."""
    bias: Tensor
    """[F], of shortcut and second matrix."""
    after: Tensor
    """[2, F]"""

    def __init__(
        self, block: ResidualBlock, place: int, after: Tensor, dtype: torch.dtype, group: int
    ) -> None:
        super().__init__()
        branch = block.branches[place]
        assert isinstance(branch, Branch)
        assert isinstance(branch.norm, BatchNorm)
        assert isinstance(block.shortcut_norm, BatchNorm)
        self.kernel, self.dilation = branch.first.depthwise.kernel_size[0], branch.first.depthwise.dilation[0]
        first_matrix, first_bias = fold(branch.first.pointwise, branch.norm)
        shortcut, shortcut_bias = fold(block.shortcut, block.shortcut_norm)
        bias = branch.second.pointwise.bias
        assert bias is not None
        self.filters = len(bias)
        self.first = place * self.filters if block.merge == "concat" else 0
        own = slice(self.first, self.first + self.filters)
        grouped = _grouped(shortcut[own].flatten(1).t(), group)
        if block.merge == "concat" or place == 0:
            bias = bias + shortcut_bias[own]
        else:
            grouped = grouped[:0]
        wide = power_of_two(self.filters)
        arrays = {
            "first_weights": _grouped(branch.first.depthwise.weight.flatten(1), group).transpose(1, 2),
            "first_matrix": _wide(_grouped(first_matrix.flatten(1).t(), group), wide).to(dtype),
            "first_bias": _wide(first_bias, wide),
            "second_weights": _wide(branch.second.depthwise.weight.flatten(1).t(), wide),
            "second_matrix": _wide(_grouped(branch.second.pointwise.weight.flatten(1).t(), wide)[0], wide).to(
                dtype
            ),
            "shortcut": _wide(grouped, wide).to(dtype),
            "bias": _wide(bias, wide),
            "after": _wide(after[:, own].float(), wide),
        }
        for name, array in arrays.items():
            self.register_buffer(name, array.detach().contiguous())


def pack_blocks(blocks: list[ResidualBlock], head: Tensor, dtype: torch.dtype, group: int) -> nn.ModuleList:
    """The branches of one block after the other. ``head``: ``[2, outputs of the last block]``."""
    packed = nn.ModuleList()
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        after = head
        if following is not None:
            assert following.pre_norm is not None
            after = torch.stack(scale_and_shift(following.pre_norm))
        branches = range(len(block.branches))
        packed.append(nn.ModuleList(PackedBranch(block, q, after, dtype, group) for q in branches))
    return packed


def power_of_two(channels: int) -> int:
    """The least size of a tile that holds so many channels."""
    return max(LEAST, 1 << (channels - 1).bit_length())


def _grouped(array: Tensor, group: int) -> Tensor:
    """``[inputs, n]`` -> ``[G, C, n]``."""
    size = group if len(array) > 1 else 1
    return F.pad(array, (0, 0, 0, -len(array) % size)).unflatten(0, (-1, size))


def _wide(array: Tensor, width: int) -> Tensor:
    """The last axis padded to ``width``."""
    return F.pad(array, (0, width - array.shape[-1]))
