"""JPEG markers: header and completeness (ITU-T T.81 annex B; JPEG-LS, T.87, uses the same frame).

Serves JPEG files and the JPEG and JPEG-LS frames inside DICOM.
"""

from __future__ import annotations

import re

from cxr_ray.decode.radiograph import DecodeLimits
from cxr_ray.decode.raster_header import RasterHeader, unpack_at
from cxr_ray.errors import TruncatedImage, UndecodableImage, UnsupportedEncoding

SOI, EOI, SOS, DHT, JPG, DAC = 0xD8, 0xD9, 0xDA, 0xC4, 0xC8, 0xCC
START_OF_FRAME = (set(range(0xC0, 0xD0)) - {DHT, JPG, DAC}) | {0xF7}  # 0xF7 is JPEG-LS
BASELINE_TO_PROGRESSIVE = {0xC0, 0xC1, 0xC2}
PHOTOMETRIC = {1: "MONOCHROME2", 3: "RGB", 4: "CMYK"}

# Any number of fill bytes 0xFF may stand before a marker.
# Inside entropy-coded data 0xFF is followed by a stuffed byte below 0xC0 or by a restart marker
# (0xD0..0xD7); anything else ends the scan.
_MARKER = re.compile(rb"\xff[\x01-\xfe]")
_END_OF_SCAN = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")


def read_frame_header(data: bytes) -> tuple[RasterHeader, int]:
    """Size and layout from the start-of-frame segment, and the frame's marker byte.

    Raises:
        TruncatedImage: the data ends before the start of frame.
        UndecodableImage: image data or the end comes before a start of frame.
        UnsupportedEncoding: the height is left open (DNL), or the number of components is unusual.
    """
    offset = 2
    while True:
        marker, offset = _next_marker(data, offset)
        if marker in START_OF_FRAME:
            break
        if marker in (SOS, EOI):
            raise UndecodableImage("the JPEG has no frame header")
        offset = _skip_segment(data, offset)
    _, bits, rows, columns, components = unpack_at(">HBHHB", data, offset)
    if not columns or components not in PHOTOMETRIC:
        raise UnsupportedEncoding(f"a JPEG of {components} components and {columns} columns")
    if not rows:
        raise UnsupportedEncoding("the JPEG header leaves the number of rows open")
    header = RasterHeader(rows=rows, columns=columns, bits=bits, photometric=PHOTOMETRIC[components])
    return header, marker


def read_header(data: bytes) -> RasterHeader:
    """Size and layout of a JPEG file; baseline, extended and progressive of 8 bits are read.

    Raises:
        UnsupportedEncoding: lossless, hierarchical, arithmetic, JPEG-LS, or other than 8 bits a sample.
        Others as ``read_frame_header``.
    """
    header, marker = read_frame_header(data)
    if marker not in BASELINE_TO_PROGRESSIVE or header.bits != 8:
        raise UnsupportedEncoding(
            f"a JPEG of process {marker - 0xC0} with {header.bits} bits a sample; "
            "as a file, baseline, extended and progressive JPEG with 8 bits are read"
        )
    return header


def check_complete(data: bytes, limits: DecodeLimits) -> None:
    """Walk from the frame header over all scans to the end-of-image marker.

    Decoders fill what is missing with grey, so the marker is the only sign of a cut. A thumbnail
    inside an application segment has its own end marker and is skipped with its segment. Bytes after
    the marker are ignored.

    Raises:
        TruncatedImage: the end-of-image marker is missing.
        UndecodableImage: no scan at all, or more than ``limits.max_scans``.
    """
    offset, scans = 2, 0
    while True:
        marker, offset = _next_marker(data, offset)
        if marker == EOI:
            if not scans:
                raise UndecodableImage("the JPEG has no image data")
            return
        if marker == SOI:  # a second start inside: damaged, but harmless to the walk
            continue
        offset = _skip_segment(data, offset)
        if marker != SOS:
            continue
        scans += 1
        if scans > limits.max_scans:
            raise UndecodableImage(f"the JPEG has more than {limits.max_scans} scans")
        match = _END_OF_SCAN.search(data, offset)
        if match is None:
            raise TruncatedImage("the JPEG ends before its end-of-image marker")
        offset = match.start()


def _next_marker(data: bytes, offset: int) -> tuple[int, int]:
    """Byte of the next marker at or after ``offset`` and the offset behind it.

    Stray bytes before a marker are skipped, as every decoder does.
    """
    match = _MARKER.search(data, offset)
    if match is None:
        raise TruncatedImage("the JPEG ends before its end-of-image marker")
    return data[match.end() - 1], match.end()


def _skip_segment(data: bytes, offset: int) -> int:
    """Offset behind the segment whose length field stands at ``offset``."""
    (length,) = unpack_at(">H", data, offset)
    if length < 2:
        raise UndecodableImage("a JPEG segment has an impossible length")
    if offset + length > len(data):
        raise TruncatedImage("the JPEG ends inside a segment")
    return offset + length
