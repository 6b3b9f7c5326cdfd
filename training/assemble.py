"""Trained paths and segmenters into one bundle, with calibration, thresholds, metrics and what it was trained on.

Calibration and thresholds belong to the ensemble, so they are fitted on ensemble logits of pictures that no path has
seen (the calibration split), through the very scorer that screens archives.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
from numpy.typing import NDArray

from cxr_ray.archives.storage import Storage, open_storage
from cxr_ray.errors import TrainingDataError
from cxr_ray.weights import Bundle, BundleMeta, save_bundle
from training.audit.scoring import Predictions, score_frames
from training.card import card_text
from training.data.frames import Frames
from training.data.licences import licence_basis
from training.data.manifest import Example
from training.material import Material, labels_of, read_material
from training.members import DONE, WEIGHTS
from training.metrics.bootstrap import group_bootstrap
from training.metrics.calibration import fit_platt
from training.metrics.classification import mixed_sources, roc_auc
from training.metrics.operating_points import operating_points
from training.options import TrainOptions, train_options
from training.segmenters import segmenter_states

BUNDLE = "bundle"
CALIBRATION_TABLE = "calibration.parquet"
OUT_OF_FOLD_TABLE = "out_of_fold.parquet"


@dataclass(frozen=True)
class Evidence:
    """What a bundle's figures rest on."""

    out_of_fold: pa.Table
    """Every training picture, scored by the path that did not see it."""
    calibration: pa.Table | None
    """The calibration split, scored by the ensemble; None without such a split."""
    lung_dice: dict[str, dict[str, float]]
    """Mask style -> source -> mean lung Dice on the validation pairs."""


def assemble(options: TrainOptions, output: Storage) -> dict[str, Any]:
    """Make ``OUTPUT/bundle``, the out-of-fold table and the calibration table; returns facts for the last line.

    Raises:
        TrainingDataError: a member is not finished, or an output is no training output.
        BundleError: there is a bundle already.
    """
    assert options.classification is not None
    trained = settings_of(options.classification, options)
    if options.shards:  # moved since
        trained.shards = options.shards
    material = read_material(trained)
    bare = build_bundle(options, trained, material)
    out_of_fold = read_out_of_fold(options.classification, trained, options)
    calibration, fitted = fit_calibration(bare, material, trained)
    evidence = Evidence(out_of_fold, calibration, read_lung_dice(options))
    meta = replace(bare.meta, metrics=metrics(evidence, trained), **fitted)
    bundle = Bundle.build(
        segmenters=bare.segmenters,
        paths=bare.paths,
        meta=meta,
        card=card_text(meta, material, evidence.out_of_fold),
    )
    put_table(output, OUT_OF_FOLD_TABLE, out_of_fold)
    if calibration is not None:
        put_table(output, CALIBRATION_TABLE, calibration)
    save_bundle(bundle, f"{options.output}/{BUNDLE}", **options.output_options)
    return {"bundle": f"{output.url}/{BUNDLE}", "metrics": meta.metrics, "tensors": bundle.tensor_sha256}


def settings_of(url: str, options: TrainOptions) -> TrainOptions:
    """The options that a training output was made with, pointed at the places of this run.

    Raises:
        TrainingDataError: no training output there.
    """
    place = open_storage(url, options.output_options)
    path = f"{place.path}/config.json"
    if not place.fs.exists(path):
        raise TrainingDataError(f"{place.url} is no training output: it has no config.json")
    stored = json.loads(place.fs.cat_file(path))["settings"]
    manifest = {
        **stored["manifest"],
        "options": options.manifest.options,
        "key_env": options.manifest.key_env,
        "key_file": options.manifest.key_file,
    }
    return train_options(
        {
            **stored,
            "output": url,
            "manifest": manifest,
            "shards_options": options.shards_options,
            "output_options": options.output_options,
        }
    )


def build_bundle(options: TrainOptions, trained: TrainOptions, material: Material) -> Bundle:
    """The bundle without calibration and metrics. Raises TrainingDataError if a fold is not finished."""
    assert options.classification is not None
    assert options.segmentation is not None
    recipe = trained.recipe.classification
    place = open_storage(options.classification, options.output_options)
    paths = []
    for number in range(recipe.folds.count):
        folder = f"{place.path}/members/fold{number}"
        if not place.fs.exists(f"{folder}/{DONE}"):
            raise TrainingDataError(
                f"fold{number} of {place.url} is not finished; run jobs/train.py task=classification to its end first"
            )
        paths.append(safetensors.torch.load(place.fs.cat_file(f"{folder}/{WEIGHTS}")))
    segmenters = segmenter_states(options.segmentation, options.output_options)
    used, left_out = trained_rows(options, material)
    mean, std = recipe.standardisation_mean, recipe.standardisation_std
    if mean is None or std is None:
        pixels = material.frames.pixels_NHW[material.where("train")]
        mean, std = float(pixels.mean(dtype=np.float64)), float(pixels.std(dtype=np.float64))
    meta = BundleMeta(
        name=options.bundle_name,
        trained=True,
        classes=tuple(recipe.classes),
        positive_class=recipe.positive_class,
        paths=len(paths),
        standardisation_mean=mean,
        standardisation_std=std,
        mask_style=recipe.mask_style,
        mask_styles=tuple(sorted(segmenters)),
        lung_gate=recipe.lung_gate,
        trained_on=trained_on(material),
        training_data_fingerprint=fingerprint(material.frames, material),
        licence_basis=licence_basis(used, left_out)["sentence"],
    )
    return Bundle.build(segmenters=segmenters, paths=paths, meta=meta)


def trained_rows(options: TrainOptions, material: Material) -> tuple[list[Example], list[Example]]:
    """Manifest rows behind the weights, of both modules, and those left out for their licence."""
    materials = [material]
    place = open_storage(str(options.segmentation), options.output_options)
    if place.fs.exists(f"{place.path}/config.json"):
        materials.append(read_material(settings_of(str(options.segmentation), options)))
    used, left_out = [], []
    for one in materials:
        for example, side, reason in zip(one.frames.examples, one.split, one.reason, strict=True):
            if side in ("train", "calibration"):
                used.append(example)
            elif reason == "licence":
                left_out.append(example)
    return used, left_out


def trained_on(material: Material) -> str:
    """One line for people."""
    examples = [
        example
        for example, side in zip(material.frames.examples, material.split, strict=True)
        if side == "train"
    ]
    sources = sorted({example.source for example in examples if example.source})
    return f"{len(examples):,} pictures from {len(sources)} sources ({', '.join(sources)})"


def fingerprint(frames: Frames, material: Material) -> str:
    """SHA-256 over file hash, label and side of every picture that took part: names the training data."""
    lines = sorted(
        f"{sha}|{example.label}|{side}"
        for sha, example, side in zip(frames.content_sha256, frames.examples, material.split, strict=True)
        if side in ("train", "calibration")
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


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
    groups = np.array([example.group_key for example in frames.examples])
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
            "group": pa.array([e.group_key for e in examples], pa.string()),
            "source": pa.array([e.source for e in examples], pa.string()),
            "label": pa.array([e.label for e in examples], pa.string()),
            "logit": pa.array(predictions.logit.astype(np.float64), mask=blank),
            "path_logits": pa.array(predictions.path_logits.tolist(), pa.list_(pa.float32())),
        }
    )


def read_out_of_fold(url: str, trained: TrainOptions, options: TrainOptions) -> pa.Table:
    """The folds' tables, one below the other."""
    place = open_storage(url, options.output_options)
    parts = [
        pq.read_table(io.BytesIO(place.fs.cat_file(f"{place.path}/members/fold{number}/out_of_fold.parquet")))
        for number in range(trained.recipe.classification.folds.count)
    ]
    return pa.concat_tables(parts)


def read_lung_dice(options: TrainOptions) -> dict[str, dict[str, float]]:
    """Mean lung Dice by mask style and source, from a segmentation output; empty for a bundle's segmenters."""
    place = open_storage(str(options.segmentation), options.output_options)
    found: dict[str, dict[str, float]] = {}
    members = f"{place.path}/members"
    if not place.fs.exists(members):
        return found
    for folder in sorted(place.fs.ls(members, detail=False)):
        name = f"{folder}/validation.parquet"
        if place.fs.exists(name):
            table = pq.read_table(io.BytesIO(place.fs.cat_file(name)))
            grouped = table.group_by("source").aggregate([("dice", "mean")]).to_pylist()
            style = folder.rstrip("/").rpartition("/")[2]
            found[style] = {str(row["source"]): round(row["dice_mean"], 4) for row in grouped}
    return found


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


def put_table(output: Storage, name: str, table: pa.Table) -> None:
    """Write a Parquet file below OUTPUT."""
    with output.fs.open(f"{output.path}/{name}", "wb") as file:
        pq.write_table(table, file)
