"""Trained paths and segmenters into one bundle, with calibration, thresholds, metrics and what it was trained on.

Calibration and thresholds belong to the ensemble, so they are fitted on ensemble logits of pictures that no path has
seen (the calibration split), through the very scorer that screens archives.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch

from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import TrainingDataError
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.weights import Bundle, BundleMeta, load_bundle, save_bundle
from cxr_ray.weights.files import META_FILE
from training.binding import SEGMENTER, bind, read_config
from training.bundle_metrics import Evidence, metrics
from training.card import card_text
from training.ensemble_calibration import fit_calibration
from training.material import Material, read_material
from training.members import DONE, WEIGHTS
from training.options import TrainOptions
from training.outputs import read_data, read_lung_dice, read_out_of_fold, settings_of
from training.overlap import seen_by_segmenter
from training.provenance import LungRun, borrowed_basis, fingerprint, licences, lung_run, trained_on
from training.segmenters import load_segmenter, segmenter_states

BUNDLE = "bundle"
CALIBRATION_TABLE = "calibration.parquet"
OUT_OF_FOLD_TABLE = "out_of_fold.parquet"


def assemble(options: TrainOptions, output: Publisher) -> dict[str, Any]:
    """Make ``OUTPUT/bundle``, the out-of-fold table and the calibration table; returns facts for the last line.

    Raises:
        TrainingDataError: a member is not finished, an output is no training output, or the segmenter given is not
            the one that the paths were trained with.
        LeakError: a segmenter was trained on pictures that this data set keeps for judging.
    """
    assert options.classification is not None
    place = f"{options.output}/{BUNDLE}"
    if output.read(f"{BUNDLE}/{META_FILE}") is not None:
        done = load_bundle(place, **options.output_options)
        return facts_of(done, output)
    trained = settings_of(options.classification, options)
    if options.shards:  # moved since
        trained.shards = options.shards
    check_segmenter(options, trained)
    material = read_material(trained)
    seen = seen_by_segmenter(replace(trained, segmentation=options.segmentation), material)
    material = replace(material, seen_by_segmenter=seen)
    lungs = lung_run(options)
    bare = build_bundle(options, trained, material, lungs)
    out_of_fold = read_out_of_fold(options.classification, trained, options)
    calibration, fitted = fit_calibration(bare, material, trained)
    evidence = Evidence(out_of_fold, calibration, read_lung_dice(options))
    meta = replace(bare.meta, metrics=metrics(evidence, trained), **fitted)
    bundle = Bundle.build(
        segmenters=bare.segmenters,
        paths=bare.paths,
        meta=meta,
        card=card_text(
            meta,
            material,
            out_of_fold,
            recipe=trained.recipe,
            data=read_data(options.classification, options),
            lungs=lungs,
        ),
    )
    put_table(output, OUT_OF_FOLD_TABLE, out_of_fold)
    if calibration is not None:
        put_table(output, CALIBRATION_TABLE, calibration)
    bind(options, output, write=True)
    save_bundle(bundle, place, **options.output_options)
    return facts_of(bundle, output)


def facts_of(bundle: Bundle, output: Publisher) -> dict[str, Any]:
    """What the job's last line says."""
    return {
        "bundle": f"{output.storage.url}/{BUNDLE}",
        "metrics": bundle.meta.metrics,
        "tensors": dict(bundle.tensor_sha256),
    }


def check_segmenter(options: TrainOptions, trained: TrainOptions) -> None:
    """Raise TrainingDataError unless the masks of scoring are those that the paths were trained with."""
    stored = read_config(Publisher(open_storage(str(options.classification), options.output_options)))
    style = trained.recipe.classification.mask_style
    given = load_segmenter(str(options.segmentation), style, options.output_options)[1]
    if stored.get(SEGMENTER) != given:
        raise TrainingDataError(
            f"the {style} segmenter at segmentation=URL is not the one that these paths were trained with; give the "
            "segmentation that the classification was given"
        )


def build_bundle(
    options: TrainOptions, trained: TrainOptions, material: Material, lungs: LungRun | None
) -> Bundle:
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
    if lungs is not None and set(lungs.recipe.segmentation.styles) - set(segmenters):
        missing = sorted(set(lungs.recipe.segmentation.styles) - set(segmenters))
        raise TrainingDataError(
            f"the segmenter of style {', '.join(missing)} is not finished; run jobs/train.py task=segmentation "
            "to its end"
        )
    borrowed = borrowed_basis(options) if lungs is None else ""
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
        training_data_fingerprint=fingerprint(material, lungs),
        licence_basis=licences(material, lungs, borrowed),
    )
    return Bundle.build(segmenters=segmenters, paths=paths, meta=meta)


def put_table(output: Publisher, name: str, table: pa.Table) -> None:
    """Write a Parquet file below OUTPUT, whole or not at all."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    output.replace(name, buffer.getvalue())
