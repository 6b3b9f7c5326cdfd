"""What a finished member leaves beside its weights: its history, and its scores on the pictures it never saw."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cxr_ray.archives.storage import Storage
from cxr_ray.nets.ensemble import log_odds
from cxr_ray.pipeline.publish import Publisher
from training.classification import PathTask
from training.loop import Row
from training.material import Material
from training.metrics.segmentation import lung_metrics
from training.options import TrainOptions
from training.segmentation import SegmentationTask


def write_validation(
    output: Storage, task: SegmentationTask, material: Material, options: TrainOptions
) -> None:
    """``validation.parquet``: lung-only figures of each validation pair at the last stage's size; no pairs, no file."""
    if not len(task.validation.picture_ids):
        return
    stage = options.recipe.segmentation.stages[-1]
    task.model.eval()
    with torch.inference_mode():
        lungs, _ = task.predict(task.model, stage)
    _, truth = task.validation.at(stage.rows, stage.columns)
    frames = material.frames
    chosen = [i for i in material.where("val") if frames.examples[i].mask_style == task.name]
    table = pa.table(
        {
            "image_id": [frames.image_id[i] for i in chosen],
            "source": pa.array([frames.examples[i].source for i in chosen], pa.string()),
            **lung_metrics(lungs, truth.astype(bool)),
        }
    )
    put_table(output, "validation.parquet", table)


def write_out_of_fold(output: Storage, task: PathTask, material: Material, options: TrainOptions) -> None:
    """``out_of_fold.parquet``: log-odds of the positive class for each picture of the fold held out."""
    recipe = options.recipe.classification
    positive = recipe.classes.index(recipe.positive_class)
    logits_NC = task.logits(task.model, task.held_out).double()
    # Without lungs in the frame a path says exactly nothing; scoring quarantines such a picture.
    blank = np.array([not task.store.has_lungs(int(picture)) for picture in task.held_out])
    logit = log_odds(logits_NC, positive).numpy()
    places = material.where("train")[task.held_out]
    examples = [material.frames.examples[i] for i in places]
    columns = {
        "image_id": pa.array([material.frames.image_id[i] for i in places]),
        "patient_key": pa.array([e.patient_key for e in examples], pa.string()),
        "group": pa.array([e.unit_key for e in examples], pa.string()),
        "source": pa.array([e.source for e in examples], pa.string()),
        "view": pa.array([e.view for e in examples], pa.string()),
        "pediatric": pa.array([e.pediatric for e in examples], pa.bool_()),
        "label": pa.array([e.label for e in examples], pa.string()),
        "fold": pa.array([int(task.name.removeprefix("fold"))] * len(examples), pa.int32()),
        "logit": pa.array(logit, mask=blank),
        "p": pa.array(1 / (1 + np.exp(-logit)), mask=blank),
    }
    if len(recipe.classes) > 2:
        probabilities = [
            None if no else row for no, row in zip(blank, logits_NC.softmax(1).tolist(), strict=True)
        ]
        columns["class_probs"] = pa.array(probabilities, pa.list_(pa.float64()))
    put_table(output, "out_of_fold.parquet", pa.table(columns))


def filled(history: list[Row]) -> list[Row]:
    """Every row with every column: Arrow takes the columns of the first row only."""
    names = list(dict.fromkeys(name for row in history for name in row))
    return [{name: row.get(name) for name in names} for row in history]  # type: ignore[misc]


def put_table(output: Storage, name: str, table: pa.Table) -> None:
    """Write a Parquet file below the member's folder."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    put(output, name, buffer.getvalue())


def put(output: Storage, name: str, data: bytes) -> None:
    """Write a file below the member's folder, whole or not at all."""
    Publisher(output).replace(name, data)
