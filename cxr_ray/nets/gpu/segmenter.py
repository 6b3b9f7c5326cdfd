"""A ``Segmenter`` whose arithmetic is done by Triton kernels: weights packed, buffers kept, launches in order."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cxr_ray.nets.folding import Scratch
from cxr_ray.nets.gpu.launches import PIXELS, WARPS, Room, run_blocks
from cxr_ray.nets.gpu.packing import pack_blocks
from cxr_ray.nets.gpu.tiles import SLOPE
from cxr_ray.nets.layers import BRANCHES, LEAKY_SLOPE, ResidualBlock
from cxr_ray.nets.segmenter import FILTERS, Segmenter

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
IMAGES = 16
"""Images that go through the blocks together: many enough to fill a GPU, few enough that the buffers stay small (1.3 GB
in float32 at 300 x 340). Not measured either."""


class GpuSegmenter(nn.Module):
    """The function of a trained ``Segmenter`` in eval mode, for any frame size, on a GPU or in Triton's interpreter.

    It keeps buffers, so one object serves one thread at a time. An image's values depend neither on its neighbours nor
    on its place.

    Args:
        segmenter: as loaded, before its blocks are folded, on the device where this form will run.
        dtype: of the activations in memory and of the operands of matrix products. Sums and depthwise weights are
            float32 with all of them; with float32, values differ from the plain form by rounding.
        pixels: places of a program, a power of two of at least 16; large ones suit the interpreter.
        warps: of a program.
        images: how many go through the blocks together.
    """

    head_bias: Tensor

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        dtype: torch.dtype = torch.float32,
        pixels: int = PIXELS,
        warps: int = WARPS,
        images: int = IMAGES,
    ) -> None:
        super().__init__()
        if segmenter.training:
            raise ValueError("the form for GPUs needs a segmenter in eval mode")
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype} is none of {DTYPES}")
        assert SLOPE.value == LEAKY_SLOPE
        assert segmenter.head.bias is not None
        self.dtype, self.pixels, self.warps, self.images = dtype, pixels, warps, images
        blocks = [block for block in segmenter.blocks if isinstance(block, ResidualBlock)]
        self.blocks = pack_blocks(blocks, segmenter.head.weight.flatten(1), dtype, FILTERS)
        self.register_buffer("head_bias", segmenter.head.bias.detach().clone())
        self.scratch = Scratch()

    def forward(self, x_BHW: Tensor) -> Tensor:
        """As ``Segmenter.forward``."""
        B, H, W = x_BHW.shape
        logits_B2HW = self.head_bias[None, :, None, None].repeat(B, 1, H, W)
        with torch.cuda.device_of(x_BHW):  # Triton launches on the current device
            for start in range(0, B, self.images):
                some = slice(start, start + self.images)
                frames = x_BHW[some].contiguous()[None, ..., None]
                run_blocks(
                    self.blocks,
                    frames,
                    self._room(len(frames[0]), H, W, together=min(self.images, B)),
                    logits_B2HW[some],
                    pixels=self.pixels,
                    warps=self.warps,
                )
        return F.leaky_relu_(logits_B2HW, LEAKY_SLOPE)

    def _room(self, B: int, H: int, W: int, together: int) -> Room:
        """For B images, in buffers for ``together``."""
        groups, size = len(BRANCHES), len(BRANCHES) * B * H * W * FILTERS
        like = self.head_bias.to(self.dtype)
        shape = (together, groups * FILTERS, H, W)
        rooms = {
            use: self.scratch.padded(use, shape, 0, like).permute(0, 2, 3, 1).view(-1)[:size]
            for use in ("middle", "activated", "even", "odd")
        }
        return Room(**{use: room.view(groups, B, H, W, FILTERS) for use, room in rooms.items()})
