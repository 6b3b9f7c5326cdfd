"""Self-attention along image rows and columns in closed form (REFERENCE_SPEC section 6).

Each row is its own sequence of positions with one feature; the key is the binary mask, so a softmax over the keys
has two distinct terms only and the sums collapse: O(n) instead of O(n^2), with the same result to 7e-7. The literal
form lives in the tests, which hold the two together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

HEADS = 2
HEAD_SIZE = 64


class RowAttention(nn.Module):
    """Two-head attention over the last axis: query a0, key m1 (0/1), value m0; 513 numbers."""

    def __init__(self, *, heads: int = HEADS, head_size: int = HEAD_SIZE) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(heads, head_size))
        self.key = nn.Parameter(torch.zeros(heads, head_size))
        self.value = nn.Parameter(torch.zeros(heads, head_size))
        self.projection = nn.Parameter(torch.zeros(heads, head_size))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, a0_BHW: Tensor, m1_BHW: Tensor, m0_BHW: Tensor) -> Tensor:
        """Three ``[B, H, W]`` tensors -> ``[B, H, W]``; every row of every image is attended by itself."""
        scales, weights = self.coefficients()
        return attend(a0_BHW, m1_BHW, m0_BHW, scales.unbind(), weights.unbind(), self.bias)

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """All that the closed form needs of the kernels: scales of the exponents and weights of the values, by head."""
        scales = (self.query * self.key).sum(-1) / math.sqrt(self.query.shape[-1])
        return scales, (self.value * self.projection).sum(-1)


def attend(
    a0_BHW: Tensor,
    m1_BHW: Tensor,
    m0_BHW: Tensor,
    scales: Iterable[Tensor],
    weights: Iterable[Tensor],
    bias: Tensor,
) -> Tensor:
    """The closed form. ``scales`` and ``weights`` hold a tensor per head; these and ``bias`` broadcast against
    ``[B, H, W]``, such as ``[K, 1, 1, 1]`` for K layers at once, and give the shape of the result."""
    n = a0_BHW.shape[-1]
    ones = m1_BHW.sum(-1, keepdim=True)
    value_in = (m0_BHW * m1_BHW).sum(-1, keepdim=True)
    value_out = (m0_BHW * (1.0 - m1_BHW)).sum(-1, keepdim=True)
    # With one kind of key only, every position weighs the same, whatever the query: exponent 0.
    uniform = (ones == 0) | (ones == n)

    out = bias.expand_as(a0_BHW) if bias.ndim < a0_BHW.ndim else bias
    for scale, weight in zip(scales, weights, strict=True):
        exponent = torch.where(uniform, 0.0, scale * a0_BHW)
        # Shifted by the larger of the two exponents, so that neither can overflow.
        shift = exponent.clamp(min=0.0)
        e1, e0 = (exponent - shift).exp(), (-shift).exp()
        out = out + weight * (e1 * value_in + e0 * value_out) / (e1 * ones + e0 * (n - ones))
    return out


class CrossAttention(nn.Module):
    """a0 * rows * columns, pointwise; the columns run on the transposes with weights of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = RowAttention()
        self.columns = RowAttention()

    def forward(self, a0_BHW: Tensor, m1_BHW: Tensor, m0_BHW: Tensor) -> Tensor:
        """Three ``[B, h, w]`` tensors -> the attention map ``[B, h, w]``."""
        rows = self.rows(a0_BHW, m1_BHW, m0_BHW)
        columns = self.columns(a0_BHW.mT, m1_BHW.mT, m0_BHW.mT).mT
        return a0_BHW * rows * columns


def glorot_uniform_(attention: CrossAttention, generator: torch.Generator) -> None:
    """Initialise in place as the published starting file: Glorot uniform kernels, zero biases.

    Keras counts the fans of a (heads, in, out) kernel as heads * in and heads * out.
    """
    for layer in (attention.rows, attention.columns):
        heads, size = layer.query.shape
        limit = math.sqrt(6.0 / (heads + heads * size))
        with torch.no_grad():
            for kernel in (layer.query, layer.key, layer.value, layer.projection):
                kernel.uniform_(-limit, limit, generator=generator)
            layer.bias.zero_()
