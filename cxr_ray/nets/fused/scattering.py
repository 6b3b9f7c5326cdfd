"""A ``Scattering`` whose arithmetic is compiled code: constants packed for it, one call per image."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cxr_ray.nets.fused.library import Library
from cxr_ray.nets.fused.packing import packed, pointer, workspace
from cxr_ray.nets.scattering import ANGLES, CHANNELS, STEP, Scattering

RADICES = (4, 2, 3, 5, 7, 11, 13, 29)
"""Factors of a transform's length that ``scattering.cpp`` has a butterfly for."""
LANES = 8


class FusedScattering(nn.Module):
    """The function of a ``Scattering`` on one CPU thread, without gradients.

    It keeps a workspace (13 MB for 300 x 340), so one object serves one thread at a time. Values differ from the plain
    form by rounding (1e-6).

    Raises:
        ValueError: a frame whose transforms have other factors than ``RADICES``, or are too long; see ``able``.
    """

    def __init__(self, scattering: Scattering, library: Library) -> None:
        super().__init__()
        if not able(scattering, library):
            raise ValueError(f"no compiled transform for frames of {scattering.rows} x {scattering.columns}")
        self.library = library
        self.rows, self.columns = scattering.rows + 2 * STEP, scattering.columns + 2 * STEP
        lengths = _lengths(scattering)
        plans = [factors(length) for length in lengths]
        numbers = [number for plan in plans for number in (len(plan), *plan)]
        self.factors = torch.tensor(numbers, dtype=torch.int32)
        tables = [
            table for length, plan in zip(lengths, plans, strict=True) for table in stage_tables(length, plan)
        ]
        # Both wavelets are followed by an inverse transform that is not normalised (for those of scale 1, by folding to
        # half size, whose 1 / 4 they hold already).
        size = self.rows * self.columns
        fine = scattering.wavelets_0[..., ::2].double() / size
        coarse = scattering.wavelets_1[..., ::2].double() * 4 / size
        self.constants = packed(
            [
                *tables,
                _in_lanes(fine),
                _in_lanes(coarse),
                coarse,
                scattering.get_buffer("smooth_rows_full"),
                scattering.get_buffer("smooth_columns_full").t(),
                scattering.get_buffer("smooth_rows_half"),
                scattering.get_buffer("smooth_columns_half").t(),
            ]
        )
        floats = library.functions.fused_scattering_workspace(self.rows, self.columns)
        self.workspace = workspace(floats)

    def forward(self, x_BHW: Tensor, spare: int = 0) -> Tensor:
        """As ``Scattering.forward``, with that many channels more, which are left for the caller to fill."""
        B, H, W = x_BHW.shape
        padded = F.pad(x_BHW.unsqueeze(1), (STEP, STEP, STEP, STEP), mode="reflect").squeeze(1).contiguous()
        out = x_BHW.new_empty(B, CHANNELS + spare, H // STEP, W // STEP)
        for image in range(B):
            self.library.functions.fused_scatter(
                pointer(padded[image]),
                self.rows,
                self.columns,
                ctypes.c_void_p(self.factors.data_ptr()),
                pointer(self.constants),
                pointer(self.workspace),
                pointer(out[image]),
            )
        return out


def able(scattering: Scattering, library: Library) -> bool:
    """Whether the compiled form serves frames of this size."""
    longest = library.functions.fused_scattering_longest()
    return all(length <= longest and factors(length) for length in _lengths(scattering))


def factors(length: int) -> list[int]:
    """The length as a product of ``RADICES``; empty where it is none."""
    found = []
    for radix in RADICES:
        while length % radix == 0:
            found.append(radix)
            length //= radix
    return found if length == 1 else []


def stage_tables(length: int, plan: list[int]) -> Iterator[Tensor]:
    """For every stage: cosines and sines of its roots of unity, then of its twiddle factors ``[radix - 1, left]``."""
    done, left = 1, length
    for radix in plan:
        left //= radix
        roots = 2 * np.pi * np.arange(radix) / radix
        # Reduced modulo the length first, so that every angle is exact to the last bit of float64.
        turns = np.outer(np.arange(1, radix), done * np.arange(left)) % length
        twiddles = 2 * np.pi * turns / length
        parts = [np.cos(roots), np.sin(roots), np.cos(twiddles).ravel(), np.sin(twiddles).ravel()]
        yield torch.from_numpy(np.concatenate(parts))
        done *= radix


def _lengths(scattering: Scattering) -> tuple[int, int, int, int]:
    rows, columns = scattering.rows + 2 * STEP, scattering.columns + 2 * STEP
    return rows, columns, rows // 2, columns // 2


def _in_lanes(wavelets: Tensor) -> Tensor:
    """``[ANGLES, H, W]`` -> ``[H, W, LANES]``, zeros in the lanes that are left."""
    return F.pad(wavelets.permute(1, 2, 0), (0, LANES - ANGLES))
