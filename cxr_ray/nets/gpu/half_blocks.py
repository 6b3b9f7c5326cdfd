"""The two halves of a residual block's branch as Triton kernels, each of them one pass over its tensors.

A branch is depthwise, 1x1, norm and LeakyReLU (``first_half``), then depthwise and 1x1 again, onto its third of the
shortcut (``second_half``). Norms are folded into the 1x1 convolutions; what a kernel writes is already activated for
the one that reads it, so that padding is a zero for every tap outside the frame.

Memory: a tensor of G groups of channels is ``[G, B, H, W, CHANNELS]``: the taps of neighbouring pixels adjoin. In
Module 1 a group are the 16 filters of a branch; in a path of Module 2 its 51 channels are one group, padded to a power
of two with channels that are zero and have zero weights, and so are a branch's 17 filters.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cxr_ray.nets.gpu.tiles import ROWS, depthwise, leaky, load_matrix, multiply, places

SIZES = ["B", "H", "W"]
"""Arguments that no kernel is compiled anew for."""


@triton.jit(do_not_specialize=SIZES)
def first_half(
    inputs: tl.tensor,
    weights: tl.tensor,
    matrix: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    B: tl.tensor,
    H: tl.tensor,
    W: tl.tensor,
    K: tl.constexpr,
    D: tl.constexpr,
    GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    FILTERS: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    """Activated ``inputs`` [GROUPS, B, H, W, CHANNELS] -> one branch's ``out`` [B, H, W, FILTERS], activated."""
    y, x = places(W, D, PIXELS)
    image = tl.program_id(1).to(tl.int64)
    filters = tl.arange(0, FILTERS)[None, :]
    out_0 = tl.zeros([PIXELS, FILTERS], tl.float32) + tl.load(bias + filters)
    out_1, out_2, out_3 = out_0, out_0, out_0
    for g in range(GROUPS):
        plane = inputs + (image + g * B) * H * W * CHANNELS
        sums = depthwise(plane, weights + g * K * K * CHANNELS, y, x, H, W, K, D, CHANNELS)
        part = load_matrix(matrix + g * CHANNELS * FILTERS, CHANNELS, FILTERS)
        out_0 = multiply(sums[0], part, out_0)
        out_1 = multiply(sums[1], part, out_1)
        out_2 = multiply(sums[2], part, out_2)
        out_3 = multiply(sums[3], part, out_3)
    outs = (out_0, out_1, out_2, out_3)
    for r in tl.static_range(ROWS):
        at = out + image * H * W * FILTERS + ((y + r * D) * W + x)[:, None] * FILTERS + filters
        tl.store(at, leaky(outs[r]).to(out.dtype.element_ty), mask=(y + r * D < H)[:, None])


@triton.jit(do_not_specialize=SIZES)
def second_half(
    raw: tl.tensor,
    middle: tl.tensor,
    weights: tl.tensor,
    matrix: tl.tensor,
    shortcut: tl.tensor,
    bias: tl.tensor,
    after: tl.tensor,
    out: tl.tensor,
    activated: tl.tensor,
    B: tl.tensor,
    H: tl.tensor,
    W: tl.tensor,
    K: tl.constexpr,
    D: tl.constexpr,
    GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    FILTERS: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    PIXELS: tl.constexpr,
    LAST: tl.constexpr,
) -> None:
    """A block's input ``raw`` [GROUPS, B, H, W, CHANNELS] and one branch's ``middle`` [B, H, W, FILTERS] -> the
    branch's channels of the block's output, ``out``, and these activated for the next block, ``activated``: the first
    ``WIDTH`` filters, in tensors of ``STRIDE`` channels. ``after`` [2, FILTERS] is scale and shift of the norm in
    between. Without ``GROUPS`` there is no shortcut.

    In the ``LAST`` block ``after`` is the head's matrix, whose product is added onto ``out`` [B, 2, H, W].
    """
    y, x = places(W, D, PIXELS)
    image = tl.program_id(1).to(tl.int64)
    filters = tl.arange(0, FILTERS)[None, :]
    after_0, after_1 = tl.load(after + filters), tl.load(after + FILTERS + filters)
    sums = depthwise(middle + image * H * W * FILTERS, weights, y, x, H, W, K, D, FILTERS)
    for r in tl.static_range(ROWS):
        inside, pixel = y + r * D < H, (y + r * D) * W + x
        total = tl.zeros([PIXELS, FILTERS], tl.float32) + tl.load(bias + filters)
        total = multiply(sums[r], load_matrix(matrix, FILTERS, FILTERS), total)
        for g in tl.static_range(GROUPS):
            plane = raw + (image + g * B) * H * W * CHANNELS
            at = plane + pixel[:, None] * CHANNELS + tl.arange(0, CHANNELS)[None, :]
            value = tl.load(at, mask=inside[:, None], other=0.0).to(tl.float32)
            total = multiply(value, load_matrix(shortcut + g * CHANNELS * FILTERS, CHANNELS, FILTERS), total)
        if LAST:
            first = out + image * 2 * H * W + pixel
            tl.store(first, tl.load(first, mask=inside) + tl.sum(total * after_0, 1), mask=inside)
            second = first + H * W
            tl.store(second, tl.load(second, mask=inside) + tl.sum(total * after_1, 1), mask=inside)
        else:
            at = image * H * W * STRIDE + pixel[:, None] * STRIDE + filters
            kept = inside[:, None] & (filters < WIDTH)
            value = leaky(total * after_0 + after_1)
            tl.store(out + at, total.to(out.dtype.element_ty), mask=kept)
            tl.store(activated + at, value.to(activated.dtype.element_ty), mask=kept)
