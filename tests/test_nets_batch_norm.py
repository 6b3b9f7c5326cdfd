"""Batch norm of training on a CPU: exact statistics, torch's gradients."""

import torch
import torch.nn.functional as F  # noqa: N812

from cxr_ray.nets.layers import BatchNorm


def test_equals_torch_in_float64() -> None:
    torch.manual_seed(0)
    norm = BatchNorm(3).double().train()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 2.0, -1.0]))
        norm.bias.copy_(torch.tensor([1.0, 0.0, 3.0]))
    x = torch.randn(4, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    mean, var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    literal = F.batch_norm(x, mean, var, norm.weight, norm.bias, True, norm.MOMENTUM, norm.EPS)
    ours = norm(x)
    assert torch.allclose(ours, literal, atol=1e-12)
    assert torch.allclose(norm.running_mean, mean, atol=1e-14)
    assert torch.allclose(norm.running_var, var, atol=1e-14)
    gradient = torch.randn_like(ours)
    parameters = (x, norm.weight, norm.bias)
    for found, expected in zip(
        torch.autograd.grad(ours, parameters, gradient),
        torch.autograd.grad(literal, parameters, gradient),
        strict=True,
    ):
        assert torch.allclose(found, expected, atol=1e-10)


def test_keeps_the_variance_of_channels_far_from_zero() -> None:
    """torch's own pass over channels-last tensors is off by a tenth here."""
    torch.manual_seed(1)
    x = (torch.randn(2, 16, 120, 130) * 0.01 + 30.0).contiguous(memory_format=torch.channels_last)
    norm = BatchNorm(16).train()
    norm.momentum = 1.0
    out = norm(x).detach()
    exact = x.double().var(dim=(0, 2, 3))
    assert torch.allclose(norm.running_var.double(), exact, rtol=1e-4)
    centred = x.double() - x.double().mean((0, 2, 3), keepdim=True)
    expected = centred / (x.double().var((0, 2, 3), unbiased=False, keepdim=True) + norm.EPS).sqrt()
    assert float((out.double() - expected).abs().max()) < 1e-2
