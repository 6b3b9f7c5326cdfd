"""What a bundle was trained on: rows, licences, and a hash that names the data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cxr_ray.archives.storage import open_storage
from cxr_ray.weights import load_bundle
from training.binding import CONFIG
from training.data.example import Example
from training.data.licences import licence_basis
from training.material import Material
from training.options import Recipe, TrainOptions
from training.outputs import settings_of
from training.split_table import read_split


@dataclass(frozen=True)
class LungRun:
    """The training of Module 1."""

    recipe: Recipe
    """What it was run with."""
    pairs: Sequence[Mapping[str, Any]]
    """The rows of its ``split.parquet``."""


def lung_run(options: TrainOptions) -> LungRun | None:
    """How the segmenters at ``segmentation=`` were trained; None where they are another bundle's."""
    place = open_storage(str(options.segmentation), options.output_options)
    if not place.fs.exists(f"{place.path}/{CONFIG}"):
        return None
    return LungRun(settings_of(str(options.segmentation), options).recipe, read_split(place))


def licences(material: Material, lungs: LungRun | None, borrowed: str) -> str:
    """What the weights of both modules rest on, a sentence for each.

    Args:
        borrowed: of the bundle that lent its segmenters, where ``lungs`` is None.
    """
    rows = [
        {"source": one.source, "licence": one.licence, "split": side, "reason": reason}
        for one, side, reason in zip(material.frames.examples, material.split, material.reason, strict=True)
    ]
    paths = f"Module 2 (class): {_basis(rows)}"
    return f"{paths} Module 1 (lungs): {borrowed if lungs is None else _basis(lungs.pairs)}"


def _basis(rows: Sequence[Mapping[str, Any]]) -> str:
    def examples(chosen: Iterable[Mapping[str, Any]]) -> list[Example]:
        return [Example(file="", id="row", source=row["source"], licence=row["licence"]) for row in chosen]

    used = [row for row in rows if row["split"] in ("train", "calibration")]
    refused = [row for row in rows if row["reason"] == "licence"]
    return str(licence_basis(examples(used), examples(refused))["sentence"])


def borrowed_basis(options: TrainOptions) -> str:
    """What the licence of segmenters that were not trained here rests on."""
    lender = load_bundle(str(options.segmentation), **options.output_options)
    return f"taken from the bundle {lender.meta.name}: {lender.meta.licence_basis}"


def trained_on(material: Material) -> str:
    """One line for people."""
    examples = [
        example
        for example, side in zip(material.frames.examples, material.split, strict=True)
        if side == "train"
    ]
    sources = sorted({example.source for example in examples if example.source})
    return f"{len(examples):,} pictures from {len(sources)} sources ({', '.join(sources)})"


def fingerprint(material: Material, lungs: LungRun | None) -> str:
    """SHA-256 over file, label and side of every picture that took part, in either module: names the training data."""
    frames = material.frames
    lines = [
        f"{sha or image_id}|{example.label}|{side}"
        for sha, image_id, example, side in zip(
            frames.content_sha256, frames.image_id, frames.examples, material.split, strict=True
        )
        if side in ("train", "calibration")
    ]
    lines += [
        f"lungs|{row.get('content_sha256') or row['image_id']}|{row['mask_style']}"
        for row in (() if lungs is None else lungs.pairs)
        if row["split"] == "train"
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
