"""8-bit evidence maps and lung masks as the small PNGs of the score table (DESIGN section 4).

Encoding serves the pipeline, decoding serves ``results``; both live here so that they cannot drift apart.
NumPy and OpenCV only. For one version of OpenCV the bytes are a pure function of the values.

On real films both PNGs together take 0.4 ms to write; the heat map has 2.0 KB (median), the mask 1.4 KB.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_ray.errors import OutputError

EVIDENCE_SHAPE: Final = (75, 85)
MASK_SHAPE: Final = (300, 340)

# Chosen with `bench/map_encoding.py`. The evidence map is smooth, so the Paeth predictor helps, and a search for longer
# matches saves next to nothing; packed mask bits are not smooth, so no filter. A mask takes half the time at level 1
# with runs only, but 300 bytes more, and a row may have 4.5 KB in all.
_HEAT_PNG: Final = (
    (cv2.IMWRITE_PNG_COMPRESSION, 3),
    (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_PAETH),
)
_MASK_PNG: Final = (
    (cv2.IMWRITE_PNG_BILEVEL, 1),
    (cv2.IMWRITE_PNG_COMPRESSION, 6),
    (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT),
    (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
)


def encode_heat_map(levels_HW: NDArray[np.uint8]) -> bytes:
    """Grey levels ``[75, 85]`` of an evidence map (``cxr_ray.nets.evidence.grey_levels``) as an 8-bit grey PNG.

    Raises:
        ValueError: another shape or dtype.
    """
    levels_HW = np.asarray(levels_HW)
    if levels_HW.shape != EVIDENCE_SHAPE or levels_HW.dtype != np.uint8:
        raise ValueError(
            f"expected uint8 levels of shape {EVIDENCE_SHAPE}, got {levels_HW.dtype} {levels_HW.shape}"
        )
    return _encode(levels_HW, _HEAT_PNG)


def decode_heat_map_png(png: bytes, heat_lo: float, heat_hi: float) -> NDArray[np.float32]:
    """The evidence map ``[75, 85]`` float32 in its original units, to half a grey level of its range.

    Raises:
        OutputError: the bytes are no 8-bit PNG of 75 x 85.
    """
    levels_HW = _decode(png, EVIDENCE_SHAPE, "heat_map").astype(np.float64)
    return (heat_lo + levels_HW * ((heat_hi - heat_lo) / 255.0)).astype(np.float32)


def encode_lung_mask(mask_HW: NDArray[np.bool_]) -> bytes:
    """A boolean mask ``[300, 340]`` (true = lung) as a 1-bit PNG, white = lung.

    Raises:
        ValueError: another shape or dtype.
    """
    mask_HW = np.asarray(mask_HW)
    if mask_HW.shape != MASK_SHAPE or mask_HW.dtype != np.bool_:
        raise ValueError(f"expected a bool mask of shape {MASK_SHAPE}, got {mask_HW.dtype} {mask_HW.shape}")
    return _encode(mask_HW.astype(np.uint8) * np.uint8(255), _MASK_PNG)


def decode_lung_mask_png(png: bytes) -> NDArray[np.bool_]:
    """The lung mask ``[300, 340]`` bool, exactly as it was encoded.

    Raises:
        OutputError: the bytes are no PNG of 300 x 340.
    """
    return _decode(png, MASK_SHAPE, "lung_mask") > 127


def _encode(grey_HW: NDArray[np.uint8], flags: tuple[tuple[int, int], ...]) -> bytes:
    done, png = cv2.imencode(".png", grey_HW, [number for flag in flags for number in flag])
    if not done:  # OpenCV reports a build without PNG this way; nothing about the image can cause it
        raise RuntimeError("this build of OpenCV cannot write PNG; install opencv-python-headless")
    return bytes(png.tobytes())


def _decode(png: bytes, shape: tuple[int, int], column: str) -> NDArray[np.uint8]:
    grey_HW = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE) if png else None
    if grey_HW is None or grey_HW.shape != shape:
        found = "no picture" if grey_HW is None else f"{grey_HW.shape[0]} x {grey_HW.shape[1]}"
        raise OutputError(f"column {column}: expected a PNG of {shape[0]} x {shape[1]}, got {found}")
    return np.asarray(grey_HW, dtype=np.uint8)
