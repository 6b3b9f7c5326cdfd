"""The task of each member, from the run's material: lung pairs of a mask style, or the folds' shared path inputs."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import TrainingDataError
from cxr_ray.nets.ensemble import Ensemble
from cxr_ray.nets.folding import fold_blocks
from cxr_ray.nets.network import Network
from training.classification import Labelled, PathTask
from training.data.manifest import manifest_root
from training.data.masks import load_masks
from training.features import FeatureStore
from training.material import Material, labels_of
from training.options import TrainOptions
from training.parallel.processes import Processes
from training.segmentation import Pairs, SegmentationTask
from training.segmenters import load_segmenter


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


def classification_task(
    name: str, options: TrainOptions, material: Material, processes: Processes
) -> PathTask:
    """The task of one fold, over the feature store that all folds share (filled here if need be)."""
    recipe = options.recipe.classification
    number = int(name.removeprefix("fold"))
    chosen = material.where("train")
    part = material.frames.take([int(i) for i in chosen])
    ids = [example.id for example in part.examples]
    store = feature_store(options, part.pixels_NHW, ids)
    if not recipe.fresh_copies:
        # Every process begins at another place, so that folds and workers side by side share the work.
        place = (number * processes.size + processes.rank) / (recipe.folds.count * processes.size)
        store.fill(start=int(place * store.chunks))
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
    return FeatureStore(
        work_folder(options),
        network,
        pixels_NHW,
        picture_ids,
        recipe.copies,
        fingerprint=f"{fingerprint}|{mean}|{std}",
    )


def work_folder(options: TrainOptions) -> Path:
    """Local folder of the path inputs; the default one belongs to this output alone."""
    if options.execution.work_dir is not None:
        return Path(options.execution.work_dir)
    own = hashlib.sha256(open_storage(options.output, options.output_options).url.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / "cxr_ray_features" / own
