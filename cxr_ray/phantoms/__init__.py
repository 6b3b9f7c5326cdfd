"""Synthetic chest phantoms for tests, docs and the first run. No patient data, no meaning in their scores."""

from cxr_ray.phantoms.drawing import LABEL, MAXIMUM, Phantom, draw_phantom, phantom
from cxr_ray.phantoms.large_film import five_megapixel_jpeg
from cxr_ray.phantoms.sample_archive import SYNTHETIC_NOTE, write_sample_archive

__all__ = [
    "LABEL",
    "MAXIMUM",
    "SYNTHETIC_NOTE",
    "Phantom",
    "draw_phantom",
    "five_megapixel_jpeg",
    "phantom",
    "write_sample_archive",
]
