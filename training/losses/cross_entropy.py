"""Loss of Module 2: cross-entropy with a weight for each picture (REFERENCE_SPEC 10, TRAINING_SPEC C)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from cxr_ray.errors import UsageError

RULES = ("published", "balanced", "none")


def class_weights(labels: Sequence[int], *, classes: int, rule: str) -> Tensor:
    """One weight per class from the training pictures; float32 ``[classes]``.

    ``published``: inverse frequency, scaled to a sum of 1; with two classes that is the other class's share.
    ``balanced``: inverse frequency, scaled so that the pictures have a mean weight of 1. ``none``: all 1.

    Args:
        labels: class of each training picture, 0 to ``classes`` - 1.

    Raises:
        UsageError: an unknown rule, a label beyond the classes, or a class without a picture.
    """
    if rule not in RULES:
        raise UsageError(f"expected class weights to be one of {', '.join(RULES)}, got {rule!r}")
    if rule == "none":
        return torch.ones(classes)
    unknown = sorted({int(label) for label in labels if not 0 <= label < classes})
    if unknown:
        raise UsageError(
            f"expected labels 0 to {classes - 1}, got {unknown}; check the manifest and the classes"
        )
    counts = torch.bincount(torch.tensor(labels, dtype=torch.int64), minlength=classes).double()
    empty = [number for number, count in enumerate(counts.tolist()) if count == 0]
    if empty:
        raise UsageError(
            f"class {empty[0]} of {classes} has no training picture; add some or leave the class out of the task"
        )
    inverse = 1.0 / counts
    scale = inverse.sum() if rule == "published" else (counts * inverse).sum() / counts.sum()
    return (inverse / scale).float()


def weighted_cross_entropy(logits_BC: Tensor, label_B: Tensor, weight_B: Tensor, *, batch: float) -> Tensor:
    """Sum of weight times cross-entropy, divided by the number of pictures (not by the weights); a scalar.

    Taken from the logits without clipping, so a confident error costs as much as its logits say.

    Args:
        logits_BC: one row per picture of this process; computed in float32 in any case.
        label_B: int64 classes, or soft targets ``[B, C]`` whose rows sum to 1.
        weight_B: weight of each picture, of its class for example.
        batch: pictures of the whole batch. With the batch spread over n processes whose gradients are averaged, give
            the pictures of the whole batch divided by n (a whole number or not): the mean is then the batch's.
    """
    target = label_B if label_B.dim() == 1 else label_B.float()
    loss_B = F.cross_entropy(logits_BC.float(), target, reduction="none")
    return (loss_B * weight_B.float()).sum() / batch
