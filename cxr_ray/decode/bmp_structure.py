"""BMP: header and completeness (Windows bitmap headers of 12, 40, 52, 56, 64, 108 and 124 bytes)."""

from __future__ import annotations

from cxr_ray.decode.radiograph import DecodeLimits
from cxr_ray.decode.raster_header import RasterHeader, unpack_at
from cxr_ray.errors import TruncatedImage, UndecodableImage, UnsupportedEncoding

HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)
UNCOMPRESSED, RUN_LENGTH = (0, 3, 6), (1, 2)  # values of biCompression: BI_RGB and bit fields; RLE8, RLE4
INFO_HEADER = 14


def read_header(data: bytes) -> RasterHeader:
    """Size and depth from the information header.

    Raises:
        TruncatedImage: the data ends inside the header.
        UndecodableImage: impossible size or depth.
    """
    rows, columns, bits, _, _ = _fields(data)
    if not rows or columns <= 0 or bits not in (1, 4, 8, 16, 24, 32):
        raise UndecodableImage("the BMP header states an impossible size or depth")
    photometric = "PALETTE COLOR" if bits <= 8 else "RGB"
    return RasterHeader(rows=rows, columns=columns, bits=min(bits, 8), photometric=photometric)


def check_complete(data: bytes, limits: DecodeLimits) -> None:
    """Demand all rows: by size when uncompressed, by the stated data size when run-length encoded.

    Raises:
        TruncatedImage: fewer bytes than needed.
        UnsupportedEncoding: another compression, or run-length encoding without a stated size.
    """
    rows, columns, bits, compression, stated = _fields(data)
    (pixel_offset,) = unpack_at("<I", data, 10)
    if compression in UNCOMPRESSED:
        needed = rows * ((columns * bits + 31) // 32 * 4)
    elif compression in RUN_LENGTH and stated:
        needed = stated
    else:
        raise UnsupportedEncoding("a BMP with an unusual compression; uncompressed and RLE are read")
    if pixel_offset + needed > len(data):
        raise TruncatedImage("the BMP ends before its last row")


def _fields(data: bytes) -> tuple[int, int, int, int, int]:
    """Rows, columns, bits a pixel, compression, stated size of the pixel data in bytes (or 0)."""
    (header_size,) = unpack_at("<I", data, INFO_HEADER)
    if header_size == 12:
        columns, rows, _, bits = unpack_at("<HHHH", data, INFO_HEADER + 4)
        return rows, columns, bits, 0, 0
    columns, rows, _, bits, compression, stated = unpack_at("<iiHHII", data, INFO_HEADER + 4)
    return abs(rows), columns, bits, compression, stated  # negative rows: stored top down
