"""Platt scaling on ensemble log-odds, and the move of a calibrated score to another prevalence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from cxr_ray.errors import UsageError

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Platt:
    """p_calibrated = sigmoid(slope * logit + intercept), valid at ``prevalence`` only."""

    slope: float
    intercept: float
    prevalence: float
    """Share of positives (weighted, if weights were given) among the pictures it was fitted on."""
    n: int
    n_positive: int

    def as_json(self) -> dict[str, Any]:
        """The ``calibration`` entry of ``bundle.json``."""
        return {
            "method": "platt",
            "slope": self.slope,
            "intercept": self.intercept,
            "prevalence": self.prevalence,
            "n": self.n,
            "n_positive": self.n_positive,
        }


def fit_platt(logit: Array, label: NDArray[np.bool_], weights: Array | None = None) -> Platt:
    """Fit slope and intercept by maximum likelihood.

    The targets are Platt's: (n+ + 1)/(n+ + 2) for a positive and 1/(n- + 2) for a negative instead of 1 and 0, so
    that the fit stays finite where the two classes do not overlap. There is no other regularisation.

    Args:
        logit: float ``[N]`` log-odds of the positive class, of pictures that no part of the ensemble was trained on.
        label: bool ``[N]``.
        weights: float ``[N]`` at least 0, or None for 1 each.

    Raises:
        UsageError: fewer than two classes, or log-odds that are not finite.
    """
    label = np.asarray(label, dtype=bool)
    x = np.asarray(logit, dtype=np.float64)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=np.float64)
    positives, negatives = float(w[label].sum()), float(w[~label].sum())
    if not (positives > 0 and negatives > 0):
        raise UsageError(
            "calibration needs pictures of both classes, found "
            f"{np.count_nonzero(label)} positive and {np.count_nonzero(~label)} negative; "
            "enlarge the calibration split"
        )
    if not np.isfinite(x).all():
        raise UsageError("calibration needs finite log-odds; leave out the pictures without a score")
    target = np.where(label, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    # Each picture counts as a positive with weight `target` and as a negative with the rest; log-odds may be in the
    # hundreds, so they are standardised for the solver and the result is scaled back.
    mean, scale = float(np.average(x, weights=w)), float(np.sqrt(np.average(x**2, weights=w)) or 1.0)
    column = np.tile((x - mean) / scale, 2)[:, None]
    fitted = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(
        column,
        np.repeat([True, False], len(x)),
        sample_weight=np.concatenate((w * target, w * (1 - target))),
    )
    slope = float(fitted.coef_[0, 0]) / scale
    return Platt(
        slope=slope,
        intercept=float(fitted.intercept_[0]) - slope * mean,
        prevalence=positives / (positives + negatives),
        n=len(x),
        n_positive=int(np.count_nonzero(label)),
    )


def apply(platt: Platt, logit: Array) -> NDArray[np.float64]:
    """Calibrated probabilities, float64, of log-odds of any shape; valid at ``platt.prevalence``."""
    return expit(calibrated_log_odds(platt, logit))


def calibrated_log_odds(platt: Platt, logit: Array) -> NDArray[np.float64]:
    """slope * logit + intercept, float64: what ``shift_prevalence`` takes."""
    return platt.slope * np.asarray(logit, dtype=np.float64) + platt.intercept


def shift_prevalence(
    log_odds: Array | float, from_prevalence: float, to_prevalence: float
) -> NDArray[np.float64]:
    """Calibrated log-odds valid at one prevalence -> at another (Bayes: only the prior odds change).

    Raises UsageError: a prevalence that does not lie between 0 and 1.
    """
    for value in (from_prevalence, to_prevalence):
        if not 0 < value < 1:
            raise UsageError(f"a prevalence lies between 0 and 1 (both excluded), not {value}")
    return np.asarray(log_odds, dtype=np.float64) + (logit(to_prevalence) - logit(from_prevalence))
