"""What a bundle was trained on: rows, licences, and a hash that names the data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cxr_ray.archives.storage import open_storage
from cxr_ray.weights import load_bundle
from training.binding import CONFIG
from training.data.frames import Frames
from training.data.manifest import Example
from training.material import Material, read_material
from training.options import TrainOptions
from training.outputs import settings_of


@dataclass(frozen=True)
class LungRun:
    """The training of Module 1."""

    options: TrainOptions
    """What it was run with."""
    material: Material
    """The pairs."""


def lung_run(options: TrainOptions) -> LungRun | None:
    """How the segmenters at ``segmentation=`` were trained; None where they are another bundle's."""
    place = open_storage(str(options.segmentation), options.output_options)
    if not place.fs.exists(f"{place.path}/{CONFIG}"):
        return None
    trained = settings_of(str(options.segmentation), options)
    return LungRun(trained, read_material(trained))


def trained_rows(materials: Sequence[Material]) -> tuple[list[Example], list[Example]]:
    """Manifest rows behind the weights, of both modules, and those left out for their licence."""
    used, left_out = [], []
    for one in materials:
        for example, side, reason in zip(one.frames.examples, one.split, one.reason, strict=True):
            if side in ("train", "calibration"):
                used.append(example)
            elif reason == "licence":
                left_out.append(example)
    return used, left_out


def borrowed_basis(options: TrainOptions) -> str:
    """What the licence of segmenters that were not trained here rests on."""
    lender = load_bundle(str(options.segmentation), **options.output_options)
    return f" Segmenters taken from the bundle {lender.meta.name}: {lender.meta.licence_basis}"


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
