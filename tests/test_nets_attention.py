"""The closed form of attention against the literal softmax, with masks and weights that provoke it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cxr_ray.nets.attention import CrossAttention, RowAttention, glorot_uniform_


def literal(layer: RowAttention, a0: Tensor, m1: Tensor, m0: Tensor) -> Tensor:
    """REFERENCE_SPEC section 6 word by word, in float64: every query against every key."""
    out = torch.zeros_like(a0, dtype=torch.float64) + layer.bias.double()
    for head in range(layer.query.shape[0]):
        q = a0.double().unsqueeze(-1) * layer.query[head].double() / math.sqrt(layer.query.shape[1])
        k = m1.double().unsqueeze(-1) * layer.key[head].double()
        v = m0.double().unsqueeze(-1) * layer.value[head].double()
        weights = (q @ k.mT).softmax(dim=-1)
        out = out + (weights @ v) @ layer.projection[head].double()
    return out


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a0 = torch.randn(2, 15, 17, generator=generator)
    m0 = torch.rand(2, 15, 17, generator=generator)
    m0[:, 3] = 0.0  # a row without a key
    m0[:, 5] = 0.9  # a row of keys only
    return a0, (m0 > 0.3).float(), m0


def made(scale: float, seed: int = 3) -> CrossAttention:
    attention = CrossAttention()
    glorot_uniform_(attention, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for layer in (attention.rows, attention.columns):
            layer.query.mul_(scale)
            layer.key.mul_(scale)
            layer.bias.fill_(0.25)
    return attention


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_rows_equal_the_literal_form(scale: float) -> None:
    layer = made(scale).rows
    a0, m1, m0 = inputs()
    assert (layer(a0, m1, m0) - literal(layer, a0, m1, m0)).abs().max() < 2e-6


def test_columns_run_on_the_transposes() -> None:
    attention = made(1.0)
    a0, m1, m0 = inputs(4)
    rows = literal(attention.rows, a0, m1, m0)
    columns = literal(attention.columns, a0.mT, m1.mT, m0.mT).mT
    assert (attention(a0, m1, m0) - a0 * rows * columns).abs().max() < 5e-6


def test_huge_exponents_stay_finite() -> None:
    layer = made(200.0).rows
    a0, m1, m0 = inputs()
    got = layer(a0 * 50, m1, m0)
    assert torch.isfinite(got).all()
    assert (got - literal(layer, a0 * 50, m1, m0)).abs().max() < 1e-4


def test_gradients_reach_every_weight() -> None:
    attention = made(1.0)
    attention(*inputs()).square().sum().backward()
    for name, parameter in attention.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_a_layer_has_513_numbers() -> None:
    assert sum(p.numel() for p in RowAttention().parameters()) == 513
