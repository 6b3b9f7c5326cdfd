"""Read back what the tasks wrote: settings, out-of-fold scores, lung figures."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cxr_ray.archives.storage import open_storage
from cxr_ray.pipeline.publish import Publisher
from training.binding import read_config
from training.options import TrainOptions, train_options

DATA = "data.json"
"""What the manifest and shards gave: counts, groups taken apart, licences."""


def settings_of(url: str, options: TrainOptions) -> TrainOptions:
    """The options that a training output was made with, pointed at the places of this run.

    Raises:
        TrainingDataError: no training output there.
    """
    stored = read_config(Publisher(open_storage(url, options.output_options)))["settings"]
    if stored["task"] == "classification" and options.manifest.path:  # moved since
        stored["manifest"] |= {"path": options.manifest.path, "root": options.manifest.root}
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


def read_data(url: str, options: TrainOptions) -> dict[str, Any]:
    """``data.json`` of an output: what its manifest and shards gave."""
    content = Publisher(open_storage(url, options.output_options)).read(DATA)
    return {} if content is None else json.loads(content)


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
