"""The parts of ``audit.json``, one function each; every one counts scored pictures only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from cxr_ray.weights.bundle import Bundle
from training.audit.pictures import Areas, Pictures
from training.audit.scoring import Predictions
from training.metrics.bootstrap import Interval, group_bootstrap, group_bootstrap_many, number_or_none
from training.metrics.classification import (
    binary_metrics,
    calibration_error,
    multiclass_metrics,
    roc_auc,
    with_intervals,
)
from training.metrics.operating_points import achieved

Array = NDArray[Any]


def describe(bundle: Bundle) -> dict[str, Any]:
    """What names a bundle in a record."""
    meta = bundle.meta
    return {
        "name": meta.name,
        "tensor_sha256": dict(bundle.tensor_sha256),
        "classes": list(meta.classes),
        "positive_class": meta.positive_class,
        "mask_style": meta.mask_style,
        "lung_gate": meta.lung_gate,
        "paths": meta.paths,
    }


def as_json(intervals: Mapping[str, Interval]) -> dict[str, Any]:
    """name -> interval as a JSON object."""
    return {name: interval.as_dict() for name, interval in intervals.items()}


def counts(everyone: Pictures, areas: Areas) -> dict[str, Any]:
    """Who was audited; ``areas`` holds the scored ones."""
    sources, numbers = np.unique(everyone.source, return_counts=True)
    mixed = areas.pictures.take(areas.in_mixed)
    return {
        "pictures": len(everyone),
        "positive": int(everyone.positive.sum()),
        "negative": int((~everyone.positive).sum()),
        "groups": len(np.unique(everyone.group)),
        "unscored": len(everyone) - len(areas.pictures),
        "sources": {str(name): int(n) for name, n in zip(sources, numbers, strict=True)},
        "mixed": {
            "sources": list(areas.mixed),
            "pictures": len(mixed),
            "positive": int(mixed.positive.sum()),
            "negative": int((~mixed.positive).sum()),
        },
    }


def metrics(areas: Areas, p: Array, logit: Array, threshold: float) -> dict[str, Any]:
    """All two-class figures at a fixed threshold, of all pictures and of those of mixed sources."""
    result = {}
    for name, chosen in {"pooled": np.ones(len(p), dtype=bool), "mixed": areas.in_mixed}.items():
        part = areas.pictures.take(chosen)
        figures = with_intervals(
            part.positive,
            p[chosen],
            threshold,
            groups=part.group,
            score=logit[chosen],
            draws=areas.draws,
            seed=areas.seed,
        )
        result[name] = {"threshold": threshold, "figures": as_json(figures)}
    return result


def classes(areas: Areas, class_probs: Array) -> dict[str, Any] | None:
    """Figures for more than two classes; None for two, where the others say it all."""
    if class_probs.shape[1] == 2:
        return None
    label = areas.pictures.class_index
    return as_json(
        group_bootstrap_many(
            lambda i: multiclass_metrics(label[i], class_probs[i]),
            areas.pictures.group,
            draws=areas.draws,
            seed=areas.seed,
        )
    )


def calibration(bundle: Bundle, areas: Areas, p: Array, logit: Array) -> dict[str, Any] | None:
    """Brier score and calibration error before and after the bundle's calibration; None without one.

    The calibrated figures are fair only where ``prevalence_here`` is near ``prevalence``.
    """
    readout = bundle.meta.score_calibration.readout()
    label = areas.pictures.positive
    if readout.slope is None or not len(label):
        return None

    def figures(probability: Array) -> dict[str, Any]:
        return as_json(
            group_bootstrap_many(
                lambda i: {
                    "brier": float(np.mean((probability[i] - label[i]) ** 2)),
                    "calibration_error": calibration_error(label[i], probability[i]),
                },
                areas.pictures.group,
                draws=areas.draws,
                seed=areas.seed,
            )
        )

    return {
        "prevalence": readout.prevalence,
        "prevalence_here": float(label.mean()),
        "raw": figures(p.astype(np.float64)),
        "calibrated": figures(readout.probability(logit)),
    }


def operating_points(bundle: Bundle, areas: Areas, p: Array) -> dict[str, Any]:
    """What the bundle's thresholds reach on these pictures, in the shape that the bundle stores."""
    pictures = areas.pictures
    return {
        name: achieved(
            float(stored["p_covid"]), p, pictures.positive, pictures.group, draws=areas.draws, seed=areas.seed
        ).as_json()
        for name, stored in bundle.meta.thresholds.items()
    }


def table(areas: Areas, column: str, p: Array, logit: Array, threshold: float) -> list[dict[str, Any]]:
    """One row per value of ``source``, ``view`` or ``age_group``."""
    rows = []
    column_values = getattr(areas.pictures, column)
    again: dict[str, Any] = {"draws": areas.draws, "seed": areas.seed}
    for name in np.unique(column_values):
        chosen = column_values == name
        part, score = areas.pictures.take(chosen), logit[chosen]
        point = achieved(threshold, p[chosen], part.positive, part.group, **again)

        def area(i: NDArray[np.intp], part: Pictures = part, score: Array = score) -> float:
            return roc_auc(part.positive[i], score[i])

        positives = int(part.positive.sum())
        rows.append(
            {
                "name": str(name),
                "pictures": len(part),
                "positive": positives,
                "negative": len(part) - positives,
                "groups": len(np.unique(part.group)),
                "sensitivity": point.sensitivity.as_dict(),
                "specificity": point.specificity.as_dict(),
                "roc_auc": group_bootstrap(area, part.group, **again).as_dict(),
            }
        )
    return rows


def paths(areas: Areas, p: Array, logit: Array, path_logits: Array, threshold: float) -> dict[str, Any]:
    """Every single path, and the ensemble minus the mean of its paths (a lower Brier score is better)."""
    label = areas.pictures.positive
    probability = expit(path_logits.astype(np.float64))
    each = []
    for column, p_column in zip(path_logits.T, probability.T, strict=True):
        figures = binary_metrics(label, p_column, threshold, score=column)
        figures |= {f"auc_{name}": value for name, value in areas.values(column).items()}
        each.append({name: number_or_none(value) for name, value in figures.items()})
    right = (probability >= threshold) == label[:, None]
    gain = ((p >= threshold) == label) - right.mean(axis=1)
    brier = (p.astype(np.float64) - label) ** 2 - np.mean((probability - label[:, None]) ** 2, axis=1)
    plain = group_bootstrap_many(
        lambda i: {"accuracy": float(gain[i].mean()), "brier": float(brier[i].mean())},
        areas.pictures.group,
        draws=areas.draws,
        seed=areas.seed,
    )
    return {"each": each, "ensemble_minus_mean": as_json({**areas.difference(logit, path_logits), **plain})}


def hide_and_seek(areas: Areas, predictions: Predictions, scored: NDArray[np.bool_]) -> dict[str, Any] | None:
    """The areas untouched, with the lungs removed and with the lungs only; None where it was not played."""
    if predictions.lungs_removed is None or predictions.lungs_only is None:
        return None
    untouched, only = predictions.logit[scored], predictions.lungs_only[scored]
    return {
        "untouched": as_json(areas.intervals(untouched)),
        "lungs_removed": as_json(areas.intervals(predictions.lungs_removed[scored])),
        "lungs_only": as_json(areas.intervals(only)),
        "lungs_only_minus_untouched": as_json(areas.difference(only, untouched)),
    }


def compared(
    everyone: Pictures, areas: Areas, other: Bundle, first: Predictions, second: Predictions
) -> dict[str, Any]:
    """Another bundle on the pictures that both score, with the same mixed sources; difference = this minus other."""
    both = first.has_lungs & second.has_lungs & np.isfinite(first.logit) & np.isfinite(second.logit)
    shared = Areas(pictures=everyone.take(both), mixed=areas.mixed, draws=areas.draws, seed=areas.seed)
    return {
        "bundle": describe(other),
        "pictures": int(both.sum()),
        "auc": as_json(shared.intervals(second.logit[both])),
        "hide_and_seek": hide_and_seek(shared, second, both),
        "difference": as_json(shared.difference(first.logit[both], second.logit[both])),
    }
