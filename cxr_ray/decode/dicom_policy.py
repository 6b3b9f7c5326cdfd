"""Decode policies for DICOM (DESIGN section 1): from stored values to the pixels that are scored."""

from __future__ import annotations

import cv2
import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut

from cxr_ray.decode.radiograph import reversed_values
from cxr_ray.errors import ConstantPixels, NonfinitePixels, UnsupportedEncoding


def apply_policy(stored: np.ndarray, ds: Dataset, policy: str) -> tuple[np.ndarray, list[str]]:
    """Grey pixels under a policy.

    ``corrected``: MONOCHROME1 is reversed; padding (PixelPaddingValue, PixelPaddingRangeLimit) takes the
    smallest value of the other pixels, so that it does not set the range. ``windowed``: modality LUT or
    rescale, VOI LUT or window, then MONOCHROME1 reversed. ``published``: untouched; colour is refused.

    Args:
        stored: ``[H, W]`` or ``[H, W, 3]`` RGB, as ``stored_pixels`` returns them.

    Returns:
        ``[H, W]`` pixels (``windowed``: often float64) and flags.

    Raises:
        UnsupportedEncoding: colour under ``published``, or colour that OpenCV cannot turn to grey.
        ConstantPixels: nothing but padding.
        NonfinitePixels: NaN or infinite values.
    """
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        raise NonfinitePixels("the pixel data holds NaN or infinite values")
    photometric = str(ds.PhotometricInterpretation)
    if policy == "published":
        if stored.ndim != 2:
            raise UnsupportedEncoding("colour pixels have no meaning under the published decode policy")
        return stored, []
    if photometric == "PALETTE COLOR":
        stored = apply_color_lut(stored, ds)
    if stored.ndim == 3:
        return _grey(stored), ["colour"]
    flags, padding_HW = [], None
    if policy == "windowed":
        pixels_HW = apply_voi_lut(apply_modality_lut(stored, ds), ds)
    else:
        pixels_HW, padding_HW = stored, _padding(stored, ds)
    if photometric == "MONOCHROME1":
        pixels_HW = reversed_values(pixels_HW)
        flags.append("monochrome1_inverted")
    if padding_HW is not None:
        if padding_HW.all():
            raise ConstantPixels("every pixel is padding")
        pixels_HW = np.where(padding_HW, pixels_HW[~padding_HW].min(), pixels_HW)
        flags.append("padding_excluded")
    return pixels_HW, flags


def _grey(pixels_HW3: np.ndarray) -> np.ndarray:
    """Grey of RGB, with OpenCV's weights, as for rasters."""
    if pixels_HW3.dtype not in (np.uint8, np.uint16):
        raise UnsupportedEncoding(f"colour pixels of type {pixels_HW3.dtype}; uint8 and uint16 are read")
    return cv2.cvtColor(np.ascontiguousarray(pixels_HW3[..., :3]), cv2.COLOR_RGB2GRAY)


def _padding(stored_HW: np.ndarray, ds: Dataset) -> np.ndarray | None:
    """Boolean ``[H, W]`` of padding pixels, or None if there are none."""
    value = _padding_value(ds, "PixelPaddingValue")
    if value is None or stored_HW.dtype.kind == "f":
        return None
    limit = _padding_value(ds, "PixelPaddingRangeLimit")
    low, high = sorted((value, value if limit is None else limit))
    padding_HW = (stored_HW >= low) & (stored_HW <= high)
    return padding_HW if padding_HW.any() else None


def _padding_value(ds: Dataset, keyword: str) -> int | None:
    """The attribute as a stored value: writers often give it the VR of the other signedness."""
    value = ds.get(keyword)
    if not isinstance(value, int):
        return None
    bits = int(ds.BitsAllocated)
    value %= 2**bits
    is_signed = int(ds.get("PixelRepresentation", 0)) == 1
    return value - 2**bits if is_signed and value >= 2 ** (bits - 1) else value
