"""A weights bundle in memory: tensors of both modules, what they mean, and the hashes that name them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor

from cxr_ray.errors import BundleError
from cxr_ray.nets.path import Path
from cxr_ray.nets.segmenter import Segmenter
from cxr_ray.weights.meta import BundleMeta, check_meta

SEGMENTER_FILE = "segmenter.safetensors"
PATHS_FILE = "paths.safetensors"

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Bundle:
    """Weights and their meaning. Make one with ``Bundle.build``, which checks that everything fits together."""

    segmenters: Mapping[str, State]
    """Module 1 per mask style: the state of ``nets.segmenter.Segmenter``."""
    paths: tuple[State, ...]
    """The state of ``nets.path.Path``, once per path."""
    meta: BundleMeta
    tensor_sha256: Mapping[str, str]
    """File name -> SHA-256 of each tensor file: what identifies the weights."""
    card: str = ""
    """The model card, Markdown."""

    @classmethod
    def build(
        cls, *, segmenters: Mapping[str, State], paths: Sequence[State], meta: BundleMeta, card: str = ""
    ) -> Bundle:
        """Check names, shapes and dtypes against the network and compute the hashes. Raises BundleError."""
        check_meta(meta)
        if sorted(segmenters) != sorted(meta.mask_styles):
            raise BundleError(
                f"the bundle names the mask styles {sorted(meta.mask_styles)} but holds {sorted(segmenters)}"
            )
        if len(paths) != meta.paths:
            raise BundleError(f"the bundle names {meta.paths} paths but holds {len(paths)}")
        for style, state in segmenters.items():
            check_state(state, segmenter_shapes(), f"segmenter {style}")
        for index, state in enumerate(paths):
            check_state(state, path_shapes(len(meta.classes)), f"path {index}")
        files = tensor_files(segmenters, paths)
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        return cls(dict(segmenters), tuple(paths), meta, hashes, card)


def segmenter_shapes() -> dict[str, torch.Size]:
    """Tensor names and shapes of Module 1."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in Segmenter().state_dict().items()}


def path_shapes(classes: int) -> dict[str, torch.Size]:
    """Tensor names and shapes of one path with that many classes."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in Path(classes=classes).state_dict().items()}


def check_state(state: State, expected: Mapping[str, torch.Size], what: str) -> None:
    """Raise BundleError unless ``state`` has exactly these names and shapes, all finite float32."""
    missing, surplus = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or surplus:
        raise BundleError(
            f"{what}: missing tensors {missing[:3]}, unknown tensors {surplus[:3]}; "
            "the weights belong to another network"
        )
    for name, shape in expected.items():
        tensor = state[name]
        if tensor.shape != shape or tensor.dtype != torch.float32:
            found = f"{dtype_name(tensor)} {list(tensor.shape)}"
            raise BundleError(f"{what}: {name} should be float32 {list(shape)}, found {found}")
        if not bool(torch.isfinite(tensor).all()):
            raise BundleError(f"{what}: {name} holds NaN or infinite numbers; train or fetch it again")


def tensor_files(segmenters: Mapping[str, State], paths: Sequence[State]) -> dict[str, bytes]:
    """File name -> bytes of the two safetensors files; the same tensors always give the same bytes."""
    by_path = {f"path{index}": state for index, state in enumerate(paths)}
    return {
        SEGMENTER_FILE: safetensors.torch.save(_join(segmenters)),
        PATHS_FILE: safetensors.torch.save(_join(by_path)),
    }


def dtype_name(tensor: Tensor) -> str:
    """``float32`` and so on."""
    return str(tensor.dtype).removeprefix("torch.")


def _join(states: Mapping[str, State]) -> dict[str, Tensor]:
    """{"v7": {"head.bias": t}} -> {"v7.head.bias": t}. Copies: safetensors refuses tensors that share memory."""
    return {
        f"{prefix}.{name}": tensor.detach().cpu().contiguous().clone()
        for prefix, state in states.items()
        for name, tensor in state.items()
    }
