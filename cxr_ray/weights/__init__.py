"""Weights bundles: load, save, make from a seed, import from the published Keras files (DESIGN section 6)."""

from __future__ import annotations

from cxr_ray.weights.bundle import Bundle, BundleMeta
from cxr_ray.weights.keras import import_keras
from cxr_ray.weights.seeded import seeded_bundle
from cxr_ray.weights.storage import bundle_from_bytes, bundle_to_bytes, load_bundle, save_bundle

__all__ = [
    "Bundle",
    "BundleMeta",
    "bundle_from_bytes",
    "bundle_to_bytes",
    "import_keras",
    "load_bundle",
    "save_bundle",
    "seeded_bundle",
]
