"""Recognise an image format from its bytes; names and extensions are never looked at."""

from __future__ import annotations

from cxr_ray.decode import bmp_structure, png_structure
from cxr_ray.decode.dicom_structure import has_preamble, looks_like_data_set
from cxr_ray.errors import UnknownFormat

FORMATS = ("PNG", "JPEG", "TIFF", "WebP", "BMP", "DICOM")

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# What is often found under an image's name; only to say so in the message.
_LOOKALIKES = (
    (b"GIF8", "GIF"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "gzip"),
    (b"SIMPLE  =", "FITS"),
)


def sniff(data: bytes) -> str:
    """Name of the format, one of ``FORMATS``.

    DICOM is asked for first, because its preamble may hold a TIFF header.

    Raises:
        UnknownFormat: none of ``FORMATS``; the message says which are read.
    """
    if has_preamble(data):
        return "DICOM"
    if data.startswith(png_structure.SIGNATURE):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(_TIFF_MAGIC):
        return "TIFF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in bmp_structure.HEADER_SIZES:
        return "BMP"
    if looks_like_data_set(data):
        return "DICOM"
    read = f"{', '.join(FORMATS[:-1])} and {FORMATS[-1]} are read"
    raise UnknownFormat(f"the bytes are {_describe(data)}; {read}")


def _describe(data: bytes) -> str:
    """A guess at what unknown bytes are, for a person."""
    for magic, name in _LOOKALIKES:
        if data.startswith(magic):
            return name
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<")):
        return "HTML or XML text"
    if not any(data[:4096]):
        return "zeros"
    if all(byte in b"\t\r\n" or byte >= 32 for byte in head) and head.isascii():
        return "plain text"
    return "no known image format"
