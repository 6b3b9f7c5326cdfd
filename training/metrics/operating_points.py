"""Operating thresholds on the raw ensemble probability, with the sensitivity and specificity they reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_ray.errors import UsageError
from training.metrics.bootstrap import DRAWS, Interval, group_bootstrap_many

TARGET = 0.95
"""Sensitivity of ``sens95`` and specificity of ``spec95``."""
NAMES = ("youden", "sens95", "spec95")


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A picture is positive where p_covid >= ``p_covid``."""

    p_covid: float
    """Threshold on the raw ensemble probability; a float32 number, as the table's column is."""
    sensitivity: Interval
    specificity: Interval

    def as_json(self) -> dict[str, Any]:
        """An entry of ``thresholds`` in ``bundle.json``."""
        return {
            "p_covid": self.p_covid,
            "sensitivity": self.sensitivity.as_list(),
            "specificity": self.specificity.as_list(),
        }


def operating_points(
    probability: NDArray[np.floating[Any]],
    label: NDArray[np.bool_],
    groups: Sequence[str] | NDArray[Any],
    *,
    draws: int = DRAWS,
    seed: int,
) -> dict[str, OperatingPoint]:
    """Choose three thresholds.

    * ``youden``: largest sensitivity + specificity; of equals the one with the higher sensitivity.
    * ``sens95``: highest threshold with a sensitivity of at least 0.95.
    * ``spec95``: lowest threshold with a specificity of at least 0.95. Where ties at the top leave none, the
      highest threshold; the stored specificity shows it.

    Thresholds lie midway between two neighbouring probabilities, or on the lowest one (everybody is positive). The
    intervals are those of the fixed threshold over whole groups; that it was chosen on the same pictures is not in
    them, so figures on other pictures are the ones to quote.

    Args:
        probability: raw ensemble probability of the positive class, ``[N]``, rounded to float32 as in the table.
        label: bool ``[N]``.
        groups: ``[N]`` group of each picture.
        draws, seed: of the bootstrap.

    Raises:
        UsageError: fewer than two classes, or probabilities that are not finite.
    """
    p = np.asarray(probability, dtype=np.float32)
    truth = np.asarray(label, dtype=bool)
    if truth.all() or not truth.any():
        raise UsageError("operating thresholds need pictures of both classes; enlarge the calibration split")
    if not np.isfinite(p).all():
        raise UsageError("operating thresholds need finite scores; leave out the pictures without a score")
    thresholds = _candidates(p)
    sensitivity = _share_at_least(p[truth], thresholds)
    specificity = 1 - _share_at_least(p[~truth], thresholds)
    # Thresholds rise, so sensitivity falls and specificity rises along the array.
    enough = np.flatnonzero(specificity >= TARGET)
    chosen = {
        "youden": int(np.argmax(np.round(sensitivity + specificity, 12))),
        "sens95": int(np.flatnonzero(sensitivity >= TARGET)[-1]),
        "spec95": int(enough[0]) if len(enough) else len(thresholds) - 1,
    }
    return {
        name: achieved(float(thresholds[index]), p, truth, groups, draws=draws, seed=seed)
        for name, index in chosen.items()
    }


def achieved(
    threshold: float,
    probability: NDArray[np.floating[Any]],
    label: NDArray[np.bool_],
    groups: Sequence[str] | NDArray[Any],
    *,
    draws: int = DRAWS,
    seed: int,
) -> OperatingPoint:
    """Sensitivity and specificity of a given threshold on these pictures; NaN for a class that is not there."""
    right = (np.asarray(probability, dtype=np.float32) >= np.float32(threshold)) == label

    def shares(i: NDArray[np.intp]) -> dict[str, float]:
        positive = label[i]
        return {"sensitivity": _mean(right[i][positive]), "specificity": _mean(right[i][~positive])}

    return OperatingPoint(p_covid=threshold, **group_bootstrap_many(shares, groups, draws=draws, seed=seed))


def _candidates(p: NDArray[np.float32]) -> NDArray[np.float32]:
    """The lowest value, then one threshold above each value but the highest, rising; all float32."""
    values = np.unique(p)
    middle = ((values[:-1].astype(np.float64) + values[1:]) / 2).astype(np.float32)
    # Between two neighbouring float32 numbers the middle rounds to one of them: it must be the upper one.
    return np.concatenate((values[:1], np.where(middle > values[:-1], middle, values[1:])))


def _share_at_least(p: NDArray[np.float32], thresholds: NDArray[np.float32]) -> NDArray[np.float64]:
    return 1 - np.searchsorted(np.sort(p), thresholds, side="left") / len(p)


def _mean(values: NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else float("nan")
