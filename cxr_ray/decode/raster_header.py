"""What the header of a raster file says, and how to read integers without running past the end."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from cxr_ray.errors import TruncatedImage


@dataclass(frozen=True, kw_only=True)
class RasterHeader:
    """Size and sample layout as stated, before any pixel is decoded."""

    rows: int
    columns: int
    bits: int
    """Bits per sample."""
    photometric: str
    """As in ``Facts.photometric``."""
    frames: int = 1
    """Pages or animation frames; for JPEG always 1."""


def unpack_at(layout: str, data: bytes, offset: int) -> tuple[Any, ...]:
    """``struct.unpack_from``; raises TruncatedImage where the data ends before them."""
    if offset < 0 or offset + struct.calcsize(layout) > len(data):
        raise TruncatedImage("the file ends inside its header")
    return struct.unpack_from(layout, data, offset)
