"""What a run trains on: the manifest's pictures with their frames, and the side of the split that each is on.

The driver decides the split once, checks it for leaks and writes it to ``OUTPUT/split.parquet``; workers read it from
there, so that a resumed run cannot see another split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import TrainingDataError
from training.data.example import Example
from training.data.frames import Frames, load_frames
from training.data.manifest import manifest_key, manifest_root, read_manifest
from training.options import TrainOptions
from training.sides import LEFT_OUT, manifest_sides, words
from training.split_table import match, read_split, split_table, with_stored_keys
from training.splits.calibration import calibration_split
from training.splits.folds import assign_folds
from training.splits.groups import Regrouped, regroup_large
from training.splits.leaks import check_leaks


@dataclass(frozen=True)
class Material:
    """Pictures of one task; the lists run along with ``frames.examples``."""

    frames: Frames
    split: Sequence[str]
    """``train``, ``calibration``, ``val``, ``left_out``, or the manifest's own word (``test``, ...)."""
    fold: Sequence[int | None]
    """The fold that holds a training picture out (classification)."""
    reason: Sequence[str | None]
    """Why a picture was left out: a key of ``sides.REASONS``."""
    regrouped: Sequence[Regrouped] = ()
    """Groups taken apart by patient for the folds, because one fold would have held a whole source."""
    seen_by_segmenter: Mapping[str, int] = field(default_factory=dict)
    """Side -> pictures that Module 1 was trained on, or near ones (see ``overlap.seen_by_segmenter``)."""

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
        options.shards,
        examples,
        options=options.shards_options,
        root=manifest_root(options.manifest),
        key=manifest_key(options.manifest),
    )


def divide(frames: Frames, options: TrainOptions) -> Material:
    """Decide the side of every picture, and refuse a split that leaks.

    Raises:
        LeakError: one group, patient or picture on two sides.
        TrainingDataError: nothing to train on, a class or a mask style without training pictures.
    """
    split, reason = manifest_sides(frames, options)
    fold: list[int | None] = [None] * len(split)
    # On the manifest's own groups and sides, before any group is taken apart.
    used = [i for i, side in enumerate(split) if side != LEFT_OUT]
    _check(frames, used, [split[i] for i in used])
    notes: list[Regrouped] = []
    if options.task == "classification":
        notes = _divide_training(frames, options, split, fold)
    else:
        _check_styles(frames, options, split)
    return Material(frames, split, fold, reason, notes)


def _divide_training(
    frames: Frames, options: TrainOptions, split: list[str], fold: list[int | None]
) -> list[Regrouped]:
    """Take the calibration pictures out of the training ones and deal the rest into folds; checks both."""
    recipe = options.recipe.classification
    train = [i for i, side in enumerate(split) if side == "train"]
    whole = [frames.examples[i] for i in train]
    missing = sorted(set(recipe.classes) - {example.label for example in whole})
    if missing:
        found = words(example.label for example in frames.examples)
        raise TrainingDataError(
            f"no training picture has the label {missing[0]!r}, one of recipe.classification.classes"
            f"{f' (labels of all pictures: {found})' if found else ''}; map the manifest's labels with "
            "manifest.label_map, or name the classes it has"
        )
    apart, notes = regroup_large(whole, max_group_share=recipe.folds.max_group_share)
    if recipe.calibration_share:
        chosen = calibration_split(
            whole,
            share=recipe.calibration_share,
            seed=options.recipe.loop.seed,
            also=_links(frames, train),
            stay={place for place, one in enumerate(whole) if one is not apart[place]},
        )
        for place in chosen:
            split[train[place]] = "calibration"
        _check(frames, train, [split[i] for i in train])
    rest = [(i, example) for i, example in zip(train, apart, strict=True) if split[i] == "train"]
    places, examples = [i for i, _ in rest], [example for _, example in rest]
    for i, number in zip(places, assign_folds(examples, recipe.folds, _links(frames, places)), strict=True):
        fold[i] = number
    # The original's own folds leak, as its authors made them; they are refused only where the recipe promises better.
    if recipe.folds.rule == "grouped":
        _check(frames, places, [f"fold {fold[i]}" for i in places], examples)
    return notes


def _check_styles(frames: Frames, options: TrainOptions, split: Sequence[str]) -> None:
    train = {one.mask_style for one, side in zip(frames.examples, split, strict=True) if side == "train"}
    missing = [style for style in options.recipe.segmentation.styles if style not in train]
    if missing:
        found = words(example.mask_style for example in frames.examples)
        raise TrainingDataError(
            f"no training picture has a mask of style {missing[0]!r}, one of recipe.segmentation.styles"
            f"{f' (styles of all pictures: {found})' if found else ''}; give "
            f"recipe.segmentation.styles=[{','.join(sorted(str(style) for style in train))}]"
        )


def _links(frames: Frames, places: Sequence[int]) -> list[list[str | None]]:
    return [[values[i] for i in places] for values in frames.links]


def _check(
    frames: Frames, places: Sequence[int], sides: Sequence[str], examples: Sequence[Example] | None = None
) -> None:
    check_leaks(
        examples or [frames.examples[i] for i in places],
        [frames.content_sha256[i] for i in places],
        sides,
        [frames.image_id[i] for i in places],
    )


def split_bytes(material: Material) -> bytes:
    """The content of ``OUTPUT/split.parquet``: one row per picture."""
    return split_table(material.frames, material.split, material.fold, material.reason)


def read_material(options: TrainOptions) -> Material:
    """The pictures of a run whose split has been decided. Raises TrainingDataError where they have changed since."""
    frames = gather(options)
    rows = match(read_split(open_storage(options.output, options.output_options)), frames)
    for i, row in enumerate(rows):
        frames.examples[i] = with_stored_keys(frames.examples[i], row)
    return Material(
        frames, [row["split"] for row in rows], [row["fold"] for row in rows], [row["reason"] for row in rows]
    )


def labels_of(examples: Sequence[Example], classes: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Index into ``classes`` of each example's label; -1 for another label."""
    place = {name: number for number, name in enumerate(classes)}
    return np.array([place.get(example.label or "", -1) for example in examples], dtype=np.int64)
