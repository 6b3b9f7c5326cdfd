"""Stored pixels of one film -> the 300 x 340 equalised frame that everything downstream starts from.

The only preprocessing in the project (REFERENCE_SPEC section 1, steps 2 to 5): min-max over the whole frame in
float64, bilinear resize, float32 cast, rounding to 8 bit, global histogram equalisation. It reproduces the
published flow with 0 differing pixels, so every rounding below is on purpose.

NumPy only: decode workers import this module and should not pay for torch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cxr_ray.errors import ConstantPixels, NonfinitePixels, PixelShape

PREPROCESSING_VERSION = "1"
"""Part of the preprocessing id; changes whenever one output pixel can change."""

ROWS = 300
COLUMNS = 340


def preprocess(pixels_HW: NDArray[np.generic]) -> NDArray[np.uint8]:
    """One 2-D frame of stored values -> equalised uint8 ``[300, 340]``, C-contiguous.

    ``pixels_HW``: at least 2 x 2, any integer, bool or real float dtype, either byte order, any strides. It is
    read only; only the pixels that the resize needs are converted to float64.

    Raises:
        PixelShape: not one 2-D frame of at least 2 x 2 real numbers.
        NonfinitePixels: NaN or infinite values (or a value range beyond float64).
        ConstantPixels: every pixel has the same value.
    """
    pixels_HW = np.asarray(pixels_HW)
    low, high = _value_range(pixels_HW)
    resized_HW = _resize_normalised(pixels_HW, low, high - low)
    return equalise(_to_8_bit(resized_HW))


def resize_bilinear(values_HW: NDArray[np.generic], *, rows: int, columns: int) -> NDArray[np.float64]:
    """Bilinear resize in float64: half-pixel centres, edges clamped, no anti-aliasing (also when shrinking)."""
    return _blend(values_HW, rows, columns, lambda corner: corner.astype(np.float64))


def equalise(image_u8_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Global 256-bin histogram equalisation of an 8-bit image; an image of one grey level comes back as it is."""
    histogram = np.bincount(image_u8_HW.ravel(), minlength=256)
    first = int(np.flatnonzero(histogram)[0])
    rest = image_u8_HW.size - int(histogram[first])
    if rest == 0:
        return image_u8_HW
    # float32 throughout: the original multiplies a float32 count by a float32 scale, and ties depend on it.
    scale = np.float32(255) / np.float32(rest)
    counts_above_first = np.cumsum(histogram)
    counts_above_first -= counts_above_first[first]
    table = np.rint(counts_above_first.clip(min=0).astype(np.float32) * scale)
    return table.clip(0, 255).astype(np.uint8)[image_u8_HW]


def _value_range(pixels_HW: NDArray[np.generic]) -> tuple[float, float]:
    """Smallest and largest pixel value, as float64, after the checks that ``preprocess`` promises."""
    if pixels_HW.ndim != 2 or min(pixels_HW.shape) < 2:
        shape = " x ".join(str(size) for size in pixels_HW.shape) or "a single number"
        raise PixelShape(f"expected one 2-D frame of at least 2 x 2 pixels, found {shape}")
    if pixels_HW.dtype.kind not in "biuf":
        raise PixelShape(f"expected real-valued pixels, found dtype {pixels_HW.dtype}")
    with np.errstate(invalid="ignore"):  # NaN is answered below, not warned about
        low, high = float(pixels_HW.min()), float(pixels_HW.max())
    # NaN survives min and max; an infinity is one of them; a range that overflows float64 has no min-max either.
    if not np.isfinite(high - low):
        raise NonfinitePixels("the pixels hold NaN, infinite or overflowing values")
    if high == low:
        raise ConstantPixels("every pixel of the frame has the same value")
    return low, high


def _resize_normalised(pixels_HW: NDArray[np.generic], low: float, span: float) -> NDArray[np.float64]:
    """Min-max to 0..255 in float64, then the resize; done on the gathered corners, which is the same numbers."""

    def normalise(corner: NDArray[np.generic]) -> NDArray[np.float64]:
        values = corner.astype(np.float64)
        values -= low
        values /= span
        values *= 255.0
        return values

    return _blend(pixels_HW, ROWS, COLUMNS, normalise)


def _blend(
    values_HW: NDArray[np.generic],
    rows: int,
    columns: int,
    convert: Callable[[NDArray[np.generic]], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Bilinear blend of the four corner samples of every output pixel, each passed through ``convert``."""
    upper, lower, down = _source_positions(values_HW.shape[0], rows)
    left, right, across = _source_positions(values_HW.shape[1], columns)
    # np.take, since plain indexing may hand back Fortran order, and a frame is promised in C order.
    top_HW, bottom_HW = values_HW.take(upper, axis=0), values_HW.take(lower, axis=0)
    top = (1.0 - across) * convert(top_HW.take(left, axis=1)) + across * convert(top_HW.take(right, axis=1))
    bottom = (1.0 - across) * convert(bottom_HW.take(left, axis=1))
    bottom += across * convert(bottom_HW.take(right, axis=1))
    return (1.0 - down)[:, None] * top + down[:, None] * bottom


def _source_positions(
    size: int, new_size: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """For each output index: the two source indices and the weight of the second (half-pixel centres, clamped)."""
    position = np.maximum((np.arange(new_size) + 0.5) * (size / new_size) - 0.5, 0.0)
    first = np.minimum(position.astype(np.intp), size - 1)
    return first, np.minimum(first + 1, size - 1), position - first


def _to_8_bit(values_HW: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Cast to float32, absolute value, round half to even, saturate (OpenCV's ``convertScaleAbs``).

    The cast comes first and is required: resized values often lie within 1e-11 of k + 0.5, and float32 turns
    them into exact ties, which then round to even as in the original.
    """
    rounded = np.rint(np.abs(values_HW.astype(np.float32)))
    return np.minimum(rounded, 255).astype(np.uint8)
