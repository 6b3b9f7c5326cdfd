"""Loss of Module 1: Tanimoto of masks and complements, with the border of the lungs weighted up (REFERENCE_SPEC 9).

Every sum runs over the whole batch: pictures, both channels, all pixels. So a batch that is spread over several
processes needs its sums added up, which is what ``across`` is for: ``Processes.sum`` there, ``alone`` in one process.
Without it each process has a loss of its own share, as the original had on its two GPUs (TRAINING_SPEC C).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""This process's partial sums -> the sums over all processes; differentiable."""

SMOOTHING = 1.0
BORDER_GAIN = 2.0
"""A border pixel weighs 1 + 2 before the normalisation and squaring."""
LOW, HIGH = 0.005, 0.995
"""A pixel whose box has a mean strictly between the two lies on the border."""
BOXES = ((150, 11), (300, 21), (600, 31))
"""(largest short side of a frame, box size in pixels)."""
LARGEST_BOX = 41


def alone(sums: Tensor) -> Tensor:
    """The reduction of a single process: nothing to add."""
    return sums


def box_size(short_side: int) -> int:
    """Side in pixels of the box that finds the border, for frames of that short side (21 for 300 x 340).

    Belongs to the configured frame: a crop of a 300 x 340 frame keeps 21.
    """
    return next((box for largest, box in BOXES if short_side <= largest), LARGEST_BOX)


@torch.no_grad()
def contour_weights(target_B2HW: Tensor, *, box: int, across: Reduce = alone) -> Tensor:
    """Weights of the pixels, higher along the border of the mask.

    Args:
        target_B2HW: lung and non-lung masks, 0 or 1, any dtype.
        box: odd side of the averaging box (``box_size``); pixels beyond the frame do not count in its mean.
        across: sums over the processes, since the weights have mean 1 over the whole batch before they are squared.

    Returns float32 ``[B, 2, H, W]`` without gradient.
    """
    border = _border(target_B2HW, box)
    # float64: counts stay exact however large the batch is.
    count, pixels = across(torch.stack((border.sum(dtype=torch.float64), _size(border)))).unbind()
    scale = (pixels / (pixels + BORDER_GAIN * count)).float()
    inside, outside = ((1.0 + BORDER_GAIN) * scale).square(), scale.square()
    return torch.where(border, inside, outside)


def tanimoto_loss(
    probability_B2HW: Tensor,
    target_B2HW: Tensor,
    weight_B2HW: Tensor | None = None,
    *,
    across: Reduce = alone,
) -> Tensor:
    """1 minus the mean of the Tanimoto coefficients of the masks and of their complements; a scalar, 0 to 1.

    Args:
        probability_B2HW: softmax of the segmenter, 0 to 1; gradients flow to it. Computed in float32 in any case.
        target_B2HW: masks, 0 to 1.
        weight_B2HW: ``contour_weights`` of the same target; None weighs every pixel alike.
        across: sums over the processes. Every process then returns the same loss, that of the whole batch.
    """
    y, p = target_B2HW.float(), probability_B2HW.float()
    sums = across(torch.stack((*_overlaps(y, p, weight_B2HW), *_overlaps(1.0 - y, 1.0 - p, weight_B2HW))))
    overlap, union, overlap_of_rest, union_of_rest = sums.unbind()
    coefficient = (overlap + SMOOTHING) / (union + SMOOTHING)
    coefficient_of_rest = (overlap_of_rest + SMOOTHING) / (union_of_rest + SMOOTHING)
    return 1.0 - (coefficient + coefficient_of_rest) / 2.0


@torch.no_grad()
def tanimoto_coefficient(probability: Tensor, target: Tensor, *, across: Reduce = alone) -> Tensor:
    """The monitored metric: 1 minus the unweighted loss, without gradient. Same shapes as ``tanimoto_loss``."""
    return 1.0 - tanimoto_loss(probability, target, across=across)


def _overlaps(a: Tensor, b: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weighted sums of a b and of a^2 + b^2 - a b."""
    product = a * b
    union = a.square() + b.square() - product
    if weight is not None:
        product, union = weight * product, weight * union
    return product.sum(), union.sum()


def _border(target_B2HW: Tensor, box: int) -> Tensor:
    """True where the mean of the box around a pixel is neither (nearly) 0 nor (nearly) 1."""
    mask = target_B2HW.float()
    H, W = mask.shape[-2:]
    # Counts of ones are whole numbers, so a box as two passes of a line is exact, and the mean is rounded once.
    filled = _line_sums(_line_sums(mask, box).mT, box).mT
    inside = _line_counts(H, box, mask.device)[:, None] * _line_counts(W, box, mask.device)
    mean = filled / inside
    return (mean > LOW) & (mean < HIGH)


def _line_sums(x_BCHW: Tensor, box: int) -> Tensor:
    """Sum of each pixel's ``box`` neighbours along the last axis, those beyond the frame left out."""
    half = box // 2
    total = F.pad(x_BCHW, (half + 1, half)).cumsum(dim=-1)
    return total[..., box:] - total[..., :-box]


def _line_counts(size: int, box: int, device: torch.device) -> Tensor:
    """How many of the ``box`` positions around each of ``size`` positions lie inside; float32 ``[size]``."""
    position, half = torch.arange(size, device=device), box // 2
    return ((position + half).clamp(max=size - 1) - (position - half).clamp(min=0) + 1).float()


def _size(x: Tensor) -> Tensor:
    return torch.tensor(float(x.numel()), dtype=torch.float64, device=x.device)
