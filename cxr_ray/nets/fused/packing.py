"""Weights and memory as the compiled functions take them."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from cxr_ray.nets.layers import BatchNorm

ALIGNMENT = 16
"""Floats: every packed array begins at a multiple of 64 bytes."""
HUGE_PAGE = 2 << 20
"""Bytes."""


def packed(arrays: Iterable[Tensor]) -> Tensor:
    """All arrays in one aligned float32 vector, each padded to a multiple of ``ALIGNMENT``."""
    flat = [array.detach().float().reshape(-1) for array in arrays]
    return aligned(torch.cat([F.pad(array, (0, -len(array) % ALIGNMENT)) for array in flat]))


def scale_and_shift(norm: BatchNorm) -> list[Tensor]:
    """A batch norm in eval mode as one product and one sum, float64 ``[C]`` each."""
    scale = norm.weight.double() / (norm.running_var.double() + norm.EPS).sqrt()
    return [scale, norm.bias.double() - norm.running_mean.double() * scale]


def aligned(values: Tensor) -> Tensor:
    """A float32 copy of a vector that begins at a multiple of 64 bytes."""
    room = torch.empty(len(values) + ALIGNMENT)
    start = -(room.data_ptr() // 4) % ALIGNMENT
    return room[start : start + len(values)].copy_(values)


def workspace(floats: int) -> Tensor:
    """A float32 vector of zeros, aligned, in huge pages where the system has them: a frame of 20 MB is more than a
    core's page tables reach at once (1 % of Module 1)."""
    memory = mmap.mmap(-1, 4 * floats + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    room = torch.frombuffer(memory, dtype=torch.float32)
    start = -room.data_ptr() % HUGE_PAGE // 4
    return room[start : start + floats]


def pointer(values: Tensor) -> ctypes.c_void_p:
    """Address of the first number of a contiguous tensor."""
    return ctypes.c_void_p(values.data_ptr())
