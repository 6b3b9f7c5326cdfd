"""Reading the published Keras HDF5 files into plain arrays, keyed by layer and weight (REFERENCE_SPEC section 11)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from cxr_ray.errors import BundleError, MissingExtra

Weights = Mapping[str, Mapping[str, NDArray[np.float32]]]
"""Layer name -> weight name (``kernel``, ``gamma``, ...) -> values."""


def _names(kind: str, *indices: int) -> list[str]:
    return [kind if index == 0 else f"{kind}_{index}" for index in indices]


_SEPARABLE, _NORM = "separable_conv2d", "batch_normalization"
PATH_LAYERS = (
    *_names("multi_head_attention", 1, 0),
    *_names(_NORM, 0),
    *_names(_SEPARABLE, 0, 2, 4),
    *_names(_NORM, 1, 2, 3),
    *_names("conv2d", 0),
    *_names(_SEPARABLE, 1, 3, 5),
    *_names(_NORM, 4, 5),
    *_names(_SEPARABLE, 6, 8, 10),
    *_names(_NORM, 6, 7, 8),
    *_names("conv2d", 1),
    *_names(_SEPARABLE, 7, 9, 11),
    *_names(_NORM, 9, 10),
    *_names(_SEPARABLE, 12, 14, 16),
    *_names(_NORM, 11, 12, 13),
    *_names("conv2d", 2),
    *_names(_NORM, 14),
    *_names(_SEPARABLE, 13, 15, 17),
)
"""Weighted layers of a path in stored order; the ensemble file lists its weights in this order, without layer names."""

LAYER_WEIGHTS = {
    "multi_head_attention": (
        "query_kernel",
        "key_kernel",
        "value_kernel",
        "projection_kernel",
        "projection_bias",
    ),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "separable_conv2d": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "conv2d": ("kernel", "bias"),
}


def require_h5py() -> ModuleType:
    """The h5py module. Raises MissingExtra, saying how to install it."""
    try:
        import h5py
    except ImportError as error:
        raise MissingExtra(
            'importing Keras files needs h5py; install it with: pip install "cxr_ray[keras]"'
        ) from error
    return h5py


def read_model(path: Path) -> Weights:
    """One ``*_weights.h5`` or ``*_all.h5`` file of a single model (a segmenter or a path)."""
    h5py = require_h5py()
    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            return {
                _text(layer): _read_group(root[_text(layer)])
                for layer in root.attrs["layer_names"]
                if len(root[_text(layer)].attrs["weight_names"])
            }
    except (OSError, KeyError) as error:
        raise BundleError(f"{path.name} is no readable Keras weight file ({error})") from error


def read_ensemble(path: Path) -> list[Weights]:
    """The paths of an ``ensemble_*_weights.h5`` file, in order."""
    h5py = require_h5py()
    try:
        with h5py.File(path, "r") as file:
            layers = [_text(name) for name in file.attrs["layer_names"]]
            groups = [file[name] for name in layers if name == "model" or name.startswith("model_")]
            return [
                _name_flat([_array(group[name]) for name in group.attrs["weight_names"]]) for group in groups
            ]
    except (OSError, KeyError) as error:
        raise BundleError(f"{path.name} is no readable Keras ensemble file ({error})") from error


def read_standardisation(path: Path) -> tuple[float, float]:
    """Mean and standard deviation of the training frames, from the published JSON."""
    try:
        numbers = json.loads(path.read_text())
        return float(numbers["mean"]), float(numbers["std"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path.name} should be JSON with mean and std ({type(error).__name__})") from error


def _read_group(group: Mapping[str, object]) -> dict[str, NDArray[np.float32]]:
    """Weights of one layer, keyed on the last part of their path: "conv2d_3/kernel:0" -> "kernel"."""
    names = [_text(name) for name in group.attrs["weight_names"]]  # type: ignore[attr-defined]
    return {name.rpartition("/")[2].partition(":")[0]: _array(group[name]) for name in names}


def _name_flat(arrays: list[NDArray[np.float32]]) -> Weights:
    """Give the flat list of an ensemble's path its layer and weight names."""
    slots = [
        (layer, weight)
        for layer in PATH_LAYERS
        for weight in LAYER_WEIGHTS[layer.rstrip("0123456789").rstrip("_")]
    ]
    if len(arrays) != len(slots):
        raise BundleError(f"a path of the ensemble file holds {len(arrays)} weights, expected {len(slots)}")
    weights: dict[str, dict[str, NDArray[np.float32]]] = {}
    for (layer, weight), array in zip(slots, arrays, strict=True):
        weights.setdefault(layer, {})[weight] = array
    return weights


def _array(dataset: object) -> NDArray[np.float32]:
    return np.asarray(dataset, dtype=np.float32)


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
