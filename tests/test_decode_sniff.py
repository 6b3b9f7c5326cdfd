"""Formats are recognised from the bytes, and what is no image is named."""

from __future__ import annotations

import numpy as np
import pytest
from decode_samples import dicom_bytes, dicom_object, grey_pixels, pillow_bytes
from PIL import Image
from pydicom import uid

from cxr_ray.decode import FORMATS, DecodeLimits, decode, sniff
from cxr_ray.errors import EmptyInput, OversizedInput, UnknownFormat, UsageError


@pytest.mark.parametrize("name", ["PNG", "JPEG", "TIFF", "WebP", "BMP"])
def test_rasters_are_recognised(name: str) -> None:
    assert sniff(pillow_bytes(Image.fromarray(grey_pixels()), name)) == name


def test_dicom_is_recognised_even_behind_a_tiff_header() -> None:
    data = dicom_bytes(dicom_object(grey_pixels()))
    assert sniff(data) == "DICOM"
    assert sniff(b"II*\0" + data[4:]) == "DICOM"


@pytest.mark.parametrize(
    "syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian]
)
def test_a_data_set_without_preamble_is_recognised_and_decoded(syntax: uid.UID) -> None:
    pixels = grey_pixels(np.uint16, 12)
    data = dicom_bytes(dicom_object(pixels, bits_stored=12), syntax)
    first = b"\x00\x08" if syntax == uid.ExplicitVRBigEndian else b"\x08\x00"
    meta_length = int.from_bytes(data[140:144], "little")
    bare = data[144 + meta_length :]
    assert bare.startswith(first)
    assert sniff(bare) == "DICOM"
    radiograph = decode(bare)
    np.testing.assert_array_equal(radiograph.pixels, pixels)
    assert radiograph.facts.transfer_syntax is None
    assert radiograph.facts.view == "PA"


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b"\xef\xbb\xbf  <html>", "HTML"),
        (b"patient,label\n1,0\n", "text"),
        (b"GIF89a" + bytes(40), "GIF"),
        (b"%PDF-1.7" + bytes(40), "PDF"),
        (bytes(5000), "zeros"),
        (b"BM" + bytes(60), "no known"),
        (b"\x08\x00\x05\x00\x9b\x1f\x03", "no known"),
        (b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100" + b"\xff" * 50, "no known"),
    ],
)
def test_anything_else_is_unknown_and_the_message_says_what_is_read(data: bytes, word: str) -> None:
    with pytest.raises(UnknownFormat, match=word) as caught:
        decode(data)
    assert all(name in str(caught.value) for name in FORMATS)


def test_random_bytes_are_never_taken_for_an_image() -> None:
    rng = np.random.default_rng(3)
    for _ in range(3000):
        with pytest.raises(UnknownFormat):
            sniff(b"\x08\x00" + rng.bytes(120))


def test_empty_and_overlong_files_are_refused_before_anything_else() -> None:
    with pytest.raises(EmptyInput):
        decode(b"")
    with pytest.raises(OversizedInput, match="101 bytes"):
        decode(bytes(101), limits=DecodeLimits(max_bytes=100))


def test_an_unknown_policy_is_a_usage_error_that_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="corrected, published, windowed"):
        decode(b"x", policy="rubbish")
