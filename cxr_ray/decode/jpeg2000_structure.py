"""JPEG 2000 codestream: size and completeness (ITU-T T.800 annex A)."""

from __future__ import annotations

from cxr_ray.decode.raster_header import unpack_at
from cxr_ray.errors import TruncatedImage, UndecodableImage

SOC_SIZ = b"\xff\x4f\xff\x51"  # start of codestream, always followed by image and tile size
SOD, EOC = b"\xff\x93", b"\xff\xd9"


def check_codestream(frame: bytes) -> tuple[int, int, int]:
    """Rows, columns and bits per sample of a codestream (bare or in JP2 boxes) that has its end.

    openjpeg fills what a cut stream lacks, so the end marker is demanded. Inside packet data no byte
    pair above 0xFF8F occurs, hence a plain search behind the first tile header is enough.

    Raises:
        UndecodableImage: no codestream.
        TruncatedImage: it ends before its end marker.
    """
    start = frame.find(SOC_SIZ)
    if start < 0:
        raise UndecodableImage("the pixel data is no JPEG 2000 codestream")
    x1, y1, x0, y0 = unpack_at(">IIII", frame, start + 8)
    (depth,) = unpack_at("B", frame, start + 42)
    data = frame.find(SOD, start)
    if data < 0 or frame.find(EOC, data) < 0:
        raise TruncatedImage("the JPEG 2000 codestream ends before its end marker")
    return y1 - y0, x1 - x0, (depth & 0x7F) + 1
