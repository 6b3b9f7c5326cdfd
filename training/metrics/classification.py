"""Figures of a classifier, fast enough to be bootstrapped thousands of times.

Areas and errors equal scikit-learn's (held by a test). They are spelled out here because scikit-learn's checks cost a
millisecond a call, twenty times the computation, and an audit makes a hundred thousand calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from training.metrics.bootstrap import DRAWS, Interval, group_bootstrap_many

CALIBRATION_BINS = 10
NAN = float("nan")
Labels = NDArray[np.bool_]
Values = NDArray[np.floating[Any]]


def roc_auc(label: Labels, score: Values) -> float:
    """Area under the ROC curve of ``score`` for bool labels, ties counted half; NaN with one class only."""
    return _area(*_pairs(label, score))


def average_precision(label: Labels, score: Values) -> float:
    """Area under the precision-recall curve by steps (scikit-learn's average precision); NaN without a positive."""
    positives = int(np.count_nonzero(label))
    if not positives:
        return NAN
    order = np.argsort(-score, kind="stable")
    sorted_score, found = score[order], np.cumsum(label[order])
    last = np.append(np.flatnonzero(np.diff(sorted_score)), len(score) - 1)  # last picture of each tie
    precision = found[last] / (last + 1)
    return float(np.sum(np.diff(found[last], prepend=0) * precision) / positives)


def calibration_error(label: Labels, probability: Values, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error: mean over pictures of |mean probability - share of positives| of their bin.

    Bins hold equal numbers of pictures (edges at the quantiles of the probability, as scikit-learn's
    ``calibration_curve(strategy="quantile")``), so equal probabilities always share a bin.
    """
    if not len(label):
        return NAN
    edges = np.quantile(probability, np.linspace(0, 1, bins + 1))
    index = np.searchsorted(edges[1:-1], probability)
    gap = np.bincount(index, weights=probability - label, minlength=bins)
    return float(np.abs(gap).sum() / len(label))


def binary_metrics(
    label: Labels, probability: Values, threshold: float, *, score: Values | None = None
) -> dict[str, float]:
    """All figures of a two-class decision "positive where probability >= threshold".

    Args:
        label: bool ``[N]``, True for the positive class.
        probability: float ``[N]``, 0 to 1.
        threshold: operating threshold on the probability.
        score: float ``[N]`` that ranks for the two areas; give log-odds where probabilities saturate.

    Returns:
        accuracy, precision, recall, f1, specificity, roc_auc, pr_auc (average precision), brier, calibration_error
        (10 bins of equal size). What is undefined (no positives, nothing called positive) is NaN.
    """
    called = probability >= threshold
    true_positive = int(np.count_nonzero(called & label))
    false_positive = int(np.count_nonzero(called)) - true_positive
    false_negative = int(np.count_nonzero(label)) - true_positive
    true_negative = len(label) - true_positive - false_positive - false_negative
    ranking = probability if score is None else score
    return {
        "accuracy": _ratio(true_positive + true_negative, len(label)),
        "precision": _ratio(true_positive, true_positive + false_positive),
        "recall": _ratio(true_positive, true_positive + false_negative),
        "f1": _ratio(2 * true_positive, 2 * true_positive + false_positive + false_negative),
        "specificity": _ratio(true_negative, true_negative + false_positive),
        "roc_auc": roc_auc(label, ranking),
        "pr_auc": average_precision(label, ranking),
        "brier": float(np.mean((probability.astype(np.float64) - label) ** 2)) if len(label) else NAN,
        "calibration_error": calibration_error(label, probability),
    }


def with_intervals(
    label: Labels,
    probability: Values,
    threshold: float,
    *,
    groups: Sequence[str] | NDArray[Any],
    score: Values | None = None,
    draws: int = DRAWS,
    seed: int,
) -> dict[str, Interval]:
    """``binary_metrics`` with 95 % intervals over whole groups."""
    ranking = probability if score is None else score
    return group_bootstrap_many(
        lambda i: binary_metrics(label[i], probability[i], threshold, score=ranking[i]),
        groups,
        draws=draws,
        seed=seed,
    )


def multiclass_metrics(label: NDArray[np.integer[Any]], probability_NC: Values) -> dict[str, float]:
    """Figures for n classes: accuracy of the most probable class, macro one-vs-rest areas, Brier (sum over classes).

    ``label`` is the class index, int ``[N]``. A macro mean is over the classes for which the figure is defined.
    """
    classes = probability_NC.shape[1]
    truth = label[:, None] == np.arange(classes)
    areas = [roc_auc(truth[:, c], probability_NC[:, c]) for c in range(classes)]
    precisions = [average_precision(truth[:, c], probability_NC[:, c]) for c in range(classes)]
    best = probability_NC.argmax(axis=1)
    return {
        "accuracy": float(np.mean(best == label)) if len(label) else NAN,
        "roc_auc_macro": _mean_defined(areas),
        "pr_auc_macro": _mean_defined(precisions),
        "brier": float(np.mean(np.sum((probability_NC - truth) ** 2, axis=1))) if len(label) else NAN,
        "calibration_error_top": calibration_error(best == label, probability_NC.max(axis=1, initial=0.0)),
    }


def mixed_sources(label: Labels, source: NDArray[Any]) -> list[str]:
    """Names of the sources that hold both classes, sorted."""
    return [str(name) for name in np.unique(source) if 0 < label[source == name].mean() < 1]


def mixed_source_auc(
    label: Labels, score: Values, source: NDArray[Any], sources: Sequence[str] | None = None
) -> float:
    """ROC AUC of the pictures of sources that hold both classes, with all pairs between them.

    This is the figure to quote where the class is nearly given by the source. ``sources``: the mixed sources, where
    they were fixed before (a resample may lose one class of a source); None finds them.
    """
    chosen = np.isin(source, mixed_sources(label, source) if sources is None else list(sources))
    return roc_auc(label[chosen], score[chosen])


def within_source_auc(label: Labels, score: Values, source: NDArray[Any]) -> float:
    """ROC AUC of only those pairs whose two pictures are of the same source; NaN where there are none."""
    won, pairs = 0.0, 0
    for name in np.unique(source):
        inside = source == name
        won_here, pairs_here = _pairs(label[inside], score[inside])
        won, pairs = won + won_here, pairs + pairs_here
    return _area(won, pairs)


def _pairs(label: Labels, score: Values) -> tuple[float, int]:
    """(pairs that the positive wins, ties half; all pairs) of a positive and a negative: Mann-Whitney."""
    positives = int(np.count_nonzero(label))
    pairs = positives * (len(label) - positives)
    if not pairs:
        return 0.0, 0
    return float(rankdata(score)[label].sum()) - positives * (positives + 1) / 2, pairs


def _area(won: float, pairs: int) -> float:
    return won / pairs if pairs else NAN


def _ratio(above: int, below: int) -> float:
    return above / below if below else NAN


def _mean_defined(values: Sequence[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else NAN
