"""PNG chunks: header and completeness (PNG specification, third edition, sections 5 and 11)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from cxr_ray.decode.radiograph import DecodeLimits
from cxr_ray.decode.raster_header import RasterHeader, unpack_at
from cxr_ray.errors import TruncatedImage, UndecodableImage

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PHOTOMETRIC = {0: "MONOCHROME2", 2: "RGB", 3: "PALETTE COLOR", 4: "MONOCHROME2", 6: "RGB"}


def read_header(data: bytes) -> RasterHeader:
    """Size and layout from IHDR, frames from acTL (animated PNG).

    Raises:
        TruncatedImage: the data ends inside IHDR.
        UndecodableImage: the first chunk is no valid IHDR.
    """
    length, kind, columns, rows, bits, colour = unpack_at(">I4sIIBB", data, len(SIGNATURE))
    if kind != b"IHDR" or length != 13 or colour not in PHOTOMETRIC or not rows or not columns:
        raise UndecodableImage("the PNG header chunk is damaged")
    frames = 1
    for name, start, size in _chunks(data):
        if name == b"IDAT":  # acTL comes before the first IDAT
            break
        if name == b"acTL" and size >= 4:
            frames = max(1, unpack_at(">I", data, start)[0])
    return RasterHeader(rows=rows, columns=columns, bits=bits, photometric=PHOTOMETRIC[colour], frames=frames)


def check_complete(data: bytes, limits: DecodeLimits) -> None:
    """Demand every chunk up to IEND, and a right checksum for each one that pixels depend on.

    Bytes after IEND are ignored. Checksums of ancillary chunks are too: decoders skip such chunks.

    Raises:
        TruncatedImage: no IEND, or no pixel data before it.
        UndecodableImage: a wrong checksum.
    """
    view, has_pixels = memoryview(data), False
    for name, start, size in _chunks(data):
        end = start + size
        if end + 4 > len(data):
            break
        is_critical = not name[0] & 0x20
        if is_critical and zlib.crc32(view[start - 4 : end]) != unpack_at(">I", data, end)[0]:
            raise UndecodableImage("a PNG chunk has a wrong checksum")
        has_pixels |= name == b"IDAT"
        if name == b"IEND":
            if not has_pixels:
                raise TruncatedImage("the PNG has no pixel data")
            return
    raise TruncatedImage("the PNG ends before its closing chunk")


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start of the content, size of the content); the last one may run past the end."""
    offset = len(SIGNATURE)
    while offset + 8 <= len(data):
        size = int.from_bytes(data[offset : offset + 4], "big")
        yield data[offset + 4 : offset + 8], offset + 8, size
        offset += 12 + size
