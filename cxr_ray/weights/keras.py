"""Import of the published CXR-Net weight files (Keras 2.2.4-tf HDF5) as a bundle (REFERENCE_SPEC section 11).

Layers are keyed on the *outer* group name; the inner path carries run suffixes that mean nothing. h5py is an optional
extra and imported only when used.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxr_ray.errors import BundleError
from cxr_ray.weights.bundle import Bundle
from cxr_ray.weights.keras_files import Weights, read_ensemble, read_model, read_standardisation, require_h5py
from cxr_ray.weights.meta import BundleMeta
from cxr_ray.weights.storage import save_bundle

SEGMENTER_STAMPS = {"v7": "2020-10-16_21_26", "jms": "2020-10-02_13_50"}
"""Mask style -> time stamp in the file name. The paths were trained with v7 masks."""
PATHS = 6
SEGMENTER_BLOCKS = 6
STANDARDISATION_FILE = "standardization_parameters_V7.json"
LICENCE = (
    "published with CXR-Net by its authors; imported by the user from the original files, "
    "under the terms stated there"
)
CARD = """# CXR-Net, published weights

Imported from the authors' Keras files. Two segmenters (mask styles v7 and jms) and six paths, trained with v7 masks.
Research software, not a medical device. Scores are uncalibrated; no operating threshold is set.
"""


def import_keras(
    keras_dir: str | os.PathLike[str], bundle_dir: str | os.PathLike[str], **storage_options: Any
) -> Bundle:
    """Read the published files in ``keras_dir``, write a bundle to ``bundle_dir`` (path or URL) and return it.

    Needed: both segmenter files, ``standardization_parameters_V7.json``, and either the six ``*_M0_*`` to ``*_M5_*``
    path files or the one ``ensemble_*`` file.

    Raises:
        BundleError: files missing or not of this network, or ``bundle_dir`` holds a bundle already.
        MissingExtra: h5py is not installed.
    """
    require_h5py()
    folder = Path(keras_dir)
    if not folder.is_dir():
        raise BundleError(f"{folder} is no directory; give the one with the published Keras weight files")
    segmenters = {
        style: segmenter_state(read_model(_find(folder, f"model_16F_*{stamp}_weights.h5")))
        for style, stamp in SEGMENTER_STAMPS.items()
    }
    mean, std = read_standardisation(folder / STANDARDISATION_FILE)
    bundle = Bundle.build(
        segmenters=segmenters,
        paths=[path_state(weights) for weights in _read_paths(folder)],
        meta=BundleMeta(
            name="cxr-net published",
            trained=True,
            standardisation_mean=mean,
            standardisation_std=std,
            mask_style="v7",
            mask_styles=tuple(sorted(segmenters)),
            licence_basis=LICENCE,
        ),
        card=CARD,
    )
    save_bundle(bundle, bundle_dir, **storage_options)
    return bundle


def segmenter_state(weights: Weights) -> dict[str, Tensor]:
    """Keras layers of Module 1 -> state of ``Segmenter``."""
    state: dict[str, Tensor] = {}
    for block in range(SEGMENTER_BLOCKS):
        # Block 0 has no pre-activation norm: its branches take 0, 1, 2 and its shortcut 3; block i starts at 5i - 1.
        pre = None if block == 0 else 5 * block - 1
        state.update(_block(weights, f"blocks.{block}", block, pre=pre, first_norm=5 * block))
    state.update(_conv(weights, "head", SEGMENTER_BLOCKS))
    return state


def path_state(weights: Weights) -> dict[str, Tensor]:
    """Keras layers of one path -> state of ``Path``."""
    state: dict[str, Tensor] = {}
    for axis, index in (("rows", 0), ("columns", 1)):
        layer = _layer(weights, "multi_head_attention", index)
        for name in ("query", "key", "value", "projection"):
            kernel = layer[f"{name}_kernel"]
            state[f"attention.{axis}.{name}"] = _tensor(kernel.reshape(kernel.shape[0], -1))
        state[f"attention.{axis}.bias"] = _tensor(layer["projection_bias"])
    state.update(_norm(weights, "norm", 0))
    state.update(_block(weights, "block_a", 0, pre=None, first_norm=1))
    state.update(_block(weights, "block_b", 1, pre=5, first_norm=6))
    state.update(_block(weights, "block_c", 2, pre=10, first_norm=11))
    return state


def _block(
    weights: Weights, prefix: str, index: int, *, pre: int | None, first_norm: int
) -> dict[str, Tensor]:
    """Residual block ``index``: separables 6 index + 2 q and + 1, norms from ``first_norm`` on, shortcut last."""
    state = {} if pre is None else _norm(weights, f"{prefix}.pre_norm", pre)
    for q in range(3):
        branch = f"{prefix}.branches.{q}"
        state.update(_separable(weights, f"{branch}.first", 6 * index + 2 * q))
        state.update(_norm(weights, f"{branch}.norm", first_norm + q))
        state.update(_separable(weights, f"{branch}.second", 6 * index + 2 * q + 1))
    state.update(_conv(weights, f"{prefix}.shortcut", index))
    state.update(_norm(weights, f"{prefix}.shortcut_norm", first_norm + 3))
    return state


def _separable(weights: Weights, prefix: str, index: int) -> dict[str, Tensor]:
    layer = _layer(weights, "separable_conv2d", index)
    return {
        f"{prefix}.depthwise.weight": _tensor(layer["depthwise_kernel"].transpose(2, 3, 0, 1)),
        f"{prefix}.pointwise.weight": _tensor(layer["pointwise_kernel"].transpose(3, 2, 0, 1)),
        f"{prefix}.pointwise.bias": _tensor(layer["bias"]),
    }


def _conv(weights: Weights, prefix: str, index: int) -> dict[str, Tensor]:
    layer = _layer(weights, "conv2d", index)
    return {
        f"{prefix}.weight": _tensor(layer["kernel"].transpose(3, 2, 0, 1)),
        f"{prefix}.bias": _tensor(layer["bias"]),
    }


def _norm(weights: Weights, prefix: str, index: int) -> dict[str, Tensor]:
    layer = _layer(weights, "batch_normalization", index)
    return {
        f"{prefix}.weight": _tensor(layer["gamma"]),
        f"{prefix}.bias": _tensor(layer["beta"]),
        f"{prefix}.running_mean": _tensor(layer["moving_mean"]),
        f"{prefix}.running_var": _tensor(layer["moving_variance"]),
    }


def _layer(weights: Weights, kind: str, index: int) -> dict[str, NDArray[np.float32]]:
    """Layer ``index`` of its kind; Keras drops the suffix of the first one."""
    name = kind if index == 0 else f"{kind}_{index}"
    if name not in weights:
        raise BundleError(f"the Keras file has no layer {name}; it is not one of the published CXR-Net files")
    return dict(weights[name])


def _tensor(values: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _read_paths(folder: Path) -> list[Weights]:
    """The six paths, from their own files or, failing those, from the ensemble file."""
    if any(folder.glob("model_17F_*_M0_*_weights.h5")):
        return [read_model(_find(folder, f"model_17F_*_M{index}_*_weights.h5")) for index in range(PATHS)]
    return read_ensemble(_find(folder, "ensemble_*_weights.h5"))


def _find(folder: Path, pattern: str) -> Path:
    """The one file of that pattern."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise BundleError(f"expected one file {pattern} in {folder}, found {len(found)}")
    return found[0]
