"""From the ensemble's logit to a probability and a decision: Platt scaling and named thresholds (DESIGN section 6).

All of it is derived from ``logit`` and ``p_covid`` of a row, so it is no part of an OUTPUT's identity: scoring
writes it down once, and ``results`` can compute it again for another prevalence, threshold or calibration.
Plain Python and NumPy, so that reading a table needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxr_ray.errors import BundleError, UsageError

PLATT = "platt"
DEFAULT_THRESHOLD = "youden"
"""The threshold that decides unless a bundle names another."""
POSITIVE, NEGATIVE = "positive", "negative"
"""Values of the column ``decision``: the bundle's positive class, or not."""

_NAME = re.compile(r"[A-Za-z]\w*")


@dataclass(frozen=True, kw_only=True)
class Readout:
    """A calibration at one prevalence and one threshold: what turns a row's score into three columns."""

    slope: float | None = None
    intercept: float | None = None
    """``p_calibrated = sigmoid(slope * logit + intercept)``, prevalence shift included; None: no calibration."""
    prevalence: float | None = None
    """Share of the positive class at which ``p_calibrated`` is valid."""
    cut: float | None = None
    """Positive from this ``p_covid`` on (raw, so the prevalence does not move it); None: no decision."""
    threshold_name: str | None = None

    def probability(self, logit: ArrayLike) -> NDArray[np.float64]:
        """Calibrated probability of any array of log-odds. Only where there is a calibration."""
        assert self.slope is not None
        assert self.intercept is not None
        x = self.slope * np.asarray(logit, np.float64) + self.intercept
        return np.asarray(np.exp(-np.logaddexp(0.0, -x)))  # the sigmoid, without overflow

    def values(self, *, logit: float, p_covid: float, lungs_small: bool) -> dict[str, Any]:
        """``p_calibrated``, ``decision`` and ``threshold_name`` of one scored row.

        A film with little lung gets no decision (and no threshold name), but keeps its probability.
        """
        decided = self.cut is not None and not lungs_small
        return {
            "p_calibrated": None if self.slope is None else float(self.probability(logit)),
            "decision": (POSITIVE if p_covid >= self.cut else NEGATIVE) if decided else None,  # type: ignore[operator]
            "threshold_name": self.threshold_name if decided else None,
        }


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a bundle says about reading its scores; the three entries of ``bundle.json`` as they stand there."""

    calibration: Mapping[str, Any] | None = None
    """``method`` "platt", ``slope`` and ``intercept`` on the ensemble logit, and the ``prevalence`` (with ``n`` and
    ``n_positive``) of the data that it was fitted on."""
    thresholds: Mapping[str, Any] = field(default_factory=dict)
    """Name -> ``p_covid`` (raw), ``sensitivity`` and ``specificity`` as [value, low, high]."""
    default_threshold: str | None = DEFAULT_THRESHOLD
    """The one that ``decision`` is made at; null: no decision. Means nothing where there are no thresholds."""

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Calibration:
        """From ``bundle.json`` or what ``record`` gave. Raises BundleError."""
        found = cls(
            calibration=record.get("calibration"),
            thresholds=record.get("thresholds") or {},
            default_threshold=record.get("default_threshold", DEFAULT_THRESHOLD),
        )
        check_calibration(found)
        return found

    def record(self) -> dict[str, Any]:
        """The three entries, ready for JSON."""
        return {
            "calibration": None if self.calibration is None else dict(self.calibration),
            "thresholds": dict(self.thresholds),
            "default_threshold": self.default_threshold if self.thresholds else None,
        }

    @property
    def id(self) -> str | None:
        """32 hex digits over all three entries; None where there is neither calibration nor threshold."""
        if self.calibration is None and not self.thresholds:
            return None
        text = json.dumps(self.record(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def readout(self, *, prevalence: float | None = None, threshold: str | float | None = None) -> Readout:
        """At a prevalence (default: the one it was fitted at) and a threshold (default: the bundle's).

        Args:
            prevalence: share of the positive class where the scores will be used, above 0 and below 1; shifts the
                log-odds.
            threshold: a name, or a raw ``p_covid`` from 0 to 1.

        Raises:
            UsageError: a threshold of no such name, a number out of range, or no calibration to shift.
        """
        if prevalence is not None and not 0 < prevalence < 1:
            raise UsageError(f"prevalence must lie between 0 and 1, not {prevalence}")
        platt = self.calibration
        if platt is None and prevalence is not None:
            raise UsageError(
                "these scores have no calibration that a prevalence could shift; "
                "give one with --weights BUNDLE (calibration= in Python)"
            )
        cut, name = self._cut(threshold)
        if platt is None:
            return Readout(cut=cut, threshold_name=name)
        fitted = float(platt["prevalence"])
        wanted = fitted if prevalence is None else prevalence
        # Without a shift the intercept stays bit for bit as it was fitted.
        shift = 0.0 if prevalence is None else _log_odds(wanted) - _log_odds(fitted)
        return Readout(
            slope=float(platt["slope"]),
            intercept=float(platt["intercept"]) + shift,
            prevalence=wanted,
            cut=cut,
            threshold_name=name,
        )

    def _cut(self, threshold: str | float | None) -> tuple[float | None, str | None]:
        if threshold is None:
            if not self.thresholds or self.default_threshold is None:
                return None, None
            threshold = self.default_threshold
        if isinstance(threshold, str) and threshold in self.thresholds:
            return float(self.thresholds[threshold]["p_covid"]), threshold
        try:
            value = float(threshold)
        except ValueError as error:
            names = f"one of {', '.join(sorted(self.thresholds))}, or " if self.thresholds else ""
            raise UsageError(
                f"threshold {threshold!r} is unknown; give {names}a p_covid from 0 to 1"
            ) from error
        if not 0 <= value <= 1:
            raise UsageError(f"threshold {threshold} is no p_covid; give a number from 0 to 1")
        return value, repr(value)


def check_calibration(found: Calibration) -> None:
    """Raise BundleError unless the three entries have the documented shapes and ranges."""
    platt = found.calibration
    if platt is not None:
        if not isinstance(platt, Mapping) or platt.get("method") != PLATT:
            raise BundleError(
                f'calibration should be null or an object with method "{PLATT}", found {platt!r}'
            )
        for name in ("slope", "intercept", "prevalence", "n", "n_positive"):
            if not _is_number(platt.get(name)):
                raise BundleError(f"calibration.{name} should be a number, found {platt.get(name)!r}")
        if not platt["slope"] > 0:
            raise BundleError(
                f"calibration.slope should be above 0, found {platt['slope']}: it turns scores around"
            )
        if not 0 < platt["prevalence"] < 1:
            raise BundleError(
                f"calibration.prevalence should lie between 0 and 1, found {platt['prevalence']}"
            )
        if not 0 < platt["n_positive"] < platt["n"]:
            raise BundleError(
                f"calibration needs both classes, found {platt['n_positive']} positive of {platt['n']} images"
            )
    if not isinstance(found.thresholds, Mapping):
        raise BundleError(f"thresholds should be an object of names, found {found.thresholds!r}")
    for name, threshold in found.thresholds.items():
        _check_threshold(name, threshold)
    chosen = found.default_threshold
    if found.thresholds and chosen is not None and chosen not in found.thresholds:
        raise BundleError(
            f"default_threshold {chosen!r} is none of the thresholds {sorted(found.thresholds)}; name one, or null"
        )


def _check_threshold(name: str, threshold: Any) -> None:
    if not _NAME.fullmatch(name):
        raise BundleError(f"a threshold is named by a word, found {name!r}")
    if not isinstance(threshold, Mapping):
        raise BundleError(f"thresholds.{name} should be an object, found {threshold!r}")
    cut = threshold.get("p_covid")
    if not _is_number(cut) or not 0 <= cut <= 1:
        raise BundleError(f"thresholds.{name}.p_covid should be a number from 0 to 1, found {cut!r}")
    for figure in ("sensitivity", "specificity"):
        interval = threshold.get(figure)
        if (
            not isinstance(interval, list | tuple)
            or len(interval) != 3
            or not all(_is_number(value) and 0 <= value <= 1 for value in interval)
            or interval[1] > interval[2]
        ):
            raise BundleError(
                f"thresholds.{name}.{figure} should be [value, low, high] within 0 and 1, found {interval!r}"
            )


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _log_odds(share: float) -> float:
    return math.log(share) - math.log1p(-share)
