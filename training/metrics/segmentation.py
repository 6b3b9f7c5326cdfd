"""Lung segmentation figures per picture, and apart from them the paper's pooled one (REFERENCE_SPEC section 9)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LUNG_METRICS = ("dice", "jaccard", "precision", "recall")
PAPER_POOLED = "paper_pooled_two_channel"
"""Name of the paper's figure, so that nobody takes it for a lung Dice."""


def lung_metrics(
    lungs_pred_NHW: NDArray[np.bool_], lungs_true_NHW: NDArray[np.bool_]
) -> dict[str, NDArray[np.float64]]:
    """Dice, Jaccard, precision and recall of the lung class alone, one value per picture, no smoothing.

    Args:
        lungs_pred_NHW: lung probability > 0.5, bool.
        lungs_true_NHW: lungs of the annotator, bool, the same shape.

    Returns:
        "dice", "jaccard", "precision", "recall" -> float64 ``[N]``, 0 to 1. An undefined ratio is 1 where both
        masks are empty and 0 where one of them is, so that a mean over pictures is always defined.
    """
    _check(lungs_pred_NHW, lungs_true_NHW)
    axes = (1, 2)
    both = np.count_nonzero(lungs_pred_NHW & lungs_true_NHW, axis=axes).astype(np.float64)
    predicted = np.count_nonzero(lungs_pred_NHW, axis=axes).astype(np.float64)
    true = np.count_nonzero(lungs_true_NHW, axis=axes).astype(np.float64)
    empty = np.where((predicted == 0) & (true == 0), 1.0, 0.0)
    ratios = {
        "dice": (2 * both, predicted + true),
        "jaccard": (both, predicted + true - both),
        "precision": (both, predicted),
        "recall": (both, true),
    }
    return {
        name: np.where(below > 0, above / np.maximum(below, 1), empty)
        for name, (above, below) in ratios.items()
    }


def pooled_accuracy(lungs_pred_NHW: NDArray[np.bool_], lungs_true_NHW: NDArray[np.bool_]) -> dict[str, float]:
    """The paper's figure: both complementary channels pooled over all pictures at 0.5.

    Every wrong pixel is then one false positive and one false negative, so that Dice, precision, recall and F1 are
    all the same number: the plain share of right pixels. It is far above a lung Dice and must not stand beside one.
    """
    _check(lungs_pred_NHW, lungs_true_NHW)
    if not lungs_pred_NHW.size:
        return {PAPER_POOLED: float("nan")}
    return {PAPER_POOLED: float(np.mean(lungs_pred_NHW == lungs_true_NHW))}


def _check(pred: NDArray[np.bool_], true: NDArray[np.bool_]) -> None:
    if pred.shape != true.shape or pred.ndim != 3 or pred.dtype != np.bool_ or true.dtype != np.bool_:
        raise ValueError(
            "lung masks should be two bool arrays [N, H, W] of one shape, "
            f"found {pred.dtype} {list(pred.shape)} and {true.dtype} {list(true.shape)}"
        )
