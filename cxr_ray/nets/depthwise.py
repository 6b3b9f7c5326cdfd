"""Depthwise convolution whose training step is quick on a CPU.

A depthwise convolution of dilation d never mixes pixels of different remainders modulo d, so it is d * d plain ones on
interleaved sub-frames. Frameworks have fast kernels for the plain kind only: on one core a training step of Module 1
costs two sevenths this way (``bench/results/training_step.md``). Same sums, other order of memory.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

BAND = 3
"""Columns of a kernel that oneDNN's quick weight gradient takes at most."""


class DepthwiseConv(nn.Conv2d):
    """k x k, one filter per channel, dilated, zero padding to the same size, no bias."""

    def __init__(self, channels: int, *, kernel: int, dilation: int) -> None:
        super().__init__(channels, channels, kernel, dilation=dilation, groups=channels, bias=False)
        self.pad = dilation * (kernel - 1) // 2

    def forward(self, x_BCHW: Tensor) -> Tensor:
        d = self.dilation[0]
        if d > 1 and x_BCHW.device.type == "cpu" and torch.is_grad_enabled():
            out: Tensor = InterleavedDepthwise.apply(x_BCHW, self.weight, d)
            return out
        # An explicit pad, since oneDNN takes a path several times slower for a wide dilated kernel with padding.
        p = self.pad
        return super().forward(F.pad(x_BCHW, (p, p, p, p)))


class InterleavedDepthwise(torch.autograd.Function):
    """Same-size depthwise convolution of dilation d over d * d interleaved sub-frames."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, weight: Tensor, d: int) -> Tensor:
        B, C, H, W = x_BCHW.shape
        parts = split(x_BCHW, d)
        ctx.save_for_backward(parts, weight)
        ctx.frame = (d, B, H, W)
        return join(F.conv2d(parts, weight, padding=weight.shape[-1] // 2, groups=C), d, (B, H, W))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        parts, weight = ctx.saved_tensors
        d, B, H, W = ctx.frame
        C, p = weight.shape[0], weight.shape[-1] // 2
        gradient_parts = split(gradient, d)
        to_input = None
        if ctx.needs_input_grad[0]:
            # A correlation with the kernel turned by 180 degrees: the forward kernel is the quickest way to it.
            to_input = join(F.conv2d(gradient_parts, weight.flip(2, 3), padding=p, groups=C), d, (B, H, W))
        return to_input, weight_gradient(parts, gradient_parts, weight), None


def weight_gradient(x_BCHW: Tensor, gradient_BCHW: Tensor, weight: Tensor) -> Tensor:
    """Gradient of a plain (dilation 1), same-size depthwise convolution with respect to its weight.

    The kernel is taken in bands of at most three columns: for these oneDNN has a routine eight times quicker per
    product than for wider kernels.
    """
    C, _, k, _ = weight.shape
    p, W = k // 2, x_BCHW.shape[-1]
    padded = F.pad(x_BCHW.permute(0, 2, 3, 1), (0, 0, p, p, p, p)).permute(0, 3, 1, 2)
    bands = []
    for first in range(0, k, BAND):
        band = weight[:, :, :, first : first + BAND].contiguous(memory_format=torch.channels_last)
        window = padded[:, :, :, first : first + W + band.shape[-1] - 1]
        _, to_band, _ = torch.ops.aten.convolution_backward(
            gradient_BCHW,
            window.contiguous(memory_format=torch.channels_last),
            band,
            None,
            [1, 1],
            [0, 0],
            [1, 1],
            False,
            [0, 0],
            C,
            [False, True, False],
        )
        bands.append(to_band)
    return torch.cat(bands, dim=-1)


def split(x_BCHW: Tensor, d: int) -> Tensor:
    """``[B, C, H, W]`` -> channels-last ``[B * d * d, C, ceil(H / d), ceil(W / d)]``, zeros where the frame ends."""
    B, C, H, W = x_BCHW.shape
    extra_rows, extra_columns = -H % d, -W % d
    x_BHWC = x_BCHW.permute(0, 2, 3, 1)
    if extra_rows or extra_columns:
        x_BHWC = F.pad(x_BHWC, (0, 0, 0, extra_columns, 0, extra_rows))
    h, w = (H + extra_rows) // d, (W + extra_columns) // d
    parts = x_BHWC.reshape(B, h, d, w, d, C).permute(0, 2, 4, 1, 3, 5).reshape(B * d * d, h, w, C)
    return parts.permute(0, 3, 1, 2)


def join(parts: Tensor, d: int, frame: tuple[int, int, int]) -> Tensor:
    """The inverse of ``split``: ``frame`` is (B, H, W)."""
    B, H, W = frame
    _, C, h, w = parts.shape
    x_BHWC = parts.permute(0, 2, 3, 1).reshape(B, d, d, h, w, C).permute(0, 3, 1, 4, 2, 5)
    return x_BHWC.reshape(B, h * d, w * d, C)[:, :H, :W].permute(0, 3, 1, 2)
