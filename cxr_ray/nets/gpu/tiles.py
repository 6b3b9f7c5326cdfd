"""What the kernels of ``half_blocks`` do with a tile: find its pixels, depthwise and 1x1 convolutions.

A program takes ``PIXELS`` places, and at each of them ``ROWS`` pixels one dilation apart, below one another. These
share most of the rows of their kernels, so that a 7 x 7 convolution loads 17.5 values a pixel for its 49 products.
Sums are float32 whatever is stored.
"""

from __future__ import annotations

import triton
import triton.language as tl

SLOPE = tl.constexpr(0.1)
ROWS = tl.constexpr(4)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Then bfloat16 is multiplied as float32, with the same products: the interpreter would take its bits for whole
numbers."""


@triton.jit
def leaky(x: tl.tensor) -> tl.tensor:
    return tl.where(x > 0, x, x * SLOPE)


@triton.jit
def places(W: tl.tensor, D: tl.constexpr, PIXELS: tl.constexpr) -> tl.tensor:
    """Row and column of each place of this program, [PIXELS]. Of ``D * ROWS`` rows the first ``D`` have places."""
    n = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    line = n // W
    return line // D * (D * ROWS) + line % D, n % W


@triton.jit
def load_matrix(matrix: tl.tensor, CHANNELS: tl.constexpr, FILTERS: tl.constexpr) -> tl.tensor:
    """[CHANNELS, FILTERS]"""
    return tl.load(matrix + tl.arange(0, CHANNELS)[:, None] * FILTERS + tl.arange(0, FILTERS)[None, :])


@triton.jit
def multiply(x: tl.tensor, matrix: tl.tensor, total: tl.tensor) -> tl.tensor:
    """``total`` [PIXELS, FILTERS] plus the 1x1 convolution of ``x`` [PIXELS, C] with ``matrix`` [C, FILTERS]; C
    is 16 or more, then ``x`` is rounded to the type of the matrix, or 1."""
    if x.shape[1] == 1:
        total += x * matrix
    else:
        x = x.to(matrix.dtype)
        if INTERPRETED:
            x, matrix = x.to(tl.float32), matrix.to(tl.float32)
        total = tl.dot(x, matrix, total, input_precision="ieee")
    return total


@triton.jit
def depthwise(
    plane: tl.tensor,
    weights: tl.tensor,
    y: tl.tensor,
    x: tl.tensor,
    H: tl.tensor,
    W: tl.tensor,
    K: tl.constexpr,
    D: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> tl.tensor:
    """``plane`` [H, W, CHANNELS] convolved with ``weights`` [K, K, CHANNELS], at rows ``y``, ``y + D`` and so on: as
    many float32 tiles [PIXELS, CHANNELS]."""
    channels = tl.arange(0, CHANNELS)[None, :]
    corner = plane + ((y - K // 2 * D) * W + x - K // 2 * D)[:, None] * CHANNELS + channels
    row_inside = ()
    for step in tl.static_range(K + ROWS - 1):
        row = y + (step - K // 2) * D
        row_inside = row_inside + ((row >= 0) & (row < H),)  # type: ignore[assignment]  # noqa: RUF005
    sum_0 = tl.zeros(corner.shape, tl.float32)
    sum_1, sum_2, sum_3 = sum_0, sum_0, sum_0
    for kx in range(K):
        column = x + (kx - K // 2) * D
        inside = (column >= 0) & (column < W)
        taps = ()
        for ky in tl.static_range(K):
            tap = tl.load(weights + (ky * K + kx) * CHANNELS + channels)
            taps = taps + (tap,)  # type: ignore[assignment]  # noqa: RUF005
        for step in tl.static_range(K + ROWS - 1):
            at = corner + (step * W + kx) * (D * CHANNELS)
            value = tl.load(at, mask=(inside & row_inside[step])[:, None], other=0.0).to(tl.float32)
            if step < K:
                sum_0 += value * taps[step]
            if (step >= 1) & (step < K + 1):
                sum_1 += value * taps[step - 1]
            if (step >= 2) & (step < K + 2):
                sum_2 += value * taps[step - 2]
            if step >= 3:
                sum_3 += value * taps[step - 3]
    return sum_0, sum_1, sum_2, sum_3
