"""Calibration and operating thresholds of an ensemble, on pictures that none of its paths has seen."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cxr_ray.weights import Bundle
from training.audit.scoring import Predictions, score_frames
from training.data.frames import Frames
from training.material import Material, labels_of
from training.metrics.calibration import fit_platt
from training.metrics.operating_points import operating_points
from training.options import TrainOptions


def fit_calibration(
    bundle: Bundle, material: Material, trained: TrainOptions
) -> tuple[pa.Table | None, dict[str, Any]]:
    """Score the calibration split; its table, and the fields of ``BundleMeta`` that follow from it."""
    chosen = material.where("calibration")
    if not len(chosen):
        return None, {}
    frames = material.frames.take(chosen)
    predictions = score_frames(bundle, frames.pixels_NHW, processes=len(os.sched_getaffinity(0)))
    seen = predictions.has_lungs
    recipe = trained.recipe.classification
    positive = recipe.classes.index(recipe.positive_class)
    label: NDArray[np.bool_] = labels_of(frames.examples, recipe.classes) == positive
    groups = np.array([example.unit_key for example in frames.examples])
    platt = fit_platt(predictions.logit[seen], label[seen])
    if platt.slope <= 0:
        print(
            "note: on the calibration pictures a higher score does not mean the positive class, so the bundle gets no "
            "calibration and no thresholds; the paths have not learned to tell the classes",
            file=sys.stderr,
            flush=True,
        )
        return calibration_table(frames, predictions), {}
    points = operating_points(
        predictions.p_covid[seen], label[seen], groups[seen], seed=trained.recipe.loop.seed
    )
    return calibration_table(frames, predictions), {
        "calibration": platt.as_json(),
        "thresholds": {name: point.as_json() for name, point in points.items()},
    }


def calibration_table(frames: Frames, predictions: Predictions) -> pa.Table:
    """One row per calibration picture, scored by the whole ensemble; null where no lungs were found."""
    examples, blank = frames.examples, ~predictions.has_lungs
    return pa.table(
        {
            "image_id": frames.image_id,
            "patient_key": pa.array([e.patient_key for e in examples], pa.string()),
            "group": pa.array([e.unit_key for e in examples], pa.string()),
            "source": pa.array([e.source for e in examples], pa.string()),
            "view": pa.array([e.view for e in examples], pa.string()),
            "pediatric": pa.array([e.pediatric for e in examples], pa.bool_()),
            "label": pa.array([e.label for e in examples], pa.string()),
            "logit": pa.array(predictions.logit.astype(np.float64), mask=blank),
            "path_logits": pa.array(predictions.path_logits.tolist(), pa.list_(pa.float32())),
        }
    )
