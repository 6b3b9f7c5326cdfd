"""PNG, JPEG, TIFF, WebP and BMP to grey pixels, with OpenCV as the authority for their values.

OpenCV fills what a truncated file lacks (depending on its version), so completeness is checked here,
on the file's structure, before any pixel is decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from cxr_ray.decode import bmp_structure, jpeg_structure, png_structure, tiff_structure, webp_structure
from cxr_ray.decode.coded_errors import coded_errors
from cxr_ray.decode.radiograph import DecodeLimits, Facts, Radiograph, reversed_values, shape_flags
from cxr_ray.decode.raster_header import RasterHeader
from cxr_ray.errors import MultiFrame, NonfinitePixels, PixelShape, UndecodableImage

IMREAD_FLAGS = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
"""Grey, 16 bits kept, alpha ignored, EXIF orientation not applied (DESIGN section 1)."""

OPENCV_REVERSES_UP_TO = 8  # bits per sample of a white-is-zero TIFF


@dataclass(frozen=True)
class _Structure:
    read_header: Callable[[bytes], RasterHeader]
    check_complete: Callable[[bytes, DecodeLimits], None]


_STRUCTURES = {
    "PNG": _Structure(png_structure.read_header, png_structure.check_complete),
    "JPEG": _Structure(jpeg_structure.read_header, jpeg_structure.check_complete),
    "TIFF": _Structure(tiff_structure.read_header, tiff_structure.check_complete),
    "WebP": _Structure(webp_structure.read_header, webp_structure.check_complete),
    "BMP": _Structure(bmp_structure.read_header, bmp_structure.check_complete),
}


def decode_raster(data: bytes, *, kind: str, policy: str, limits: DecodeLimits) -> Radiograph:
    """Decode one raster file of the format ``kind`` (as named by ``sniff``).

    Header first, limits second, completeness third, pixels last. The policies differ only for TIFF of
    more than 8 bits whose header says that white is zero: OpenCV reverses such a file up to 8 bits and
    forgets to above, so above it is reversed here, except under ``published``.

    Returns:
        A Radiograph of ``uint8``, ``uint16`` or (TIFF) another real dtype, shape as the header states.

    Raises:
        InputError: any of its decoding subclasses; carries the facts once the header was read.
    """
    structure = _STRUCTURES[kind]
    header = structure.read_header(data)
    facts = Facts(
        photometric=header.photometric,
        image_rows=header.rows,
        image_columns=header.columns,
        bits_stored=header.bits,
    )
    with coded_errors(kind, facts):
        limits.check_size(header.rows, header.columns)
        if header.frames > 1:
            raise MultiFrame(f"the {kind} holds several frames or pages; a radiograph has one")
        structure.check_complete(data, limits)
        pixels_HW = _decode_pixels(data, kind, header)
    flags = shape_flags(*pixels_HW.shape)
    if header.photometric == "MONOCHROME1" and (
        header.bits <= OPENCV_REVERSES_UP_TO or policy != "published"
    ):
        flags.append("monochrome1_inverted")
        if header.bits > OPENCV_REVERSES_UP_TO:
            pixels_HW = reversed_values(pixels_HW)
    return Radiograph(pixels=pixels_HW, facts=facts, flags=tuple(sorted(flags)))


def _decode_pixels(data: bytes, kind: str, header: RasterHeader) -> np.ndarray:
    """OpenCV's grey decoding; its log is silenced meanwhile, because failures become coded rows."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        pixels_HW = cv2.imdecode(np.frombuffer(data, np.uint8), IMREAD_FLAGS)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from None
        pixels_HW = None  # the text of the OpenCV error names source files, not the image
    finally:
        cv2.utils.logging.setLogLevel(level)
    if pixels_HW is None:
        raise UndecodableImage(f"OpenCV cannot decode this {kind}")
    if pixels_HW.shape != (header.rows, header.columns):
        raise PixelShape(
            f"the {kind} header states {header.rows} x {header.columns} pixels, "
            f"decoded were {' x '.join(map(str, pixels_HW.shape))}"
        )
    if pixels_HW.dtype.kind == "f" and not np.isfinite(pixels_HW).all():
        raise NonfinitePixels(f"the {kind} holds NaN or infinite values")
    return pixels_HW
