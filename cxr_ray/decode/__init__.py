"""Bytes of one image file to pixels and header facts, or a coded error.

``decode`` is the only entry. Formats are recognised from the bytes.
"""

from __future__ import annotations

from cxr_ray.decode.decoder import decode
from cxr_ray.decode.radiograph import (
    DECODE_POLICIES,
    DECODE_VERSION,
    DecodeLimits,
    Facts,
    Identifiers,
    Radiograph,
    facts_of,
    identifiers_of,
)
from cxr_ray.decode.sniff import FORMATS, sniff

__all__ = [
    "DECODE_POLICIES",
    "DECODE_VERSION",
    "FORMATS",
    "DecodeLimits",
    "Facts",
    "Identifiers",
    "Radiograph",
    "decode",
    "facts_of",
    "identifiers_of",
    "sniff",
]
