"""DICOM: transfer syntaxes, the three policies, refusals by header."""

from __future__ import annotations

import logging
import struct
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from decode_samples import (
    COLUMNS,
    ROWS,
    dicom_bytes,
    dicom_object,
    grey_pixels,
    jpeg_dicom_bytes,
    opencv_bytes,
    rgb_pixels,
)
from pydicom import uid
from pydicom.encaps import encapsulate, get_frame

from cxr_ray.decode import decode, dicom_pixels, facts_of, identifiers_of
from cxr_ray.errors import (
    ConstantPixels,
    MultiFrame,
    NoPixels,
    NotRadiograph,
    OversizedInput,
    TruncatedImage,
    UndecodableImage,
    UnsupportedEncoding,
)

DEEP = grey_pixels(np.uint16, 12)


def compressed(pixels: np.ndarray, syntax: uid.UID, **options: object) -> bytes:
    ds = dicom_object(pixels, bits_stored=12 if pixels.dtype == np.uint16 else None)
    ds.compress(syntax, **options)
    return dicom_bytes(ds)


@pytest.mark.parametrize(
    "syntax",
    [
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
    ],
)
def test_uncompressed_syntaxes(syntax: uid.UID) -> None:
    radiograph = decode(dicom_bytes(dicom_object(DEEP, bits_stored=12), syntax))
    np.testing.assert_array_equal(radiograph.pixels, DEEP)
    assert radiograph.pixels.dtype == np.dtype(np.uint16)
    assert radiograph.pixels.dtype.isnative
    assert radiograph.facts.transfer_syntax == syntax
    assert radiograph.flags == ("low_resolution",)


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_lossless_syntaxes(syntax: uid.UID, dtype: type) -> None:
    pixels = DEEP if dtype == np.uint16 else grey_pixels()
    np.testing.assert_array_equal(decode(compressed(pixels, syntax)).pixels, pixels)


def test_lossy_syntaxes() -> None:
    near = compressed(DEEP, uid.JPEGLSNearLossless, jls_error=3)
    assert np.abs(decode(near).pixels.astype(int) - DEEP).max() == 3
    lossy = compressed(grey_pixels(), uid.JPEG2000, j2k_cr=[5])
    assert 0 < np.abs(decode(lossy).pixels.astype(int) - grey_pixels()).mean() < 20
    baseline = decode(jpeg_dicom_bytes(grey_pixels())).pixels
    as_opencv = cv2.imdecode(np.frombuffer(opencv_bytes(grey_pixels(), ".jpg"), np.uint8), 0)
    np.testing.assert_array_equal(baseline, as_opencv)


@pytest.mark.parametrize("syntax", [uid.JPEGLossless, uid.JPEGLosslessSV1])
def test_jpeg_lossless_as_gdcm_writes_it(syntax: uid.UID, tmp_path: Path) -> None:
    gdcm = pytest.importorskip("gdcm")
    plain, packed = tmp_path / "plain.dcm", tmp_path / "packed.dcm"
    plain.write_bytes(dicom_bytes(dicom_object(DEEP, bits_stored=12)))
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(plain))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(packed))
    assert writer.Write()
    np.testing.assert_array_equal(decode(packed.read_bytes()).pixels, DEEP)


def extended_jpeg_stating(bits: int) -> bytes:
    """A JPEG Extended object whose codestream states this precision; its pixels are not meant to decode."""
    data = jpeg_dicom_bytes(grey_pixels()).replace(b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.51")
    start_of_frame = data.index(b"\xff\xc0\x00")
    return data[: start_of_frame + 4] + bytes([bits]) + data[start_of_frame + 5 :]


def test_extended_jpeg_of_other_than_8_or_12_bits_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decode(extended_jpeg_stating(8)).pixels.shape == (ROWS, COLUMNS)
    with pytest.raises(UnsupportedEncoding, match="16 bits"):
        decode(extended_jpeg_stating(16))
    monkeypatch.setattr(dicom_pixels, "gdcm_is_installed", lambda: False)
    with pytest.raises(UnsupportedEncoding, match=r'pip install "cxr_ray\[dicom\]"'):
        decode(extended_jpeg_stating(12))


def test_a_cut_jpeg_2000_stream_in_whole_fragments_is_truncated() -> None:
    ds = dicom_object(DEEP, bits_stored=12)
    ds.compress(uid.JPEG2000Lossless)
    frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    ds.PixelData = encapsulate([frame[: len(frame) // 2]])
    with pytest.raises(TruncatedImage, match="end marker"):
        decode(dicom_bytes(ds))


def test_raw_pixels_under_a_compressed_syntax_are_undecodable() -> None:
    data = dicom_bytes(dicom_object(DEEP)).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")
    with pytest.raises(UndecodableImage, match="RLE Lossless"):
        decode(data)


def test_a_missing_plugin_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data = compressed(DEEP, uid.JPEGLSLossless)
    monkeypatch.setitem(dicom_pixels.PLUGINS, uid.JPEGLSLossless, "not-installed")
    with pytest.raises(UnsupportedEncoding, match=r'pip install "cxr_ray\[dicom\]"'):
        decode(data)


def test_a_video_syntax_is_unsupported() -> None:
    data = dicom_bytes(dicom_object(DEEP)).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0")
    with pytest.raises(UnsupportedEncoding):
        decode(data)


# -- policies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_monochrome1_is_reversed_but_for_the_published_policy(dtype: type) -> None:
    pixels = grey_pixels(dtype, 8) - (100 if dtype == np.int16 else 0)
    data = dicom_bytes(dicom_object(pixels.astype(dtype), PhotometricInterpretation="MONOCHROME1"))
    corrected = decode(data)
    assert corrected.pixels.dtype == dtype
    total = corrected.pixels.astype(np.int64) + pixels
    assert total.min() == total.max()  # p -> constant - p
    assert "monochrome1_inverted" in corrected.flags
    published = decode(data, policy="published")
    np.testing.assert_array_equal(published.pixels, pixels)
    assert "monochrome1_inverted" not in published.flags
    windowed = decode(data, policy="windowed")
    assert np.ptp(windowed.pixels.astype(np.int64) + pixels) == 0


def test_padding_takes_the_smallest_other_value() -> None:
    pixels = np.clip(DEEP, 100, 3000)
    pixels[:, :5] = 4095
    data = dicom_bytes(dicom_object(pixels, bits_stored=12, PixelPaddingValue=4095))
    radiograph = decode(data)
    assert "padding_excluded" in radiograph.flags
    assert (radiograph.pixels[:, :5] == pixels[:, 5:].min()).all()
    np.testing.assert_array_equal(radiograph.pixels[:, 5:], pixels[:, 5:])
    np.testing.assert_array_equal(decode(data, policy="published").pixels, pixels)


def test_padding_of_a_reversed_image_comes_out_dark() -> None:
    pixels = np.clip(DEEP, 100, 3000)
    pixels[:, :5] = 0  # bright in MONOCHROME1
    data = dicom_bytes(
        dicom_object(pixels, bits_stored=12, PixelPaddingValue=0, PhotometricInterpretation="MONOCHROME1")
    )
    radiograph = decode(data)
    np.testing.assert_array_equal(radiograph.pixels[:, 5:], 65535 - pixels[:, 5:])
    assert (radiograph.pixels[:, :5] == 65535 - pixels[:, 5:].max()).all()


def test_a_padding_range_and_a_signed_padding_value_of_the_wrong_vr() -> None:
    pixels = np.clip(DEEP, 10, 3000).astype(np.int16)
    pixels[:2], pixels[2:4] = -2000, -1990
    ds = dicom_object(pixels)
    ds.add_new("PixelPaddingValue", "US", 65536 - 2000)
    ds.add_new("PixelPaddingRangeLimit", "US", 65536 - 1990)
    radiograph = decode(dicom_bytes(ds))
    assert (radiograph.pixels[:4] == pixels[4:].min()).all()
    assert "padding_excluded" in radiograph.flags


def test_a_padding_value_that_does_not_occur_changes_nothing() -> None:
    pixels = np.clip(DEEP, 10, 3000)
    radiograph = decode(dicom_bytes(dicom_object(pixels, PixelPaddingValue=0)))
    np.testing.assert_array_equal(radiograph.pixels, pixels)
    assert "padding_excluded" not in radiograph.flags


def test_nothing_but_padding_is_constant() -> None:
    with pytest.raises(ConstantPixels):
        decode(dicom_bytes(dicom_object(np.full_like(DEEP, 7), PixelPaddingValue=7)))


def test_corrected_ignores_rescale_and_window_and_windowed_applies_them() -> None:
    ds = dicom_object(
        DEEP, bits_stored=12, RescaleSlope=2, RescaleIntercept=-10, WindowCenter=2000, WindowWidth=1000
    )
    data = dicom_bytes(ds)
    np.testing.assert_array_equal(decode(data).pixels, DEEP)
    windowed = decode(data, policy="windowed").pixels
    rescaled = 2.0 * DEEP - 10
    assert np.unique(windowed[rescaled < 1499]).size == 1
    assert np.unique(windowed[rescaled > 2501]).size == 1
    inside = (rescaled > 1501) & (rescaled < 2499)
    assert np.corrcoef(windowed[inside], rescaled[inside])[0, 1] > 0.999999


def test_unused_bits_are_cleared_as_pydicom_does() -> None:
    ds = dicom_object(DEEP | 0xF000, bits_stored=12)
    np.testing.assert_array_equal(decode(dicom_bytes(ds)).pixels, DEEP)


def test_colour_becomes_opencv_grey_and_is_refused_when_published() -> None:
    pixels = rgb_pixels()
    data = dicom_bytes(dicom_object(pixels))
    radiograph = decode(data)
    np.testing.assert_array_equal(radiograph.pixels, cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
    assert "colour" in radiograph.flags
    assert "colour" in decode(data, policy="windowed").flags
    with pytest.raises(UnsupportedEncoding, match="colour"):
        decode(data, policy="published")


def test_a_palette_is_looked_up() -> None:
    indices = grey_pixels()
    ds = dicom_object(indices, PhotometricInterpretation="PALETTE COLOR")
    for colour, factor in (("Red", 1), ("Green", 2), ("Blue", 3)):
        table = (np.arange(256) * 80 * factor).astype("<u2")
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(ds, f"{colour}PaletteColorLookupTableData", table.tobytes())
    radiograph = decode(dicom_bytes(ds))
    expected = cv2.cvtColor(
        np.dstack([indices.astype(np.uint16) * 80 * factor for factor in (1, 2, 3)]), cv2.COLOR_RGB2GRAY
    )
    np.testing.assert_array_equal(radiograph.pixels, expected)


# -- refusals by header ------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["CT", "MR", "US", "SEG", "MG", "RTIMAGE"])
def test_other_modalities_are_refused_and_keep_their_facts(modality: str) -> None:
    data = dicom_bytes(dicom_object(DEEP, Modality=modality))
    with pytest.raises(NotRadiograph, match=modality) as caught:
        decode(data[:-500])  # pixels are never looked at
    assert facts_of(caught.value).modality == modality
    assert facts_of(caught.value).image_rows == ROWS
    assert identifiers_of(caught.value).patient_id == "MRN-8812734"


@pytest.mark.parametrize("modality", ["RG", "RF", "OT", "SC", "ZZ", None])
def test_unusual_modalities_are_decoded_and_flagged(modality: str | None) -> None:
    radiograph = decode(dicom_bytes(dicom_object(DEEP, Modality=modality)))
    assert "modality_unusual" in radiograph.flags
    assert radiograph.facts.modality == modality


def test_several_frames_are_refused_before_they_are_decoded() -> None:
    data = dicom_bytes(dicom_object(DEEP, NumberOfFrames=200))
    with pytest.raises(MultiFrame, match="200 frames"):
        decode(data)
    assert decode(dicom_bytes(dicom_object(DEEP, NumberOfFrames=1))).pixels.shape == (ROWS, COLUMNS)


def test_an_object_without_pixels() -> None:
    ds = dicom_object(DEEP, Modality="SR", PixelData=None, Rows=None, Columns=None)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = uid.BasicTextSRStorage
    with pytest.raises(NoPixels):
        decode(dicom_bytes(ds))


def test_an_image_whose_pixels_are_gone_is_truncated() -> None:
    with pytest.raises(TruncatedImage):
        decode(dicom_bytes(dicom_object(DEEP, PixelData=None)))
    with pytest.raises(TruncatedImage, match=r"5758 bytes, expected were 5760"):
        decode(dicom_bytes(dicom_object(DEEP, PixelData=DEEP.tobytes()[:-2])))


def test_a_size_beyond_the_limit_is_refused_before_the_pixels() -> None:
    with pytest.raises(OversizedInput, match="60000 x 60000"):
        decode(dicom_bytes(dicom_object(DEEP, Rows=60000, Columns=60000)))


# -- silence -----------------------------------------------------------------------------------------


def test_a_malformed_header_neither_warns_nor_logs(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data = dicom_bytes(dicom_object(DEEP)).replace(b"20200315", b"2020-3-1").replace(b"0.143", b"0,143")
    level = logging.getLogger("pydicom").level
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        radiograph = decode(data)
        warnings_filters = list(warnings.filters)
    assert warnings_filters[0][0] == "error"
    assert logging.getLogger("pydicom").level == level
    assert radiograph.facts.study_year is None
    assert radiograph.facts.pixel_spacing_mm is None
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_rle_far_longer_than_its_pixels_is_refused() -> None:
    ds = dicom_object(DEEP)
    header = struct.pack("<16L", 2, 64, 100_064, *[0] * 13)
    ds.PixelData = encapsulate([header + b"\x81\x00" * 100_000])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.file_meta.TransferSyntaxUID = uid.RLELossless
    with pytest.raises(UndecodableImage, match="longer than"):
        decode(dicom_bytes(ds))
