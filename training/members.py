"""One member of a run from data to weights: what every worker process executes, with Ray or without."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch

from cxr_ray.archives.storage import Storage, open_storage
from cxr_ray.errors import TrainingDataError
from cxr_ray.nets.ensemble import Ensemble, log_odds
from cxr_ray.nets.folding import fold_blocks
from cxr_ray.nets.network import Network
from training.checkpoints import Checkpoints
from training.classification import Labelled, PathTask
from training.curves import Curves
from training.data.manifest import manifest_root
from training.data.masks import load_masks
from training.features import FeatureStore
from training.loop import Row, train
from training.material import Material, labels_of, read_material
from training.memory import keep_freed_memory
from training.metrics.segmentation import lung_metrics
from training.options import TrainOptions, train_options
from training.parallel.processes import Processes
from training.segmentation import Pairs, SegmentationTask
from training.segmenters import load_segmenter

DONE = "done.json"
WEIGHTS = "weights.safetensors"


def member_names(options: TrainOptions) -> list[str]:
    """Members of the run that are to be trained now."""
    if options.task == "segmentation":
        names = list(options.recipe.segmentation.styles)
    else:
        names = [f"fold{number}" for number in range(options.recipe.classification.folds.count)]
    return [name for name in names if not options.execution.only or name in options.execution.only]


def run_member(settings: dict[str, Any], processes: Processes, report: Callable[[Row], None]) -> None:
    """Train one member, or go on with it, and write its results; a finished one is left as it is.

    Args:
        settings: ``{"name": member, "options": as_plain(options)}``.
        report: called on every rank at the end of every epoch.
    """
    options, name = train_options(settings["options"]), settings["name"]
    torch.set_num_threads(options.execution.threads)
    cv2.setNumThreads(options.execution.threads)
    keep_freed_memory()
    output = open_storage(f"{options.output}/members/{name}", options.output_options)
    if output.fs.exists(f"{output.path}/{DONE}"):
        return
    material = read_material(options)
    checkpoints = Checkpoints(f"{options.output}/members/{name}/checkpoints", options.output_options)
    curves = _curves(output, checkpoints) if processes.rank == 0 else None

    def finish_epoch(row: Row) -> None:
        if curves is not None:
            curves.add(row)
        report(row)

    loop = options.recipe.loop
    if options.task == "segmentation":
        lungs_task = segmentation_task(name, options, material)
        history = train(
            lungs_task,
            options.recipe.segmentation.stages,
            loop,
            processes=processes,
            checkpoints=checkpoints,
            report=finish_epoch,
        )
        if processes.rank == 0:
            _write_validation(output, lungs_task, material, options)
        model = lungs_task.model
    else:
        path_task = classification_task(name, options, material)
        history = train(
            path_task,
            options.recipe.classification.stages,
            loop,
            processes=processes,
            checkpoints=checkpoints,
            report=finish_epoch,
        )
        if processes.rank == 0:
            _write_out_of_fold(output, path_task, material, options)
        model = path_task.model
    if curves is not None:
        curves.close()
    if processes.rank == 0:
        state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
        _put(output, WEIGHTS, safetensors.torch.save(state))
        _put_table(output, "history.parquet", pa.Table.from_pylist(_filled(history)))
        _put(output, DONE, json.dumps({"epochs": len(history), **history[-1]}).encode())
    processes.barrier()


def _curves(output: Storage, checkpoints: Checkpoints) -> Curves:
    checkpoint = checkpoints.latest()
    return Curves(output, epochs_done=len(checkpoint.facts["history"]) if checkpoint else 0)


def segmentation_task(style: str, options: TrainOptions, material: Material) -> SegmentationTask:
    """The task of one mask style. Raises TrainingDataError if it has no training pictures."""
    pairs = {side: _pairs(style, side, options, material) for side in ("train", "val")}
    if not len(pairs["train"].picture_ids):
        raise TrainingDataError(f"no training picture has a mask of style {style!r}")
    return SegmentationTask(
        style,
        options.recipe.segmentation,
        options.recipe.loop,
        training=pairs["train"],
        validation=pairs["val"],
    )


def _pairs(style: str, side: str, options: TrainOptions, material: Material) -> Pairs:
    frames = material.frames
    chosen = [int(i) for i in material.where(side) if frames.examples[i].mask_style == style]
    part = frames.take(chosen)
    lungs = load_masks(part, root=manifest_root(options.manifest), options=options.manifest.options)
    return Pairs([example.id for example in part.examples], part.pixels_NHW, lungs)


def classification_task(name: str, options: TrainOptions, material: Material) -> PathTask:
    """The task of one fold, over the feature store that all folds share (filled here if need be)."""
    recipe = options.recipe.classification
    number = int(name.removeprefix("fold"))
    chosen = material.where("train")
    part = material.frames.take([int(i) for i in chosen])
    ids = [example.id for example in part.examples]
    store = feature_store(options, part.pixels_NHW, ids)
    if not recipe.fresh_copies:
        # Every fold begins at another place, so that folds side by side share the work.
        store.fill(start=number * store.chunks // max(recipe.folds.count, 1))
    labelled = Labelled(
        ids, labels_of(part.examples, recipe.classes), [e.source or "" for e in part.examples]
    )
    folds = np.array([material.fold[i] for i in chosen])
    return PathTask(
        name,
        recipe,
        options.recipe.loop,
        store=store,
        pictures=labelled,
        training=np.flatnonzero(folds != number),
        held_out=np.flatnonzero(folds == number),
        number=number,
    )


def feature_store(
    options: TrainOptions, pixels_NHW: np.ndarray[Any, Any], picture_ids: list[str]
) -> FeatureStore:
    """The store of these pictures, in the run's work folder."""
    recipe = options.recipe.classification
    assert options.segmentation is not None
    segmenter, fingerprint = load_segmenter(options.segmentation, recipe.mask_style, options.output_options)
    mean, std = recipe.standardisation_mean, recipe.standardisation_std
    if mean is None or std is None:
        mean, std = float(pixels_NHW.mean(dtype=np.float64)), float(pixels_NHW.std(dtype=np.float64))
    rows, columns = pixels_NHW.shape[1:]
    network = Network(segmenter, Ensemble(rows=rows, columns=columns, paths=0), mean=mean, std=std)
    network.eval().requires_grad_(False)
    fold_blocks(network)  # as the scorer does, so that the masks are those of scoring, bit for bit
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    folder = options.execution.work_dir or os.path.join(tempfile.gettempdir(), "cxr_ray_features")
    return FeatureStore(
        Path(folder),
        network,
        pixels_NHW,
        picture_ids,
        recipe.copies,
        fingerprint=f"{fingerprint}|{mean}|{std}",
    )


def _write_validation(
    output: Storage, task: SegmentationTask, material: Material, options: TrainOptions
) -> None:
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
            "id": [frames.examples[i].id for i in chosen],
            "source": pa.array([frames.examples[i].source for i in chosen], pa.string()),
            **lung_metrics(lungs, truth.astype(bool)),
        }
    )
    _put_table(output, "validation.parquet", table)


def _write_out_of_fold(output: Storage, task: PathTask, material: Material, options: TrainOptions) -> None:
    recipe = options.recipe.classification
    positive = recipe.classes.index(recipe.positive_class)
    logit = log_odds(task.logits(task.model, task.held_out), positive).double().numpy()
    places = material.where("train")[task.held_out]
    examples = [material.frames.examples[i] for i in places]
    table = pa.table(
        {
            "image_id": [material.frames.image_id[i] for i in places],
            "id": [e.id for e in examples],
            "patient_key": pa.array([e.patient_key for e in examples], pa.string()),
            "group": pa.array([e.group_key for e in examples], pa.string()),
            "source": pa.array([e.source for e in examples], pa.string()),
            "view": pa.array([e.view for e in examples], pa.string()),
            "label": [e.label for e in examples],
            "fold": pa.array([int(task.name.removeprefix("fold"))] * len(examples), pa.int32()),
            "logit": logit,
            "p": 1 / (1 + np.exp(-logit)),
        }
    )
    _put_table(output, "out_of_fold.parquet", table)


def _filled(history: list[Row]) -> list[Row]:
    """Every row with every column: Arrow takes the columns of the first row only."""
    names = list(dict.fromkeys(name for row in history for name in row))
    return [{name: row.get(name) for name in names} for row in history]  # type: ignore[misc]


def _put_table(output: Storage, name: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    _put(output, name, buffer.getvalue())


def _put(output: Storage, name: str, data: bytes) -> None:
    output.fs.makedirs(output.path, exist_ok=True)
    with output.fs.open(f"{output.path}/{name}", "wb") as file:
        file.write(data)
