"""Residual blocks one after the other: which kernel is launched on which tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor, nn

from cxr_ray.nets.gpu.half_blocks import first_half, second_half
from cxr_ray.nets.gpu.packing import PackedBranch
from cxr_ray.nets.gpu.tiles import ROWS

PIXELS, WARPS = 64, 8
"""Places and warps of a program. Not measured: chosen because the compiled kernels then leave room for 16 warps on a
multiprocessor of an H200 and spill no register."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """Where blocks leave what they compute; a block reads what the one before it has left.

    Attributes:
        middle: ``[branches, B, H, W, F]``, of at least as many filters as a branch has, padded.
        activated, even, odd: ``[G, B, H, W, C]``; channels that no branch writes must be zero.
    """

    middle: Tensor
    activated: Tensor
    even: Tensor
    odd: Tensor


def run_blocks(
    blocks: nn.ModuleList, x: Tensor, room: Room, out_B2HW: Tensor, *, pixels: int, warps: int
) -> None:
    """Add the product of the head with the last block's output onto ``out_B2HW``.

    Args:
        blocks: from ``pack_blocks``.
        x: ``[G, B, H, W, C]``, what shortcut and branches of the first block read.
        room: of the same frames.
        pixels, warps: of a program.
    """
    sizes = {"PIXELS": pixels, "num_warps": warps, "enable_fp_fusion": True}
    raw = active = x
    for i, block in enumerate(blocks):
        last, out = i + 1 == len(blocks), (room.even, room.odd)[i % 2]
        branches = list(_branches(block))
        middles = [_middle(room, q, branch) for q, branch in enumerate(branches)]
        for branch, middle in zip(branches, middles, strict=True):
            weights = (branch.first_weights, branch.first_matrix, branch.first_bias)
            first_half[_grid(branch, active, pixels)](
                active, *weights, middle, *_frame(active), **_kernel(branch, active), **sizes
            )
        for branch, middle in zip(branches, middles, strict=True):
            constants = _kernel(branch, raw) | {"GROUPS": len(branch.shortcut)}
            second_half[_grid(branch, raw, pixels)](
                raw,
                middle,
                branch.second_weights,
                branch.second_matrix,
                branch.shortcut,
                branch.bias,
                branch.after,
                out_B2HW if last else _own(out, branch),
                _own(room.activated, branch),
                *_frame(raw),
                **constants,
                WIDTH=branch.filters,
                STRIDE=out.shape[-1],
                LAST=last,
                **sizes,
            )
        raw, active = out, room.activated


def _branches(block: nn.Module) -> Iterable[PackedBranch]:
    assert isinstance(block, nn.ModuleList)
    return (branch for branch in block if isinstance(branch, PackedBranch))


def _middle(room: Room, q: int, branch: PackedBranch) -> Tensor:
    """The room of branch q, as ``[B, H, W, F]`` of its own width."""
    _, B, H, W, _ = room.middle.shape
    width = len(branch.first_bias)
    return room.middle[q].view(-1)[: B * H * W * width].view(B, H, W, width)


def _own(out: Tensor, branch: PackedBranch) -> Tensor:
    """From the branch's first channel on."""
    group, channel = divmod(branch.first, out.shape[-1])
    return out[group, ..., channel:]


def _grid(branch: PackedBranch, x: Tensor, pixels: int) -> tuple[int, int]:
    _, B, H, W, _ = x.shape
    lines = triton.cdiv(H, branch.dilation * ROWS.value) * branch.dilation
    return triton.cdiv(lines * W, pixels), B


def _frame(x: Tensor) -> torch.Size:
    """B, H, W."""
    return x.shape[1:4]


def _kernel(branch: PackedBranch, x: Tensor) -> dict[str, Any]:
    """Constants that both kernels are compiled for; ``x`` is what they read all groups of."""
    return {
        "K": branch.kernel,
        "D": branch.dilation,
        "GROUPS": x.shape[0],
        "CHANNELS": x.shape[-1],
        "FILTERS": len(branch.first_bias),
    }
