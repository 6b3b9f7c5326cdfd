"""Stored pixel values of a single-frame DICOM object.

Each transfer syntax has exactly one decoder here, although pydicom would try whatever is installed:
the same file must give the same values on every machine.
"""

from __future__ import annotations

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder
from pydicom.pixels.utils import get_expected_length

from cxr_ray.decode import jpeg_structure
from cxr_ray.decode.coded_errors import coded_errors
from cxr_ray.decode.dicom_jpeg12 import CODESTREAM_BITS, decode_jpeg12, gdcm_is_installed
from cxr_ray.decode.jpeg2000_structure import check_codestream
from cxr_ray.decode.radiograph import DecodeLimits
from cxr_ray.errors import PixelShape, TruncatedImage, UndecodableImage, UnsupportedEncoding

INSTALL_HINT = 'install the decoders with: pip install "cxr_ray[dicom]"'

NATIVE = {
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
}
JPEG = {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1}
JPEG_LS = {uid.JPEGLSLossless, uid.JPEGLSNearLossless}
JPEG_2000 = {uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K}
PLUGINS = {
    **dict.fromkeys((uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit), "pillow"),  # 8 bits; 12 go to gdcm
    **dict.fromkeys((uid.JPEGLossless, uid.JPEGLosslessSV1), "gdcm"),
    **dict.fromkeys(JPEG_LS, "pyjpegls"),
    **dict.fromkeys(JPEG_2000, "pylibjpeg"),  # by way of openjpeg
    uid.RLELossless: "pydicom",
}


def stored_pixels(ds: Dataset, limits: DecodeLimits) -> np.ndarray:
    """Values as pydicom's ``pixel_array`` gives them: unused bits cleared, YBR_FULL converted to RGB.

    Returns:
        ``[H, W]``, or ``[H, W, 3]`` for colour, native byte order, dtype by BitsAllocated and
        PixelRepresentation.

    Raises:
        UnsupportedEncoding: no decoder for the transfer syntax, or it is not installed.
        TruncatedImage: fewer bytes than rows and columns need, or a codestream without its end marker.
        UndecodableImage: a codestream of another size than stated, or refused by its decoder.
        PixelShape: the decoder returned something else than one frame.
    """
    syntax = _transfer_syntax(ds)
    name = "uncompressed" if syntax in NATIVE else syntax.name
    if syntax in NATIVE:
        plugin = ""
        _check_native_length(ds)
    elif syntax in PLUGINS:
        plugin = PLUGINS[syntax]
        with coded_errors(f"{name} pixel data"):
            frame = get_frame(ds.PixelData, 0, number_of_frames=1)
        bits = _check_frame(ds, syntax, frame, limits)
        if syntax == uid.JPEGExtended12Bit and bits != 8:
            if bits != CODESTREAM_BITS:
                raise UnsupportedEncoding(f"{name} with {bits} bits a sample; 8 and 12 are read")
            if not gdcm_is_installed():
                raise UnsupportedEncoding(f"no decoder for {name} with 12 bits; {INSTALL_HINT}")
            with coded_errors(f"{name} pixel data"):
                return decode_jpeg12(ds, frame)
    else:
        raise UnsupportedEncoding("the transfer syntax of this DICOM object has no decoder here")
    decoder = get_decoder(syntax)
    if plugin and plugin not in decoder.available_plugins:
        raise UnsupportedEncoding(f"no decoder for {name}; {INSTALL_HINT}")
    with coded_errors(f"{name} pixel data"):
        pixels, _ = decoder.as_array(ds, decoding_plugin=plugin)
    rows, columns = int(ds.Rows), int(ds.Columns)
    if pixels.shape not in ((rows, columns), (rows, columns, 3)):
        raise PixelShape(
            f"decoded were {' x '.join(map(str, pixels.shape))} values, expected {rows} x {columns} pixels"
        )
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _transfer_syntax(ds: Dataset) -> uid.UID:
    """As stated by the file meta information, else as the data set turned out to be encoded."""
    stated = getattr(ds, "file_meta", Dataset()).get("TransferSyntaxUID")
    if stated:
        return uid.UID(str(stated))
    is_implicit, is_little_endian = ds.original_encoding
    if is_implicit:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRLittleEndian if is_little_endian else uid.ExplicitVRBigEndian


def _check_native_length(ds: Dataset) -> None:
    """Uncompressed pixel data must hold as many bytes as size and depth ask for."""
    if "PixelData" not in ds:
        return  # float pixel data; pydicom checks its length
    with coded_errors("description of the pixel data"):
        expected, found = get_expected_length(ds), len(ds.PixelData)
    if found < expected:
        raise TruncatedImage(f"the pixel data has {found} bytes, expected were {expected}")


def _check_frame(ds: Dataset, syntax: uid.UID, frame: bytes, limits: DecodeLimits) -> int:
    """Refuse a codestream that is cut or of another size before a decoder allocates for it.

    Returns:
        Bits per sample as the codestream states them (RLE: BitsAllocated).
    """
    rows, columns = int(ds.Rows), int(ds.Columns)
    if syntax in JPEG | JPEG_LS:
        header, _ = jpeg_structure.read_frame_header(frame)
        jpeg_structure.check_complete(frame, limits)
        size, bits = (header.rows, header.columns), header.bits
    elif syntax in JPEG_2000:
        stated_rows, stated_columns, bits = check_codestream(frame)
        size = (stated_rows, stated_columns)
    else:
        # Every byte pair of RLE can grow to 128 bytes, so an overlong frame is the sign of a bomb.
        expected = get_expected_length(ds)
        if len(frame) > 2 * expected + 1024:
            raise UndecodableImage("the RLE pixel data is longer than its uncompressed form")
        return int(ds.BitsAllocated)
    if size != (rows, columns):
        raise UndecodableImage(
            f"the compressed image has {size[0]} x {size[1]} pixels, the header states {rows} x {columns}"
        )
    return bits
