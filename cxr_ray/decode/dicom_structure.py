"""DICOM elements as bytes: enough to recognise a data set and to bound what inflating it costs.

DICOM PS3.5 section 7 (elements) and PS3.10 section 7 (preamble and file meta information).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from cxr_ray.errors import TruncatedImage, UndecodableImage

PREAMBLE, PREFIX = 128, b"DICM"
DEFLATED_SYNTAX = "1.2.840.10008.1.2.1.99"
TRANSFER_SYNTAX_TAG = (0x0002, 0x0010)
UNDEFINED_LENGTH = 0xFFFFFFFF
_LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_SHORT_VRS = {
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT"),
    *(b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
}
_WITNESSES = 4  # consecutive plausible elements that make a data set without preamble believable

Element = tuple[tuple[int, int], int, int]  # (group, element), start of the value, its length


def has_preamble(data: bytes) -> bool:
    """Whether the bytes are a DICOM file with preamble and prefix."""
    return data[PREAMBLE : PREAMBLE + 4] == PREFIX


def looks_like_data_set(data: bytes) -> bool:
    """Whether the bytes clearly start with a DICOM data set although preamble and prefix are missing.

    Asked for: four consecutive elements in ascending order that fit in the data, the first of group
    0002 or 0008, in explicit or implicit little endian or explicit big endian.
    """
    for order, is_explicit in (("<", True), ("<", False), (">", True)):
        previous, count = (0, 0), 0
        for tag, start, length in _elements(data, 0, order, is_explicit):
            is_whole = length == UNDEFINED_LENGTH or start + length <= len(data)
            if tag <= previous or not is_whole or (count == 0 and tag[0] not in (0x0002, 0x0008)):
                break
            previous, count = tag, count + 1
            if count == _WITNESSES:
                return True
    return False


def check_inflated_size(data: bytes, max_bytes: int) -> int:
    """Number of bytes the data set holds once a deflated transfer syntax is undone; 0 for the others.

    Counted in steps, never held in memory as a whole, and stopped beyond ``max_bytes``.

    Raises:
        TruncatedImage: the compressed stream is incomplete.
        UndecodableImage: the compressed stream is damaged.
    """
    offset = _deflated_start(data)
    if offset is None:
        return 0
    inflater, pending, total = zlib.decompressobj(-zlib.MAX_WBITS), data[offset:], 0
    try:
        while not inflater.eof and total <= max_bytes:
            chunk = inflater.decompress(pending, 2**20)
            total += len(chunk)
            pending = inflater.unconsumed_tail
            if not chunk and not pending and not inflater.eof:
                raise TruncatedImage("the deflated data set is incomplete")
    except zlib.error:
        raise UndecodableImage("the deflated data set is damaged") from None
    return total


def _deflated_start(data: bytes) -> int | None:
    """Where the deflated data set starts, if the file meta information states that syntax."""
    if not has_preamble(data):
        return None
    is_deflated, end = False, PREAMBLE + 4
    for tag, start, length in _elements(data, PREAMBLE + 4, "<", is_explicit=True):
        if tag[0] != 0x0002:
            break
        if tag == TRANSFER_SYNTAX_TAG:
            is_deflated = data[start : start + length].strip(b"\0 ") == DEFLATED_SYNTAX.encode()
        end = start + length
    return end if is_deflated else None


def _elements(data: bytes, offset: int, order: str, is_explicit: bool) -> Iterator[Element]:
    """Yield top-level elements up to the first that cannot be one, or whose end is unknown."""
    while offset + 8 <= len(data):
        group, element = struct.unpack_from(order + "HH", data, offset)
        if is_explicit:
            vr = data[offset + 4 : offset + 6]
            if vr in _SHORT_VRS:
                (length,) = struct.unpack_from(order + "H", data, offset + 6)
                start = offset + 8
            elif vr in _LONG_VRS and offset + 12 <= len(data):
                (length,) = struct.unpack_from(order + "I", data, offset + 8)
                start = offset + 12
            else:
                return
        else:
            (length,) = struct.unpack_from(order + "I", data, offset + 4)
            start = offset + 8
        yield (group, element), start, length
        if length == UNDEFINED_LENGTH or length % 2:
            return
        offset = start + length
