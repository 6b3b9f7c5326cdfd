"""The figures that a bundle carries with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from training.metrics.bootstrap import group_bootstrap
from training.metrics.classification import mixed_sources, roc_auc
from training.options import TrainOptions


@dataclass(frozen=True)
class Evidence:
    """What a bundle's figures rest on."""

    out_of_fold: pa.Table
    """Every training picture, scored by the path that did not see it."""
    calibration: pa.Table | None
    """The calibration split, scored by the ensemble; None without such a split."""
    lung_dice: dict[str, dict[str, float]]
    """Mask style -> source -> mean lung Dice on the validation pairs."""


def metrics(evidence: Evidence, trained: TrainOptions) -> dict[str, Any]:
    """Figures for ``bundle.json``: value with its 95 % interval over groups, each named for the pictures it is on."""
    seed = trained.recipe.loop.seed
    positive = trained.recipe.classification.positive_class
    found: dict[str, Any] = {}
    for name, table in (("out_of_fold", evidence.out_of_fold), ("calibration", evidence.calibration)):
        if table is None:
            continue
        rows = [row for row in table.to_pylist() if row["logit"] is not None]
        label = np.array([row["label"] == positive for row in rows])
        logit = np.array([row["logit"] for row in rows])
        source = np.array([row["source"] or "" for row in rows])
        groups = np.array([row["group"] for row in rows])
        fold = np.array([row.get("fold", 0) for row in rows])
        mixed = np.isin(source, mixed_sources(label, source))
        found[f"{name}_auc"] = _within_folds(label, logit, fold, groups, seed)
        if mixed.any():
            found[f"{name}_mixed_source_auc"] = _within_folds(
                label[mixed], logit[mixed], fold[mixed], groups[mixed], seed
            )
    if evidence.lung_dice:
        found["validation_lung_dice"] = evidence.lung_dice
    return found


def _within_folds(
    label: NDArray[np.bool_],
    logit: NDArray[np.float64],
    fold: NDArray[np.int64],
    groups: NDArray[Any],
    seed: int,
) -> list[float | None]:
    """ROC AUC over pairs of the same fold (logits of different paths are on different scales)."""

    def area(i: NDArray[np.intp]) -> float:
        won, pairs = 0.0, 0
        for number in np.unique(fold[i]):
            here = i[fold[i] == number]
            count = int(label[here].sum()) * int((~label[here]).sum())
            if count:
                won, pairs = won + roc_auc(label[here], logit[here]) * count, pairs + count
        return won / pairs if pairs else float("nan")

    interval = group_bootstrap(area, groups, seed=seed)
    return [None if value is None else round(value, 4) for value in interval.as_list()]
