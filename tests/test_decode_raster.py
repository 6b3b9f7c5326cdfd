"""Rasters: OpenCV's grey values, facts and limits from the header, flags."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
from decode_samples import (
    COLUMNS,
    ROWS,
    grey_pixels,
    opencv_bytes,
    pillow_bytes,
    png_chunk,
    rgb_pixels,
    tiff_bytes,
)
from PIL import Image

from cxr_ray.decode import DecodeLimits, decode, facts_of, identifiers_of
from cxr_ray.errors import (
    MultiFrame,
    NonfinitePixels,
    OversizedInput,
    PixelShape,
    TruncatedImage,
    UndecodableImage,
    UnsupportedEncoding,
)

GREY = grey_pixels()
RGB = rgb_pixels()


def plain_opencv(data: bytes) -> np.ndarray:
    """What the reference flow reads."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)


@pytest.mark.parametrize(
    ("mode", "file_format", "options"),
    [
        ("L", "PNG", {}),
        ("LA", "PNG", {}),
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {}),
        ("1", "PNG", {}),
        ("L", "JPEG", {}),
        ("RGB", "JPEG", {"quality": 80}),
        ("RGB", "JPEG", {"progressive": True}),
        ("CMYK", "JPEG", {}),
        ("L", "TIFF", {}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("1", "TIFF", {"compression": "group4"}),
        ("P", "TIFF", {"compression": "packbits"}),
        ("L", "BMP", {}),
        ("RGB", "BMP", {}),
        ("1", "BMP", {}),
        ("RGB", "WEBP", {}),
        ("RGBA", "WEBP", {"lossless": True}),
    ],
)
def test_every_kind_equals_opencv(mode: str, file_format: str, options: dict[str, object]) -> None:
    data = pillow_bytes(Image.fromarray(RGB).convert(mode), file_format, **options)
    for policy in ("corrected", "published", "windowed"):
        radiograph = decode(data, policy=policy)
        assert radiograph.pixels.shape == (ROWS, COLUMNS)
        assert radiograph.pixels.dtype == np.uint8
        np.testing.assert_array_equal(radiograph.pixels, plain_opencv(data))
    assert (radiograph.facts.image_rows, radiograph.facts.image_columns) == (ROWS, COLUMNS)
    assert radiograph.facts.modality is radiograph.facts.transfer_syntax is None


@pytest.mark.parametrize("extension", [".png", ".tiff"])
def test_sixteen_bits_are_kept(extension: str) -> None:
    pixels = grey_pixels(np.uint16, 16)
    radiograph = decode(opencv_bytes(pixels, extension))
    assert radiograph.pixels.dtype == np.uint16
    np.testing.assert_array_equal(radiograph.pixels, pixels)
    assert radiograph.facts.bits_stored == 16
    colour = decode(opencv_bytes(np.dstack([pixels] * 3), extension))
    assert colour.pixels.dtype == np.uint16
    assert np.abs(colour.pixels.astype(int) - pixels).max() <= 4  # OpenCV's fixed-point weights
    assert colour.facts.photometric == "RGB"


def test_alpha_is_ignored() -> None:
    alpha = grey_pixels()[::-1]
    rgba = np.dstack([GREY, GREY, GREY, alpha])
    np.testing.assert_array_equal(decode(pillow_bytes(Image.fromarray(rgba), "PNG")).pixels, GREY)
    grey_alpha = Image.fromarray(np.dstack([GREY, alpha]), "LA")
    np.testing.assert_array_equal(decode(pillow_bytes(grey_alpha, "PNG")).pixels, GREY)


def test_exif_orientation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees for display
    data = pillow_bytes(Image.fromarray(GREY), "JPEG", exif=exif)
    assert decode(data).pixels.shape == (ROWS, COLUMNS)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero_tiff_comes_out_dark_is_low(dtype: type) -> None:
    pixels = grey_pixels(dtype, 8 * np.dtype(dtype).itemsize)
    radiograph = decode(tiff_bytes(pixels, photometric=0))
    np.testing.assert_array_equal(radiograph.pixels, np.invert(pixels))
    assert radiograph.flags == ("low_resolution", "monochrome1_inverted")
    np.testing.assert_array_equal(decode(tiff_bytes(pixels, photometric=1)).pixels, pixels)
    published = decode(tiff_bytes(pixels, photometric=0), policy="published")
    as_opencv = cv2.imdecode(np.frombuffer(tiff_bytes(pixels, 0), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(published.pixels, as_opencv)


def test_facts_name_the_layout() -> None:
    for mode, photometric in (("L", "MONOCHROME2"), ("RGB", "RGB"), ("P", "PALETTE COLOR")):
        assert (
            decode(pillow_bytes(Image.fromarray(RGB).convert(mode), "PNG")).facts.photometric == photometric
        )
    assert decode(pillow_bytes(Image.fromarray(RGB).convert("1"), "PNG")).facts.bits_stored == 1


def test_flags_follow_from_the_size() -> None:
    def flags(rows: int, columns: int) -> tuple[str, ...]:
        return decode(opencv_bytes(np.zeros((rows, columns), np.uint8), ".png")).flags

    assert flags(300, 340) == ()
    assert flags(299, 340) == ("low_resolution",)
    assert flags(400, 761) == ("extreme_aspect",)
    assert flags(400, 760) == ()


def png_header_only(rows: int, columns: int) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0))
    content = png_chunk(b"IDAT", zlib.compress(bytes(100))) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + content


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    jpeg = bytearray(opencv_bytes(GREY, ".jpg"))
    start_of_frame = jpeg.index(b"\xff\xc0")
    jpeg[start_of_frame + 5 : start_of_frame + 9] = struct.pack(">HH", 30000, 30000)
    bmp = bytearray(opencv_bytes(GREY, ".bmp"))
    bmp[18:26] = struct.pack("<ii", 30000, 30000)
    for data in (png_header_only(30000, 30000), bytes(jpeg), bytes(bmp)):
        with pytest.raises(OversizedInput, match="30000 x 30000") as caught:
            decode(data)
        assert facts_of(caught.value).image_rows == 30000
        assert identifiers_of(caught.value).patient_id is None


def test_too_small_a_frame_is_refused() -> None:
    with pytest.raises(PixelShape, match="8 x 40 pixels; at least 16"):
        decode(opencv_bytes(np.zeros((8, 40), np.uint8), ".png"))
    assert decode(opencv_bytes(GREY, ".png"), limits=DecodeLimits(min_side=48)).pixels.shape == GREY.shape


@pytest.mark.parametrize("file_format", ["TIFF", "WEBP", "PNG"])
def test_pages_and_animations_are_multi_frame(file_format: str) -> None:
    pages = [Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())]
    data = pillow_bytes(pages[0], file_format, save_all=True, append_images=pages[1:])
    with pytest.raises(MultiFrame) as caught:
        decode(data)
    assert facts_of(caught.value).image_rows == ROWS


def test_bytes_behind_the_end_are_ignored() -> None:
    for extension in (".png", ".jpg", ".bmp", ".webp"):
        data = opencv_bytes(GREY, extension)
        np.testing.assert_array_equal(decode(data + b"\0trailing" * 9).pixels, decode(data).pixels)


def test_a_thumbnail_with_its_own_end_does_not_hide_a_cut() -> None:
    whole = opencv_bytes(GREY, ".jpg")
    thumbnail = b"Exif\0\0" + opencv_bytes(GREY[:16, :16].copy(), ".jpg")
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    data = whole[:2] + segment + whole[2:]
    np.testing.assert_array_equal(decode(data).pixels, decode(whole).pixels)
    with pytest.raises(TruncatedImage):
        decode(data[:-40])


def test_infinite_pixels_are_refused() -> None:
    pixels = GREY.astype(np.float32)
    assert decode(opencv_bytes(pixels, ".tiff")).pixels.dtype == np.float32
    pixels[3, 3] = np.inf
    with pytest.raises(NonfinitePixels):
        decode(opencv_bytes(pixels, ".tiff"))


def test_a_progressive_jpeg_of_too_many_scans_is_refused() -> None:
    data = pillow_bytes(Image.fromarray(GREY), "JPEG", progressive=True)
    with pytest.raises(UndecodableImage, match="more than 2 scans"):
        decode(data, limits=DecodeLimits(max_scans=2))


def test_jpeg_of_twelve_bits_is_an_unsupported_encoding() -> None:
    data = bytearray(opencv_bytes(GREY, ".jpg"))
    data[data.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(UnsupportedEncoding, match="12 bits"):
        decode(bytes(data))


def test_a_wrong_checksum_is_undecodable() -> None:
    data = bytearray(opencv_bytes(GREY, ".png"))
    data[data.index(b"IDAT") + 20] ^= 1
    with pytest.raises(UndecodableImage, match="checksum"):
        decode(bytes(data))
