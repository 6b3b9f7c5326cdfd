"""The residual block in its inference form: the same function with fewer passes over memory.

Four things, for inference only: batch norms that follow a convolution are folded into it; padded inputs are
written straight into scratch buffers whose zero border is kept; a branch goes through its convolutions in strips of
rows; and the branches' last 1x1 convolutions add themselves onto the shortcut as matrix products, so nothing is
concatenated or added afterwards.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cxr_ray.nets.layers import LEAKY_SLOPE, BatchNorm, Branch, ResidualBlock

STRIP_ROWS = 75
"""Intermediate results of a strip of this height stay in the cache, and in memory that the allocator already has."""


class Scratch:
    """Zero-bordered buffers by shape, shared by the blocks of one network; so that network serves one thread."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[object, ...], Tensor] = {}

    def padded(self, use: str, shape: tuple[int, int, int, int], pad: int, like: Tensor) -> Tensor:
        """A channels-last buffer for ``shape`` with ``pad`` zeros on every side; inside is what was last there.

        One buffer per ``use``, so that two buffers in use at a time are never the same.
        """
        B, C, H, W = shape
        key = (use, *shape, pad, like.device, like.dtype)
        if key not in self._buffers:
            self._buffers[key] = like.new_zeros(B, H + 2 * pad, W + 2 * pad, C).permute(0, 3, 1, 2)
        return self._buffers[key]

    def clear(self) -> None:
        """Let go of every buffer."""
        self._buffers.clear()


def free_scratch(network: nn.Module) -> None:
    """Let go of the buffers of a network, such as those of a batch size that is not used any more."""
    for module in network.modules():
        scratch = getattr(module, "scratch", None)
        if isinstance(scratch, Scratch):
            scratch.clear()


def strip_rows(x_BCHW: Tensor) -> int:
    """Rows to take at a time: strips for one image on a CPU, where they cost no copy, else the whole frame."""
    return STRIP_ROWS if x_BCHW.shape[0] == 1 and x_BCHW.device.type == "cpu" else x_BCHW.shape[2]


class FoldedBranch(nn.Module):
    """A ``Branch`` up to, not including, its last 1x1 convolution, which is kept as a matrix."""

    first_depthwise: Tensor
    first_pointwise: Tensor
    first_bias: Tensor
    second_depthwise: Tensor
    second_matrix: Tensor

    def __init__(self, branch: Branch, scratch: Scratch) -> None:
        super().__init__()
        assert isinstance(branch.norm, BatchNorm)
        self.scratch = scratch
        self.dilation = branch.first.depthwise.dilation[0]
        self.pad = branch.first.depthwise.pad
        weight, bias = fold(branch.first.pointwise, branch.norm)
        self.register_buffer("first_depthwise", _channels_last(branch.first.depthwise.weight))
        self.register_buffer("first_pointwise", _channels_last(weight))
        self.register_buffer("first_bias", bias)
        self.register_buffer("second_depthwise", _channels_last(branch.second.depthwise.weight))
        self.register_buffer(
            "second_matrix", branch.second.pointwise.weight.detach()[:, :, 0, 0].t().contiguous()
        )

    def add_to(self, target: Tensor, x_BCHW: Tensor, activate: bool) -> None:
        """Add the branch's matrix product (without its last bias) onto ``target``, ``[B * H * W, filters]``.

        ``x_BCHW`` comes before its activation if ``activate``, else as it is.
        """
        B, C, H, W = x_BCHW.shape
        p, filters = self.pad, len(self.first_bias)
        first = self.scratch.padded("first", (B, C, H, W), p, x_BCHW)
        second = self.scratch.padded("second", (B, filters, H, W), p, x_BCHW)
        first_inside, second_inside = first[:, :, p:-p, p:-p], second[:, :, p:-p, p:-p]
        if activate:
            torch.ops.aten.leaky_relu.out(x_BCHW, LEAKY_SLOPE, out=first_inside)
        else:
            first_inside.copy_(x_BCHW)

        rows = strip_rows(x_BCHW)
        for top in range(0, H, rows):
            end = min(top + rows, H)
            x = F.conv2d(
                first[:, :, top : end + 2 * p], self.first_depthwise, dilation=self.dilation, groups=C
            )
            x = F.conv2d(x, self.first_pointwise, self.first_bias)
            torch.ops.aten.leaky_relu.out(x, LEAKY_SLOPE, out=second_inside[:, :, top:end])
        for top in range(0, H, rows):
            end = min(top + rows, H)
            x = F.conv2d(
                second[:, :, top : end + 2 * p], self.second_depthwise, dilation=self.dilation, groups=filters
            )
            strip = target if rows >= H else target[top * W : end * W]
            strip.addmm_(as_matrix(x.contiguous(memory_format=torch.channels_last)), self.second_matrix)


class FoldedBlock(nn.Module):
    """A ``ResidualBlock`` for inference. Built in and for eval mode; its state is not that of the original."""

    shortcut: Tensor
    bias: Tensor

    def __init__(self, block: ResidualBlock, scratch: Scratch) -> None:
        super().__init__()
        if block.training:
            raise ValueError("folding needs a block in eval mode: batch statistics cannot be folded")
        assert isinstance(block.shortcut_norm, BatchNorm)
        self.pre_norm = block.pre_norm
        self.concatenates = block.merge == "concat"
        branches = [branch for branch in block.branches if isinstance(branch, Branch)]
        self.branches = nn.ModuleList(FoldedBranch(branch, scratch) for branch in branches)
        shortcut, bias = fold(block.shortcut, block.shortcut_norm)
        last = torch.stack([_bias(branch.second.pointwise) for branch in branches])
        self.register_buffer("shortcut", _channels_last(shortcut))
        self.register_buffer("bias", bias + (last.flatten() if self.concatenates else last.sum(dim=0)))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        out = F.conv2d(x_BCHW, self.shortcut, self.bias).contiguous(memory_format=torch.channels_last)
        matrix = as_matrix(out)
        x = x_BCHW if self.pre_norm is None else self.pre_norm(x_BCHW)
        filters = matrix.shape[1] // len(self.branches) if self.concatenates else matrix.shape[1]
        for q, branch in enumerate(self.branches):
            assert isinstance(branch, FoldedBranch)
            target = matrix[:, q * filters : (q + 1) * filters] if self.concatenates else matrix
            branch.add_to(target, x, activate=self.pre_norm is not None)
        return out


def fold_blocks(module: nn.Module) -> None:
    """Replace in place every ``ResidualBlock`` below ``module`` by its inference form. ``module`` must be
    in eval mode."""
    scratch = Scratch()
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ResidualBlock):
                parent.register_module(name, FoldedBlock(child, scratch))


@torch.no_grad()
def fold(conv: nn.Conv2d, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of ``norm`` after ``conv``, computed in float64 and rounded once."""
    scale = norm.weight.double() / (norm.running_var.double() + norm.EPS).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    weight = conv.weight.double() * scale[:, None, None, None]
    return weight.to(conv.weight.dtype), (_bias(conv).double() * scale + shift).to(conv.weight.dtype)


def as_matrix(x_BCHW: Tensor) -> Tensor:
    """A channels-last tensor as ``[B * H * W, C]``, sharing its memory."""
    return x_BCHW.permute(0, 2, 3, 1).view(-1, x_BCHW.shape[1])


def _channels_last(weight: Tensor) -> Tensor:
    return weight.detach().contiguous(memory_format=torch.channels_last)


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None  # every 1x1 convolution of the network has one
    return conv.bias.detach()
