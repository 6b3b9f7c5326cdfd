"""A ``Segmenter`` whose arithmetic is done by Triton kernels: weights packed, buffers kept, launches in order."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
import triton
from torch import Tensor, nn

from cxr_ray.nets.folding import Scratch
from cxr_ray.nets.gpu.half_blocks import first_half, second_half
from cxr_ray.nets.gpu.packing import GROUP, GROUPS, PackedBranch, pack_blocks
from cxr_ray.nets.gpu.tiles import FILTERS, ROWS, SLOPE
from cxr_ray.nets.layers import BRANCHES, LEAKY_SLOPE
from cxr_ray.nets.segmenter import Segmenter

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PIXELS, WARPS = 64, 8
"""Places and warps of a program. Not measured: chosen because the compiled kernels then leave room for 16 warps on a
multiprocessor of an H200 and spill no register."""
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
        assert (FILTERS.value, SLOPE.value, len(BRANCHES)) == (GROUP, LEAKY_SLOPE, GROUPS)
        assert segmenter.head.bias is not None
        self.dtype, self.pixels, self.warps, self.images = dtype, pixels, warps, images
        self.blocks = pack_blocks(segmenter.blocks, segmenter.head, dtype)
        self.register_buffer("head_bias", segmenter.head.bias.detach().clone())
        self.scratch = Scratch()

    def forward(self, x_BHW: Tensor) -> Tensor:
        """As ``Segmenter.forward``."""
        B, H, W = x_BHW.shape
        logits_B2HW = self.head_bias[None, :, None, None].repeat(B, 1, H, W)
        together = min(self.images, B)
        buffers = [self._buffer(use, together, H, W) for use in ("middle", "activated", "even", "odd")]
        with torch.cuda.device_of(x_BHW):  # Triton launches on the current device
            for start in range(0, B, self.images):
                some = slice(start, start + self.images)
                self._add_logits(x_BHW[some].contiguous(), logits_B2HW[some], buffers)
        return F.leaky_relu_(logits_B2HW, LEAKY_SLOPE)

    def _add_logits(self, x_BHW: Tensor, logits_B2HW: Tensor, buffers: list[Tensor]) -> None:
        """Module 1 of a few images, before its last activation, is added onto ``logits_B2HW``."""
        B, H, W = x_BHW.shape
        size = GROUPS * B * H * W * GROUP
        middle, activated, *raws = (buffer[:size].view(-1, B, H, W, GROUP) for buffer in buffers)
        raw = active = x_BHW[None, ..., None]
        for i, block in enumerate(self.blocks):
            assert isinstance(block, nn.ModuleList)
            branches = [branch for branch in block if isinstance(branch, PackedBranch)]
            last, out = i + 1 == len(self.blocks), raws[i % 2]
            for q, branch in enumerate(branches):
                weights = (branch.first_weights, branch.first_matrix, branch.first_bias)
                self._launch(first_half, branch, active, *weights, middle[q])
            for q, branch in enumerate(branches):
                self._launch(
                    second_half,
                    branch,
                    raw,
                    middle[q],
                    branch.second_weights,
                    branch.second_matrix,
                    branch.shortcut,
                    branch.bias,
                    branch.after,
                    logits_B2HW if last else out[q],
                    activated[q],
                    LAST=last,
                )
            raw, active = out, activated

    def _launch(
        self, kernel: Any, branch: PackedBranch, x: Tensor, *tensors: Tensor, **constants: Any
    ) -> None:
        """``x`` [G, B, H, W, C] is what the kernel reads all groups of; it comes first."""
        G, B, H, W, C = x.shape
        lines = triton.cdiv(H, branch.dilation * ROWS.value) * branch.dilation
        grid = (triton.cdiv(lines * W, self.pixels), B)
        kernel[grid](
            x,
            *tensors,
            B,
            H,
            W,
            K=branch.kernel,
            D=branch.dilation,
            GROUPS=G,
            CHANNELS=C,
            PIXELS=self.pixels,
            num_warps=self.warps,
            enable_fp_fusion=True,
            **constants,
        )

    def _buffer(self, use: str, images: int, H: int, W: int) -> Tensor:
        """Room for ``images`` in the storage type, flat."""
        like = self.head_bias.to(self.dtype)
        return self.scratch.padded(use, (images, GROUPS * GROUP, H, W), 0, like).permute(0, 2, 3, 1).view(-1)
