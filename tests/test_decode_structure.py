"""Cut and damaged files: every cut is a coded error, and damage is never anything but a coded error."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest
from decode_samples import (
    dicom_bytes,
    dicom_object,
    grey_pixels,
    jpeg_dicom_bytes,
    opencv_bytes,
    pillow_bytes,
    rgb_pixels,
    tiff_bytes,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import uid

from cxr_ray.decode import decode
from cxr_ray.decode.dicom_structure import check_inflated_size
from cxr_ray.decode.radiograph import DecodeLimits
from cxr_ray.errors import (
    InputError,
    MultiFrame,
    OversizedInput,
    TruncatedImage,
    UndecodableImage,
    UnknownFormat,
    UnsupportedEncoding,
)

GREY = grey_pixels()
COLOUR = Image.fromarray(rgb_pixels())
DEEP = grey_pixels(np.uint16, 16)


def run_length_dicom() -> bytes:
    ds = dicom_object(DEEP)
    ds.compress(uid.RLELossless)
    return dicom_bytes(ds)


RASTERS = {
    "png": pillow_bytes(COLOUR, "PNG"),
    "png_16": opencv_bytes(DEEP, ".png"),
    "png_palette": pillow_bytes(COLOUR.convert("P"), "PNG"),
    "jpeg": pillow_bytes(COLOUR, "JPEG"),
    "jpeg_progressive": pillow_bytes(COLOUR, "JPEG", progressive=True),
    "jpeg_restarts": opencv_bytes(GREY, ".jpg"),
    "tiff": tiff_bytes(DEEP, 1),
    "tiff_lzw": pillow_bytes(COLOUR, "TIFF", compression="tiff_lzw"),
    "tiff_palette": pillow_bytes(COLOUR.convert("P"), "TIFF", compression="tiff_deflate"),
    "bmp": pillow_bytes(COLOUR, "BMP"),
    "webp": pillow_bytes(COLOUR, "WEBP"),
    "webp_lossless": pillow_bytes(COLOUR, "WEBP", lossless=True),
}
RASTERS["jpeg_restarts"] = cv2.imencode(".jpg", GREY, [cv2.IMWRITE_JPEG_RST_INTERVAL, 2])[1].tobytes()
DICOMS = {
    "native": dicom_bytes(dicom_object(DEEP)),
    "implicit": dicom_bytes(dicom_object(DEEP), uid.ImplicitVRLittleEndian),
    "deflated": dicom_bytes(dicom_object(DEEP), uid.DeflatedExplicitVRLittleEndian),
    "jpeg": jpeg_dicom_bytes(GREY),
    "rle": run_length_dicom(),
}
SAMPLES = {**RASTERS, **{f"dicom_{name}": data for name, data in DICOMS.items()}}


def assert_pixels_or_coded_error(data: bytes, policy: str) -> None:
    """Any other exception than InputError fails the test by itself."""
    outcome: np.ndarray | InputError
    try:
        outcome = decode(data, policy=policy).pixels
    except InputError as error:
        outcome = error
    if isinstance(outcome, InputError):
        assert outcome.code not in ("internal", "input_error")
        assert str(outcome)
    else:
        assert outcome.ndim == 2
        assert outcome.dtype.kind in "uif"


@pytest.mark.parametrize("name", SAMPLES)
def test_the_whole_file_decodes(name: str) -> None:
    assert decode(SAMPLES[name]).pixels.shape == GREY.shape


@pytest.mark.parametrize("name", RASTERS)
def test_every_cut_of_a_raster_is_truncated(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = RASTERS[name]
    cuts = sorted({*range(1, 90), *range(90, len(data), 23), *range(len(data) - 30, len(data))})
    for cut in cuts:
        with pytest.raises((TruncatedImage, UnknownFormat)) as caught:
            decode(data[:cut])
        if cut > 20:
            assert caught.type is TruncatedImage, cut
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", DICOMS)
def test_every_cut_of_a_dicom_is_a_coded_error(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = DICOMS[name]
    # The length field of the closing delimiter (4 bytes, always zero) is not missed.
    end = len(data) - (4 if name in ("jpeg", "rle") else 0)
    for cut in sorted({*range(1, end, 23), *range(end - 30, end)}):
        with pytest.raises(InputError) as caught:
            decode(data[:cut])
        if cut > len(data) // 2:  # behind the attributes that say that this is an image
            assert caught.value.code == "truncated", cut
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", SAMPLES)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    spots=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8)
)
def test_changed_bytes_give_pixels_or_a_coded_error(name: str, spots: list[tuple[float, int]]) -> None:
    damaged = bytearray(SAMPLES[name])
    for place, value in spots:
        damaged[int(place * len(damaged))] = value
    for policy in ("corrected", "published", "windowed"):
        assert_pixels_or_coded_error(bytes(damaged), policy)


@pytest.mark.parametrize("name", SAMPLES)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    place=st.floats(0, 1, exclude_max=True),
    size=st.integers(1, 400),
    filler=st.sampled_from([b"", b"\0", b"\xff"]),
)
def test_holes_give_pixels_or_a_coded_error(name: str, place: float, size: int, filler: bytes) -> None:
    data = SAMPLES[name]
    start = int(place * len(data))
    assert_pixels_or_coded_error(data[:start] + filler * size + data[start + size :], "corrected")


def test_tiff_of_another_page_size_unit_is_read_as_bigtiff() -> None:
    content = DEEP.tobytes()
    fields = {256: 48, 257: 60, 258: 16, 259: 1, 262: 1, 273: 16, 277: 1, 278: 60, 279: len(content)}
    entries = b"".join(struct.pack("<HHQQ", tag, 16, 1, value) for tag, value in fields.items())
    header = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16 + len(content))
    data = header + content + struct.pack("<Q", len(fields)) + entries + bytes(8)
    np.testing.assert_array_equal(decode(data).pixels, DEEP)
    with pytest.raises(TruncatedImage):
        decode(data[:-1])


def test_a_tiff_whose_pages_form_a_ring_ends() -> None:
    data = bytearray(tiff_bytes(DEEP, 1))
    data[-4:] = data[4:8]  # the next page is this page
    np.testing.assert_array_equal(decode(bytes(data)).pixels, DEEP)


def test_a_thumbnail_page_does_not_make_a_tiff_multi_frame() -> None:
    whole = bytearray(tiff_bytes(DEEP, 1))
    second = len(whole)
    thumbnail = tiff_bytes(GREY[:20, :20].copy(), 1)
    directory = bytearray(thumbnail[int.from_bytes(thumbnail[4:8], "little") :])
    whole[-4:] = struct.pack("<I", second)
    with pytest.raises(MultiFrame):
        decode(bytes(whole + directory))
    directory[2:14] = struct.pack("<HHII", 254, 4, 1, 1)  # in place of the width: a reduced-resolution page
    np.testing.assert_array_equal(decode(bytes(whole + directory)).pixels, DEEP)


def test_bmp_with_an_unusual_compression_is_unsupported() -> None:
    data = bytearray(RASTERS["bmp"])
    data[30] = 4
    with pytest.raises(UnsupportedEncoding):
        decode(bytes(data))


def test_a_deflated_bomb_is_counted_and_not_held() -> None:
    ds = dicom_object(GREY)
    ds.add_new((0x0009, 0x0010), "LO", "PRIVATE")
    ds.add_new((0x0009, 0x1001), "OB", bytes(40 * 2**20))
    data = dicom_bytes(ds, uid.DeflatedExplicitVRLittleEndian)
    assert len(data) < 200_000
    assert check_inflated_size(data, 10**9) > 40 * 2**20
    with pytest.raises(OversizedInput):
        decode(data, limits=DecodeLimits(max_bytes=2**20))
    assert decode(data).pixels.shape == GREY.shape


def test_a_codestream_of_another_size_than_the_header_is_refused_before_it_is_decoded() -> None:
    data = jpeg_dicom_bytes(GREY)
    start_of_frame = data.index(b"\xff\xc0")
    wrong = data[: start_of_frame + 5] + struct.pack(">HH", 30000, 30000) + data[start_of_frame + 9 :]
    with pytest.raises(UndecodableImage, match="30000 x 30000 pixels, the header states 60 x 48"):
        decode(wrong)
