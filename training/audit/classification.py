"""The audit of a classifier: what ``audit.json`` and ``predictions.parquet`` hold.

``audit.json`` (an interval is ``{"value", "low", "high", "draws", "left_out"}``, 95 %, over whole groups; null where
undefined)::

    task, split
    bundle      {name, tensor_sha256, classes, positive_class, mask_style, lung_gate, paths}
    counts      {pictures, positive, negative, groups, unscored, sources: name -> n,
                 mixed: {sources, pictures, positive, negative}}
    bootstrap   {unit, draws, seed, level}
    auc         {mixed, within, pooled} -> interval
    metrics     {pooled, mixed} -> {threshold, figures: name -> interval}, at a fixed threshold (0.5, as the paper)
    classes     name -> interval for more than two classes, else null
    calibration {prevalence, prevalence_here, raw, calibrated: {brier, calibration_error}}, or null
    operating_points   name -> {p_covid, sensitivity [value, low, high], specificity [value, low, high]} reached here
    tables_threshold   p_covid from which on the tables count a picture as positive: the bundle's default, else 0.5
    tables      {source, view, age_group} -> [{name, pictures, positive, negative, groups, sensitivity, specificity,
                 roc_auc}]
    paths       {each: [single-path figures, with auc_mixed, auc_within, auc_pooled],
                 ensemble_minus_mean: {mixed, within, pooled, accuracy, brier}}
    hide_and_seek      {untouched, lungs_removed, lungs_only, lungs_only_minus_untouched} -> {mixed, within, pooled}
    compared    {bundle, pictures, auc, hide_and_seek, difference: {mixed, within, pooled}} for another bundle, or null
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import expit

from cxr_ray.weights.bundle import Bundle
from training.audit import sections
from training.audit.pictures import Areas, age_group, pictures_of
from training.audit.scoring import Predictions
from training.data.frames import Frames
from training.metrics.bootstrap import DRAWS, LEVEL

TABLES = ("source", "view", "age_group")


@dataclass(kw_only=True)
class AuditSettings:
    """How an audit counts."""

    draws: int = DRAWS
    """Bootstrap resamples."""
    seed: int = 0
    """Of the bootstrap."""
    threshold: float = 0.5
    """Threshold on p_covid of the plain metrics; 0.5 is the paper's."""
    mixed_sources: list[str] = field(default_factory=list)
    """Sources of the mixed-source AUC; empty: those that hold both classes among the audited pictures."""


@dataclass(frozen=True)
class AuditResult:
    """Both files of an audit."""

    summary: dict[str, Any]
    """Content of ``audit.json``."""
    table: pa.Table
    """Content of ``predictions.parquet``: one row per picture, in the order of the frames."""


def audit(
    bundle: Bundle,
    frames: Frames,
    predictions: Predictions,
    *,
    settings: AuditSettings,
    split: str = "",
    compare: Bundle | None = None,
    compared: Predictions | None = None,
) -> AuditResult:
    """Count everything that one scoring of labelled pictures can tell.

    Args:
        bundle: the audited weights.
        frames: the pictures; every label is one of the bundle's classes.
        predictions: of ``score_frames(bundle, frames.pixels_NHW, ...)``.
        settings: how to count.
        split: name of the split, for the record.
        compare, compared: another bundle and its predictions of the same pictures.
    """
    meta = bundle.meta
    everyone = pictures_of(frames.examples, meta.classes, meta.positive_class)
    scored = predictions.has_lungs & np.isfinite(predictions.logit)
    areas = Areas.of(everyone.take(scored), settings.mixed_sources, draws=settings.draws, seed=settings.seed)
    p, logit = predictions.p_covid[scored], predictions.logit[scored]
    cut = meta.score_calibration.readout().cut
    tables_threshold = settings.threshold if cut is None else cut
    summary = {
        "task": "classification",
        "split": split,
        "bundle": sections.describe(bundle),
        "counts": sections.counts(everyone, areas),
        "bootstrap": {"unit": "group", "draws": settings.draws, "seed": settings.seed, "level": LEVEL},
        "auc": sections.as_json(areas.intervals(logit)),
        "metrics": sections.metrics(areas, p, logit, settings.threshold),
        "classes": sections.classes(areas, predictions.class_probs[scored]),
        "calibration": sections.calibration(bundle, areas, p, logit),
        "operating_points": sections.operating_points(bundle, areas, p),
        "tables_threshold": tables_threshold,
        "tables": {name: sections.table(areas, name, p, logit, tables_threshold) for name in TABLES},
        "paths": sections.paths(areas, p, logit, predictions.path_logits[scored], settings.threshold),
        "hide_and_seek": sections.hide_and_seek(areas, predictions, scored),
        "compared": None
        if compare is None or compared is None
        else sections.compared(everyone, areas, compare, predictions, compared),
    }
    return AuditResult(summary, predictions_table(bundle, frames, predictions, compared))


def predictions_table(
    bundle: Bundle, frames: Frames, predictions: Predictions, compared: Predictions | None = None
) -> pa.Table:
    """One row per picture: who it is (keys only, never raw identifiers) and every score; null where there is none."""
    examples = frames.examples
    text = {
        "image_id": frames.image_id,
        "patient_key": [example.patient_key for example in examples],
        "group": [example.unit_key for example in examples],
        "source": [example.source for example in examples],
        "view": [example.view for example in examples],
        "age_group": [age_group(example) for example in examples],
        "label": [example.label for example in examples],
    }
    columns = {name: pa.array(values, pa.string()) for name, values in text.items()}
    columns["p_covid"] = _numbers(predictions.p_covid)
    columns["logit"] = _numbers(predictions.logit)
    columns["path_logits"] = pa.array(
        [row.tolist() if np.isfinite(row).all() else None for row in predictions.path_logits],
        pa.list_(pa.float32()),
    )
    readout = bundle.meta.score_calibration.readout()
    if readout.slope is not None:
        finite = np.isfinite(predictions.logit)
        calibrated = np.full(len(predictions), np.nan)
        calibrated[finite] = readout.probability(predictions.logit[finite])
        columns["p_calibrated"] = _numbers(calibrated)
    columns["lung_fraction"] = _numbers(predictions.lung_fraction)
    extra = {"lungs_removed": predictions.lungs_removed, "lungs_only": predictions.lungs_only}
    if compared is not None:
        extra |= {
            "compared": compared.logit,
            "compared_lungs_removed": compared.lungs_removed,
            "compared_lungs_only": compared.lungs_only,
        }
    for name, logit in extra.items():
        if logit is not None:
            columns[f"{name}_p"] = _numbers(expit(logit.astype(np.float64)))
            columns[f"{name}_logit"] = _numbers(logit)
    return pa.table(columns)


def _numbers(values: NDArray[Any]) -> pa.Array:
    return pa.array(values.astype(np.float32), pa.float32(), mask=~np.isfinite(values))
