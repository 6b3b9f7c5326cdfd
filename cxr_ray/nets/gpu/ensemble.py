"""An ``Ensemble`` whose trunks are done by the Triton kernels of Module 1; gate and attention stay torch's."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cxr_ray.nets.ensemble import Ensemble
from cxr_ray.nets.folding import Scratch
from cxr_ray.nets.fused.packing import scale_and_shift
from cxr_ray.nets.gpu.launches import WARPS, Room, run_blocks
from cxr_ray.nets.gpu.packing import pack_blocks, power_of_two
from cxr_ray.nets.joint_paths import JointPaths, paths_of
from cxr_ray.nets.layers import LEAKY_SLOPE, BatchNorm
from cxr_ray.nets.path import IN_CHANNELS, PATH_BRANCHES, TRUNK_CHANNELS, Path

CHANNELS = power_of_two(TRUNK_CHANNELS)
"""Of a tensor of a trunk, 13 of them zero."""
PIXELS = 32
"""Places of a program; with the 64 of Module 1, whose tiles are a quarter as deep, registers spill. Not measured."""
CLASSES = 2
"""A head of the kernels has so many outputs."""


def able(ensemble: Ensemble) -> bool:
    """Whether the kernels serve its paths."""
    return paths_of(ensemble)[0].block_c.out_channels == CLASSES


class GpuEnsemble(JointPaths):
    """The function of a trained ``Ensemble`` of two classes in eval mode, on a GPU or in Triton's interpreter.

    float32 throughout. It keeps buffers (10 MB an image at 300 x 340), so one object serves one thread at a time. An
    image's values depend neither on its neighbours nor on its place.

    Args:
        ensemble: as loaded, before its blocks are folded, on the device where this form will run.
        pixels, warps: as of ``GpuSegmenter``.
    """

    def __init__(self, ensemble: Ensemble, *, pixels: int = PIXELS, warps: int = WARPS) -> None:
        super().__init__(ensemble)
        if not able(ensemble):
            raise ValueError(f"the kernels serve {CLASSES} classes, this ensemble has {self.classes}")
        self.pixels, self.warps = pixels, warps
        self.paths = nn.ModuleList(PackedPath(path) for path in paths_of(ensemble))
        self.scratch = Scratch()

    def trunks(self, x_B50hw: Tensor, attention_KBhw: Tensor) -> Tensor:
        B, _, h, w = x_B50hw.shape
        maps_KBChw = x_B50hw.new_zeros(len(self.paths), B, CLASSES, h, w)
        # The last channels of these stay what they were made with, zero.
        common, x, activated, even, odd = (
            self._buffer(use, x_B50hw, CHANNELS)[None] for use in ("common", "x", "activated", "even", "odd")
        )
        middle = self._buffer("middle", x_B50hw, len(PATH_BRANCHES) * power_of_two(TRUNK_CHANNELS // 3))
        room = Room(
            middle=middle.view(len(PATH_BRANCHES), B, h, w, -1), activated=activated, even=even, odd=odd
        )
        common[0, ..., :IN_CHANNELS] = x_B50hw.permute(0, 2, 3, 1)
        with torch.cuda.device_of(x_B50hw):  # Triton launches on the current device
            for path, attention_Bhw, maps_BChw in zip(self.paths, attention_KBhw, maps_KBChw, strict=True):
                assert isinstance(path, PackedPath)
                common[0, ..., IN_CHANNELS] = attention_Bhw
                torch.addcmul(path.shift, common, path.scale, out=x)
                run_blocks(path.blocks, x, room, maps_BChw, pixels=self.pixels, warps=self.warps)
        return F.leaky_relu_(maps_KBChw, LEAKY_SLOPE).transpose(0, 1)

    def _buffer(self, use: str, like: Tensor, channels: int) -> Tensor:
        """``[B, h, w, channels]``"""
        B, _, h, w = like.shape
        return self.scratch.padded(use, (B, channels, h, w), 0, like).permute(0, 2, 3, 1)


class PackedPath(nn.Module):
    """The trunk of one path.

    Buffers: ``scale`` and ``shift`` [64], of the norm before the first block.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        assert isinstance(path.norm, BatchNorm)
        scale, shift = (F.pad(v.float(), (0, CHANNELS - TRUNK_CHANNELS)) for v in scale_and_shift(path.norm))
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        each_class = torch.eye(CLASSES, device=scale.device)
        self.blocks = pack_blocks(
            [path.block_a, path.block_b, path.block_c], each_class, torch.float32, CHANNELS
        )
