"""The three building blocks both modules share: batch norm as Keras has it, separable convolution, residual block.

Source: REFERENCE_SPEC section 4 (and 6 for the block that adds its branches). Every convolution keeps the frame
size, is a cross-correlation and pads with zeros.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cxr_ray.nets.depthwise import DepthwiseConv

LEAKY_SLOPE = 0.1
BRANCHES = ((3, 1), (5, 3), (7, 5))
"""Module 1: (kernel, dilation) of the three branches."""


class BatchNorm(nn.Module):
    """Batch normalisation with Keras' constants: eps 1e-3, running = 0.99 old + 0.01 batch.

    Not ``nn.BatchNorm2d``, which would add a step counter to every saved state. Normalises with the biased batch
    variance in train mode and keeps the unbiased one, as both frameworks do.
    """

    EPS = 1e-3
    MOMENTUM = 0.01

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.momentum = self.MOMENTUM
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.training and x_BCHW.device.type == "cpu":
            return self._normalise_exactly(x_BCHW)
        return F.batch_norm(
            x_BCHW,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training,
            momentum=self.momentum,
            eps=self.EPS,
        )

    def _normalise_exactly(self, x_BCHW: Tensor) -> Tensor:
        """Train mode on a CPU, with statistics taken in two passes.

        torch's own pass over channels-last tensors adds up squares in float32, which loses the variance where means
        are several standard deviations from 0.
        """
        with torch.no_grad():
            values_NC = x_BCHW.permute(0, 2, 3, 1).reshape(-1, x_BCHW.shape[1])
            mean = values_NC.mean(0)
            variance = (values_NC - mean).square_().mean(0)
            n = len(values_NC)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (n / max(n - 1, 1)), self.momentum)
        out: Tensor = _BatchNormalised.apply(x_BCHW, self.weight, self.bias, mean, variance, self.EPS)
        return out


class _BatchNormalised(torch.autograd.Function):
    """Batch norm in train mode with the batch statistics given."""

    @staticmethod
    def forward(
        ctx: Any, x_BCHW: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x_BCHW, weight, mean, (variance + eps).rsqrt())
        ctx.eps = eps
        return F.batch_norm(x_BCHW, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x_BCHW, weight, mean, inverse_std = ctx.saved_tensors
        gradients = torch.ops.aten.native_batch_norm_backward(
            gradient, x_BCHW, weight, None, None, mean, inverse_std, True, ctx.eps, [True, True, True]
        )
        return (*gradients, None, None, None)


class SeparableConv(nn.Module):
    """Dilated depthwise k x k (no bias, nothing after it), then 1x1 pointwise with bias; same frame size."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int, dilation: int) -> None:
        super().__init__()
        self.depthwise = DepthwiseConv(in_channels, kernel=kernel, dilation=dilation)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return pointwise(self.pointwise, self.depthwise(x_BCHW))


class Branch(nn.Module):
    """Separable -> BN -> LeakyReLU -> separable, both with the same kernel and dilation."""

    def __init__(self, in_channels: int, filters: int, *, kernel: int, dilation: int) -> None:
        super().__init__()
        self.first = SeparableConv(in_channels, filters, kernel=kernel, dilation=dilation)
        self.norm: nn.Module = BatchNorm(filters)
        self.second = SeparableConv(filters, filters, kernel=kernel, dilation=dilation)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.second(F.leaky_relu(self.norm(self.first(x_BCHW)), LEAKY_SLOPE))


class ResidualBlock(nn.Module):
    """Three branches of unlike field beside a 1x1 shortcut that reads the raw input; no activation at the end.

    ``merge="concat"`` gives ``3 * filters`` channels, ``merge="add"`` gives ``filters``. ``pre_activation`` puts
    BN and LeakyReLU before the branches (never before the shortcut).
    """

    def __init__(
        self,
        in_channels: int,
        filters: int,
        *,
        branches: tuple[tuple[int, int], ...] = BRANCHES,
        pre_activation: bool = True,
        merge: Literal["concat", "add"] = "concat",
    ) -> None:
        super().__init__()
        self.merge = merge
        self.out_channels = filters * len(branches) if merge == "concat" else filters
        self.pre_norm = BatchNorm(in_channels) if pre_activation else None
        self.branches = nn.ModuleList(Branch(in_channels, filters, kernel=k, dilation=d) for k, d in branches)
        self.shortcut = nn.Conv2d(in_channels, self.out_channels, 1)
        self.shortcut_norm: nn.Module = BatchNorm(self.out_channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x0 = x_BCHW if self.pre_norm is None else F.leaky_relu(self.pre_norm(x_BCHW), LEAKY_SLOPE)
        out = self.shortcut_norm(pointwise(self.shortcut, x_BCHW))
        results = [branch(x0) for branch in self.branches]
        if self.merge == "concat":
            return out + torch.cat(results, dim=1)
        for result in results:
            out = out + result
        return out


def pointwise(conv: nn.Conv2d, x_BCHW: Tensor) -> Tensor:
    """A 1x1 convolution; while training on a CPU as the matrix product it is, for which torch has the quicker
    gradient."""
    if x_BCHW.device.type == "cpu" and torch.is_grad_enabled():
        weight = conv.weight[:, :, 0, 0]
        return F.linear(x_BCHW.permute(0, 2, 3, 1), weight, conv.bias).permute(0, 3, 1, 2)
    out: Tensor = conv(x_BCHW)
    return out


def he_normal_(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise every kernel in place as Keras' ``he_normal``, every bias to 0, every BN to the identity.

    he_normal: truncated normal (at two standard deviations) whose standard deviation after truncation is
    sqrt(2 / fan_in). Depthwise kernels count their fan-in as Keras does: k * k * channels.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            # Keras stores a depthwise kernel as (k, k, channels, 1) and takes the third axis as its inputs.
            fan_in = child.in_channels * child.kernel_size[0] * child.kernel_size[1]
            std = math.sqrt(2.0 / fan_in) / 0.87962566103423978
            with torch.no_grad():
                nn.init.trunc_normal_(child.weight, 0.0, std, -2 * std, 2 * std, generator=generator)
                if child.bias is not None:
                    child.bias.zero_()
        elif isinstance(child, BatchNorm):
            with torch.no_grad():
                child.weight.fill_(1.0)
                child.bias.zero_()
                child.running_mean.zero_()
                child.running_var.fill_(1.0)
