"""Training data: a manifest of labels, masks, patients and groups, joined with the shards of ``jobs/ingest.py``."""

from training.data.frames import Frames, load_frames
from training.data.labels import check_classes
from training.data.manifest import Example, ManifestSettings, manifest_key, manifest_root, read_manifest
from training.data.masks import load_masks

__all__ = [
    "Example",
    "Frames",
    "ManifestSettings",
    "check_classes",
    "load_frames",
    "load_masks",
    "manifest_key",
    "manifest_root",
    "read_manifest",
]
