"""Where Module 2 gets its lung masks from: a segmentation output of ``jobs/train.py``, or any bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import safetensors.torch

from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import TrainingDataError
from cxr_ray.nets.segmenter import Segmenter
from cxr_ray.weights import load_bundle

State = dict[str, Any]


def segmenter_states(url: str, options: Mapping[str, Any]) -> dict[str, State]:
    """Mask style -> state of ``nets.segmenter.Segmenter``, of every finished style.

    Raises:
        TrainingDataError: no finished segmenter there.
    """
    place = open_storage(url, options)
    members = f"{place.path}/members"
    if not place.fs.exists(members):
        return {style: dict(state) for style, state in load_bundle(url, **options).segmenters.items()}
    states: dict[str, State] = {}
    for folder in sorted(place.fs.ls(members, detail=False)):
        if place.fs.exists(f"{folder}/done.json"):
            states[folder.rstrip("/").rpartition("/")[2]] = safetensors.torch.load(
                place.fs.cat_file(f"{folder}/weights.safetensors")
            )
    if not states:
        raise TrainingDataError(
            "segmentation=URL holds no finished segmenter; run jobs/train.py task=segmentation to its end first"
        )
    return states


def load_segmenter(url: str, style: str, options: Mapping[str, Any]) -> tuple[Segmenter, str]:
    """The segmenter of one mask style in eval mode, and a hash of its weights."""
    states = segmenter_states(url, options)
    if style not in states:
        raise TrainingDataError(
            f"segmentation=URL has no finished segmenter of mask style {style!r}; it has {', '.join(sorted(states))} "
            "(recipe.classification.mask_style chooses one)"
        )
    segmenter = Segmenter()
    segmenter.load_state_dict(states[style])
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in states[style].items()})
    return segmenter.eval(), hashlib.sha256(data).hexdigest()
