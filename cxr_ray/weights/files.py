"""A bundle as the bytes of its four files, and back with every check.

Layout (DESIGN section 6): ``segmenter.safetensors`` with tensors named ``<mask style>.<name>``,
``paths.safetensors`` with ``path<i>.<name>``, ``bundle.json`` and ``model_card.md``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from cxr_ray.errors import BundleError
from cxr_ray.weights.bundle import PATHS_FILE, SEGMENTER_FILE, Bundle, dtype_name, tensor_files
from cxr_ray.weights.meta import BundleMeta, check_meta

FORMAT_VERSION = 1
META_FILE = "bundle.json"
CARD_FILE = "model_card.md"
TENSOR_FILES = (SEGMENTER_FILE, PATHS_FILE)
FILES = (*TENSOR_FILES, CARD_FILE, META_FILE)
"""All files in writing order: ``bundle.json`` comes last, so that a bundle with it is whole."""

# Bundles made before an entry existed lack it; ``calibration_prevalence`` moved into ``calibration``.
_NEWER_ENTRIES = {"default_threshold", "trained_on"}
_FORMER_ENTRIES = {"calibration_prevalence"}


def pack(bundle: Bundle) -> dict[str, bytes]:
    """File name -> content of the four files; the same bundle always gives the same bytes."""
    files = tensor_files(bundle.segmenters, bundle.paths)
    head = {
        "format_version": FORMAT_VERSION,
        **dataclasses.asdict(bundle.meta),
        "tensors": {
            name: {"sha256": _sha256(files[name]), "tensors": _table(safetensors.torch.load(files[name]))}
            for name in TENSOR_FILES
        },
    }
    files[CARD_FILE] = bundle.card.encode()
    files[META_FILE] = (json.dumps(head, indent=2, ensure_ascii=False) + "\n").encode()
    return {name: files[name] for name in FILES}


def unpack(files: Mapping[str, bytes]) -> Bundle:
    """The reverse of ``pack``. Checks hashes, names, shapes and dtypes; raises BundleError, saying what is wrong."""
    for name in (META_FILE, *TENSOR_FILES):
        if name not in files:
            raise BundleError(f"the bundle has no {name}; a bundle is a directory with {', '.join(FILES)}")
    meta, tables = _read_head(files[META_FILE])
    tensors = {name: _read_tensors(name, files[name], tables) for name in TENSOR_FILES}
    segmenters = _split(tensors[SEGMENTER_FILE], SEGMENTER_FILE)
    by_path = _split(tensors[PATHS_FILE], PATHS_FILE)
    expected = [f"path{index}" for index in range(meta.paths)]
    if sorted(by_path) != sorted(expected):
        raise BundleError(f"{PATHS_FILE} holds {sorted(by_path)}, but {META_FILE} names {meta.paths} paths")
    bundle = Bundle.build(
        segmenters=segmenters,
        paths=[by_path[name] for name in expected],
        meta=meta,
        card=files.get(CARD_FILE, b"").decode("utf-8", "replace"),
    )
    # The recorded hashes stay the bundle's name, even if another safetensors version would write other bytes.
    return dataclasses.replace(bundle, tensor_sha256={name: _sha256(files[name]) for name in TENSOR_FILES})


def _read_head(data: bytes) -> tuple[BundleMeta, dict[str, Any]]:
    """``bundle.json`` -> its facts and its tensor tables."""
    try:
        head = json.loads(data)
    except ValueError as error:
        raise BundleError(f"{META_FILE} is no valid JSON ({error}); fetch the bundle again") from error
    version = head.pop("format_version", None) if isinstance(head, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(f"{META_FILE} has format version {version}, this package reads {FORMAT_VERSION}")
    tables = head.pop("tensors", None)
    fields = dataclasses.fields(BundleMeta)
    known = {f.name for f in fields}
    for name in _FORMER_ENTRIES:
        head.pop(name, None)
    missing = sorted(known - head.keys() - _NEWER_ENTRIES)
    surplus = sorted(head.keys() - known)
    if missing or surplus or not isinstance(tables, dict):
        missing += [] if isinstance(tables, dict) else ["tensors"]
        raise BundleError(f"{META_FILE}: missing entries {missing}, unknown entries {surplus}")
    for name in ("classes", "mask_styles"):
        head[name] = tuple(head[name]) if isinstance(head[name], list) else head[name]
    meta = BundleMeta(**head)
    check_meta(meta)
    return meta, tables


def _read_tensors(name: str, data: bytes, tables: dict[str, Any]) -> dict[str, Tensor]:
    """One tensor file, held against what ``bundle.json`` records of it."""
    recorded = tables.get(name)
    if not isinstance(recorded, dict):
        raise BundleError(f"{META_FILE} does not describe {name}; fetch the bundle again")
    if _sha256(data) != recorded.get("sha256"):
        raise BundleError(
            f"{name} does not have the SHA-256 that {META_FILE} records: damaged or exchanged; "
            "fetch the bundle again"
        )
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise BundleError(
            f"{name} is no readable safetensors file ({error}); fetch the bundle again"
        ) from error
    if _table(tensors) != recorded.get("tensors"):
        raise BundleError(f"names, shapes or dtypes in {name} are not those that {META_FILE} records")
    return tensors


def _split(tensors: Mapping[str, Tensor], file: str) -> dict[str, dict[str, Tensor]]:
    """{"v7.head.bias": t} -> {"v7": {"head.bias": t}}."""
    states: dict[str, dict[str, Tensor]] = {}
    for joined, tensor in tensors.items():
        prefix, dot, name = joined.partition(".")
        if not dot:
            raise BundleError(f"{file}: tensor {joined!r} has no prefix that names its segmenter or path")
        states.setdefault(prefix, {})[name] = tensor
    return states


def _table(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    return {
        name: {"shape": list(tensors[name].shape), "dtype": dtype_name(tensors[name])}
        for name in sorted(tensors)
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
