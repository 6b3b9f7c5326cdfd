"""A penalty on what a path says of a picture without lungs: it must not follow the class, and should be nothing."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

SIZE = 0.1
"""Weight of the mean square of the scores against that of their correlation with the class."""
_TINY = 1e-6


def silence_penalty(logits_BC: Tensor, target_BC: Tensor, *, across: Callable[[Tensor], Tensor]) -> Tensor:
    """Squared correlation of score and class, mean over classes, plus ``SIZE`` times the mean square score; a scalar.

    Teaching "cannot say" alone (equal targets) makes scores small, but leaves their order, which an area under the ROC
    curve sees as well as ever. A correlation has no scale, so this acts on the order itself.

    Args:
        logits_BC: of the pictures with their lungs removed; scores are taken against the mean of the classes.
        target_BC: the true classes of these pictures, one-hot.
        across: sums over the processes that share the batch (``Processes.sum``); the result is then the whole batch's.
    """
    score = logits_BC.float()
    score = score - score.mean(1, keepdim=True)
    count = across(score.new_tensor(float(len(score))))
    score_apart = score - across(score.sum(0)) / count
    class_apart = target_BC - across(target_BC.sum(0)) / count
    covariance = across((score_apart * class_apart).sum(0)) / count
    spread = across(score_apart.square().sum(0)) * across(class_apart.square().sum(0)) / count.square()
    correlation = covariance.square() / (spread + _TINY)
    size = across(score.square().sum()) / (count * score.shape[1])
    return correlation.mean() + SIZE * size
