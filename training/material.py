"""What a run trains on: the manifest's pictures with their frames, and the side of the split that each is on.

The driver decides the split once, checks it for leaks and writes it to ``OUTPUT/split.parquet``; workers read it from
there, so that a resumed run cannot see another split.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import TrainingDataError
from training.data.frames import Frames, load_frames
from training.data.licences import allows
from training.data.manifest import Example, manifest_root, read_manifest
from training.options import TrainOptions
from training.splits.calibration import calibration_split
from training.splits.folds import assign_folds
from training.splits.groups import Regrouped, regroup_large
from training.splits.leaks import check_leaks

SPLIT_FILE = "split.parquet"
SPLIT_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("id", pa.string()),
        ("patient_key", pa.string()),
        ("group", pa.string()),
        ("source", pa.string()),
        ("label", pa.string()),
        ("mask_style", pa.string()),
        ("view", pa.string()),
        ("pediatric", pa.bool_()),
        ("licence", pa.string()),
        ("split", pa.string()),
        ("fold", pa.int32()),
        ("reason", pa.string()),
    ]
)
LEFT_OUT = "left_out"


@dataclass(frozen=True)
class Material:
    """Pictures of one task; the lists run along with ``frames.examples``."""

    frames: Frames
    split: Sequence[str]
    """``train``, ``calibration``, ``val``, ``left_out``, or the manifest's own word (``test``, ...)."""
    fold: Sequence[int | None]
    """The fold that holds a training picture out (classification)."""
    reason: Sequence[str | None]
    """Why a picture was left out."""
    regrouped: Sequence[Regrouped] = ()
    """Groups that were taken apart by patient, because one fold would have held a whole source."""

    def where(self, split: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Positions of the pictures on one side."""
        return np.flatnonzero(np.array([side == split for side in self.split]))


def gather(options: TrainOptions) -> Frames:
    """The manifest's pictures joined with the shards. Raises UsageError for what does not fit."""
    examples = read_manifest(options.manifest)
    assert options.shards is not None
    needed = "mask" if options.task == "segmentation" else "label"
    examples = [example for example in examples if getattr(example, needed) is not None]
    if not examples:
        raise TrainingDataError(f"no row of the manifest has a {needed}; task={options.task} needs one")
    return load_frames(
        options.shards, examples, options=options.shards_options, root=manifest_root(options.manifest)
    )


def divide(frames: Frames, options: TrainOptions) -> Material:
    """Decide the side of every picture, and refuse a split that leaks.

    Raises:
        LeakError: one group, patient or picture on two sides.
        TrainingDataError: nothing to train on.
    """
    recipe = options.recipe
    split, reason = [], []
    for example in frames.examples:
        side = example.split or options.train_split
        side = {options.train_split: "train", options.validation_split: "val"}.get(side, side)
        why = None
        if side == "train" and not recipe.restricted_licences and not allows(example.licence or ""):
            side, why = LEFT_OUT, "licence"
        if options.task == "segmentation" and example.mask_style not in recipe.segmentation.styles:
            side, why = LEFT_OUT, "mask_style"
        if options.task == "classification" and example.label not in recipe.classification.classes:
            side, why = LEFT_OUT, "label"
        split.append(side)
        reason.append(why)
    fold: list[int | None] = [None] * len(split)
    if "train" not in split:
        raise TrainingDataError(
            f"no picture is left to train on: none has split {options.train_split!r} and a licence that allows it"
        )
    notes: list[Regrouped] = []
    if options.task == "classification":
        notes = _divide_training(frames, options, split, fold)
    seen = [i for i, side in enumerate(split) if side != LEFT_OUT]
    check_leaks(
        [frames.examples[i] for i in seen],
        [frames.content_sha256[i] for i in seen],
        [split[i] for i in seen],
    )
    return Material(frames, split, fold, reason, notes)


def _divide_training(
    frames: Frames, options: TrainOptions, split: list[str], fold: list[int | None]
) -> list[Regrouped]:
    """Take the calibration pictures out of the training ones and deal the rest into folds; checks both."""
    recipe = options.recipe.classification
    train = [i for i, side in enumerate(split) if side == "train"]
    taken_apart, notes = regroup_large(
        [frames.examples[i] for i in train], max_group_share=recipe.folds.max_group_share
    )
    for i, example in zip(train, taken_apart, strict=True):
        frames.examples[i] = example
    missing = sorted(set(recipe.classes) - {frames.examples[i].label for i in train})
    if missing:
        raise TrainingDataError(
            f"no training picture has the label {missing[0]!r}, one of recipe.classification.classes; "
            "map the manifest's labels with manifest.label_map, or name the classes it has"
        )
    if recipe.calibration_share:
        chosen = calibration_split(
            [frames.examples[i] for i in train], share=recipe.calibration_share, seed=options.recipe.loop.seed
        )
        for place in chosen:
            split[train[place]] = "calibration"
        train = [i for i in train if split[i] == "train"]
    folds = assign_folds([frames.examples[i] for i in train], recipe.folds)
    for i, number in zip(train, folds, strict=True):
        fold[i] = number
    # The original's own folds leak, as its authors made them; they are refused only where the recipe promises better.
    if recipe.folds.rule == "grouped":
        check_leaks(
            [frames.examples[i] for i in train],
            [frames.content_sha256[i] for i in train],
            [f"fold {fold[i]}" for i in train],
        )
    return notes


def split_bytes(material: Material) -> bytes:
    """The content of ``OUTPUT/split.parquet``: one row per picture."""
    frames = material.frames
    rows = [
        {
            "image_id": image_id,
            "id": example.id,
            "patient_key": example.patient_key,
            "group": example.group_key,
            "source": example.source,
            "label": example.label,
            "mask_style": example.mask_style,
            "view": example.view,
            "pediatric": example.pediatric,
            "licence": example.licence,
            "split": split,
            "fold": fold,
            "reason": reason,
        }
        for image_id, example, split, fold, reason in zip(
            frames.image_id, frames.examples, material.split, material.fold, material.reason, strict=True
        )
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SPLIT_SCHEMA), buffer)
    return buffer.getvalue()


def read_material(options: TrainOptions) -> Material:
    """The pictures of a run whose split has been decided."""
    frames = gather(options)
    output = open_storage(options.output, options.output_options)
    with output.fs.open(f"{output.path}/{SPLIT_FILE}", "rb") as file:
        rows = pq.read_table(file).to_pylist()
    decided = {(row["image_id"], row["mask_style"], row["id"]): row for row in rows}
    found = [
        decided.get((image_id, example.mask_style, example.id))
        for image_id, example in zip(frames.image_id, frames.examples, strict=True)
    ]
    if len(decided) != len(found) or None in found:
        raise TrainingDataError(
            "the manifest or the shards have changed since this output was begun; train into a new output"
        )
    kept = [row for row in found if row is not None]
    for i, row in enumerate(kept):  # a group taken apart by patient stays so
        frames.examples[i] = replace(frames.examples[i], group_key=row["group"])
    return Material(
        frames, [row["split"] for row in kept], [row["fold"] for row in kept], [row["reason"] for row in kept]
    )


def labels_of(examples: Sequence[Example], classes: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Index into ``classes`` of each example's label; -1 for another label."""
    place = {name: number for number, name in enumerate(classes)}
    return np.array([place.get(example.label or "", -1) for example in examples], dtype=np.int64)
