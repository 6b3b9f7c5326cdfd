"""What 16-bit tensors in Module 1 do to the scores of real films, without a GPU.

    python bench/half_precision.py FILMS [--films 500] [--weights default] [--dtypes float16 bfloat16]

A form of Module 1 in torch that takes the weights of the Triton kernels and rounds where they round (``dtype=float16``
of a scorer on a GPU); everything else is the scorer of this machine. Sums are formed in another order than on a GPU,
which is far less than the rounding. Ends with 1 where a score moves by more than 5e-3, or a decision at 0.5 changes
though the float32 score is outside 0.495 to 0.505.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from cxr_ray.decode import decode
from cxr_ray.errors import CxrRayError
from cxr_ray.nets.gpu.packing import PackedBranch, pack_blocks
from cxr_ray.nets.layers import LEAKY_SLOPE, ResidualBlock
from cxr_ray.nets.segmenter import FILTERS, Segmenter
from cxr_ray.preprocess import preprocess
from cxr_ray.scorer import STORAGE, Scorer, network_of
from cxr_ray.weights import load_bundle

MOST, NEAR = 5e-3, 5e-3
"""By so much may a score move; so near 0.5 may a decision change."""


class Rounded(nn.Module):
    """``GpuSegmenter`` in torch, for a storage type."""

    def __init__(self, segmenter: Segmenter, dtype: torch.dtype) -> None:
        super().__init__()
        blocks = [block for block in segmenter.blocks if isinstance(block, ResidualBlock)]
        assert segmenter.head.bias is not None
        self.dtype, self.bias = dtype, segmenter.head.bias
        self.blocks = pack_blocks(blocks, segmenter.head.weight.flatten(1), dtype, FILTERS)

    def forward(self, x_BHW: Tensor) -> Tensor:
        raw = active = x_BHW.unsqueeze(1)
        for i, block in enumerate(self.blocks):
            assert isinstance(block, nn.ModuleList)
            last = i + 1 == len(self.blocks)
            totals, scales, shifts = [], [], []
            for branch in block:
                assert isinstance(branch, PackedBranch)
                totals.append(self._branch(branch, raw, active))
                scales.append(branch.after[0])
                shifts.append(branch.after[1])
            total, scale, shift = torch.cat(totals, dim=1), torch.cat(scales), torch.cat(shifts)
            if last:
                logits = torch.einsum("bchw,kc->bkhw", total, torch.stack((scale, shift)))
                return F.leaky_relu(logits + self.bias[:, None, None], LEAKY_SLOPE)
            raw = self._stored(total)
            active = self._stored(leaky(total * scale[:, None, None] + shift[:, None, None]))
        raise AssertionError("a segmenter has blocks")

    def _branch(self, branch: PackedBranch, raw: Tensor, active: Tensor) -> Tensor:
        """One branch's part of a block's output, float32."""
        k, d = branch.kernel, branch.dilation
        middle = self._product(
            depthwise(active, branch.first_weights.transpose(1, 2).flatten(0, 1), k, d), branch.first_matrix
        )
        middle = self._stored(leaky(middle + branch.first_bias[:, None, None]))
        second = depthwise(middle, branch.second_weights.t(), k, d)
        total = self._product(second, branch.second_matrix[None]) + self._product(raw, branch.shortcut)
        return total + branch.bias[:, None, None]

    def _product(self, x: Tensor, matrix: Tensor) -> Tensor:
        """A 1x1 convolution; operands are stored, but for the one channel of a frame."""
        x = x if x.shape[1] == 1 else self._stored(x)
        return torch.einsum("bchw,cf->bfhw", x, matrix.float().flatten(0, 1))

    def _stored(self, x: Tensor) -> Tensor:
        return x.to(self.dtype).float()


def depthwise(x: Tensor, taps: Tensor, kernel: int, dilation: int) -> Tensor:
    """``taps`` [C, k * k]."""
    weight = taps.reshape(-1, 1, kernel, kernel)
    return F.conv2d(F.pad(x, [dilation * (kernel // 2)] * 4), weight, dilation=dilation, groups=len(weight))


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, LEAKY_SLOPE)


def frames(folder: Path, count: int) -> np.ndarray:
    """Preprocessed, of films spread over the folder."""
    paths = sorted(path for path in folder.iterdir() if path.suffix != ".csv")
    found = []
    for path in paths[:: max(1, len(paths) // count)]:
        try:
            found.append(preprocess(decode(path.read_bytes()).pixels))
        except CxrRayError as error:
            print(f"left out: {path.name}, {error.code}")
    return np.stack(found[:count])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--films", type=int, default=500)
    parser.add_argument("--weights", default="default")
    parser.add_argument("--dtypes", nargs="+", default=["float16", "bfloat16"], choices=list(STORAGE))
    arguments = parser.parse_args()
    bundle, pixels = load_bundle(arguments.weights), frames(arguments.folder, arguments.films)
    scorer = Scorer(bundle)
    exact = scorer.score(pixels)
    print(f"{len(pixels)} films, {np.isnan(exact.p_covid).sum()} without lungs")
    print(
        "| storage | p_covid, largest | 99th percentile | median | mask pixels a film, median | decisions changed "
        "| of them outside 0.495 to 0.505 |"
    )
    print("| --- " * 7 + "|")
    missed = False
    for name in arguments.dtypes:
        plain = network_of(bundle, mask_style=scorer.mask_style).segmenter
        assert isinstance(plain, Segmenter)
        scorer._network.segmenter = Rounded(plain, STORAGE[name])
        found = scorer.score(pixels)
        scored = ~np.isnan(exact.p_covid)
        moved = np.abs(found.p_covid - exact.p_covid)[scored]
        changed = ((found.p_covid > 0.5) != (exact.p_covid > 0.5)) & scored
        outside = changed & (np.abs(exact.p_covid - 0.5) > NEAR)
        mask = np.median((found.lung_mask != exact.lung_mask).sum(axis=(1, 2)))
        print(
            f"| {name} | {moved.max():.1e} | {np.percentile(moved, 99):.1e} | {np.median(moved):.1e} | {mask:.0f} "
            f"| {changed.sum()} | {outside.sum()} |",
            flush=True,
        )
        # NaN where one of the two says that there are no lungs.
        missed |= not moved.max() <= MOST or bool(outside.any())
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
