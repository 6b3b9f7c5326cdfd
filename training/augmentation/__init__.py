"""Random changes of training pictures: every draw comes from the ``RandomState`` that the caller passes in."""

from training.augmentation.classification_warp import (
    ClassificationWarp,
    ClassificationWarpSettings,
    draw_classification_warp,
    warp_pixels,
    warp_standardised,
)
from training.augmentation.degradation import DegradationSettings, degrade
from training.augmentation.mirror import mirror_features
from training.augmentation.segmentation_warp import (
    SegmentationWarp,
    SegmentationWarpSettings,
    draw_segmentation_warp,
    warp_pair,
)

__all__ = [
    "ClassificationWarp",
    "ClassificationWarpSettings",
    "DegradationSettings",
    "SegmentationWarp",
    "SegmentationWarpSettings",
    "degrade",
    "draw_classification_warp",
    "draw_segmentation_warp",
    "mirror_features",
    "warp_pair",
    "warp_pixels",
    "warp_standardised",
]
