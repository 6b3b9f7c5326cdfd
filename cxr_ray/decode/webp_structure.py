"""WebP chunks: header and completeness (RFC 9649)."""

from __future__ import annotations

from collections.abc import Iterator

from cxr_ray.decode.radiograph import DecodeLimits
from cxr_ray.decode.raster_header import RasterHeader, unpack_at
from cxr_ray.errors import TruncatedImage, UndecodableImage

FIRST_CHUNK = 12  # "RIFF", size, "WEBP"


def read_header(data: bytes) -> RasterHeader:
    """Size from the VP8, VP8L or VP8X chunk; frames are counted when the file is animated.

    Raises:
        TruncatedImage: the data ends inside the header.
        UndecodableImage: the first chunk is none of the three.
    """
    (name,) = unpack_at("4s", data, FIRST_CHUNK)
    start, frames = FIRST_CHUNK + 8, 1
    if name == b"VP8X":
        flags, *_, packed = unpack_at("<B3x6s", data, start)
        columns = 1 + int.from_bytes(packed[:3], "little")
        rows = 1 + int.from_bytes(packed[3:], "little")
        if flags & 0x02:  # animation
            frames = max(2, sum(chunk == b"ANMF" for chunk, *_ in _chunks(data)))
    elif name == b"VP8L":
        signature, packed_size = unpack_at("<BI", data, start)
        if signature != 0x2F:
            raise UndecodableImage("the WebP header is damaged")
        columns, rows = 1 + (packed_size & 0x3FFF), 1 + (packed_size >> 14 & 0x3FFF)
    elif name == b"VP8 ":
        start_code, columns, rows = unpack_at("<3x3sHH", data, start)
        if start_code != b"\x9d\x01\x2a":
            raise UndecodableImage("the WebP header is damaged")
        columns, rows = columns & 0x3FFF, rows & 0x3FFF
    else:
        raise UndecodableImage("the WebP starts with a chunk of unknown kind")
    if not rows or not columns:
        raise UndecodableImage("the WebP header states no pixels")
    return RasterHeader(rows=rows, columns=columns, bits=8, photometric="RGB", frames=frames)


def check_complete(data: bytes, limits: DecodeLimits) -> None:
    """Demand as many bytes as the RIFF header states, and one whole image chunk within them.

    Raises:
        TruncatedImage: fewer bytes, or no image chunk.
    """
    (stated,) = unpack_at("<I", data, 4)
    if 8 + stated > len(data):
        raise TruncatedImage("the WebP has fewer bytes than its header states")
    if not any(
        name in (b"VP8 ", b"VP8L", b"ANMF") and start + size <= len(data)
        for name, start, size in _chunks(data)
    ):
        raise TruncatedImage("the WebP has no whole image chunk")


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start of the content, size of the content); contents are padded to even sizes."""
    offset = FIRST_CHUNK
    while offset + 8 <= len(data):
        size = int.from_bytes(data[offset + 4 : offset + 8], "little")
        yield data[offset : offset + 4], offset + 8, size
        offset += 8 + size + size % 2
