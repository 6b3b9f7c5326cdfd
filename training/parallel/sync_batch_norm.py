"""Batch normalisation over the batch of all processes, on any device (torch's own refuses CPU tensors).

Mean first, then the centred variance, summed in float64: however the batch is spread, statistics then agree to the
last bit or nearly so, and no LeakyReLU changes its side because of them (TRAINING_SPEC E, traps).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cxr_ray.nets.layers import BatchNorm
from training.parallel.processes import Processes


class SyncBatchNorm(BatchNorm):
    """A ``BatchNorm`` whose statistics in train mode are those of all processes. Same state, same eval mode.

    Every picture counts alike, so shares of unequal size, even empty ones, are right.
    """

    processes: Processes

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_BCHW)
        with torch.no_grad():
            mean, variance, count = batch_statistics(x_BCHW, self.processes)
            unbiased = variance * (count / max(count - 1.0, 1.0))
            for running, value in ((self.running_mean, mean), (self.running_var, unbiased)):
                running.mul_(1.0 - self.momentum).add_(value, alpha=self.momentum)
            scale = (variance + self.EPS).rsqrt().to(mean.dtype)
        out: Tensor = _Normalise.apply(x_BCHW, self.weight, self.bias, mean, scale, count, self.processes)
        return out


def use_sync_batch_norm(model: nn.Module, processes: Processes) -> None:
    """Turn every ``BatchNorm`` of ``model`` into a ``SyncBatchNorm``, in place.

    Parameters, buffers and their names stay the very same, so an optimiser made before goes on. With a single process
    it changes only rounding.
    """
    for module in model.modules():
        if type(module) in (BatchNorm, SyncBatchNorm):
            # Not a new module in its place: whatever was set on this one (momentum, hooks) has to stay.
            module.__class__ = SyncBatchNorm
            module.processes = processes  # type: ignore[assignment]


def batch_statistics(x_BCHW: Tensor, processes: Processes) -> tuple[Tensor, Tensor, float]:
    """Mean (float32 ``[C]``), biased variance (float64 ``[C]``) and count of values, over all processes."""
    x = x_BCHW.float()
    values = x.new_tensor([x.numel() // x.shape[1]], dtype=torch.float64)
    sums = processes.sum(torch.cat((x.sum(dim=(0, 2, 3), dtype=torch.float64), values)))
    count = float(sums[-1])
    mean = (sums[:-1] / count).float()
    centred = x - _per_channel(mean)
    variance = processes.sum(centred.square_().sum(dim=(0, 2, 3), dtype=torch.float64)) / count
    return mean, variance, count


class _Normalise(torch.autograd.Function):
    """(x - mean) * scale * weight + bias, whose gradient knows that mean and scale come from x of all processes."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BCHW: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        scale: Tensor,
        count: float,
        processes: Processes,
    ) -> Tensor:
        ctx.save_for_backward(x_BCHW, weight, mean, scale)
        ctx.count, ctx.processes = count, processes
        centred = x_BCHW.float() - _per_channel(mean)
        return centred.mul_(_per_channel(scale * weight)).add_(_per_channel(bias)).to(x_BCHW.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x_BCHW, weight, mean, scale = ctx.saved_tensors
        gradient = gradient.float()
        normal = (x_BCHW.float() - _per_channel(mean)).mul_(_per_channel(scale))
        # Of this process alone: gradients of parameters are averaged over the processes like all others.
        to_bias = gradient.sum(dim=(0, 2, 3), dtype=torch.float64)
        to_weight = (gradient * normal).sum(dim=(0, 2, 3), dtype=torch.float64)
        means = (ctx.processes.sum(torch.stack((to_bias, to_weight))) / ctx.count).float()
        to_x = gradient - _per_channel(means[0]) - normal.mul_(_per_channel(means[1]))
        to_x = to_x.mul_(_per_channel(scale * weight)).to(x_BCHW.dtype)
        return to_x, to_weight.to(weight.dtype), to_bias.to(weight.dtype), None, None, None, None


def _per_channel(values_C: Tensor) -> Tensor:
    return values_C[:, None, None]
