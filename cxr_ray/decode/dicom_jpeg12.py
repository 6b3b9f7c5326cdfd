"""JPEG Extended with 12 bits (transfer syntax 1.2.840.10008.1.2.4.51) by way of gdcm.

pydicom declines this combination: gdcm masks by BitsStored, and lossy values that overshoot it wrap to
zero. Told the codestream's own 12 bits, gdcm is right; the overshoot is clipped here.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from cxr_ray.decode.dicom_quiet import quiet_stderr
from cxr_ray.errors import UndecodableImage, UnsupportedEncoding

CODESTREAM_BITS = 12


def gdcm_is_installed() -> bool:
    """Whether the ``dicom`` extra's gdcm can be imported."""
    return find_spec("gdcm") is not None


def decode_jpeg12(ds: Dataset, frame: bytes) -> np.ndarray:
    """Decode one grey frame.

    Args:
        ds: Header; Rows, Columns, BitsStored, SamplesPerPixel and PixelRepresentation are used.
        frame: The JPEG codestream, whole and of the stated size.

    Returns:
        ``[H, W] uint16`` within 0 .. 2 ** BitsStored - 1.

    Raises:
        UnsupportedEncoding: colour or signed samples.
        UndecodableImage: gdcm returned too few bytes.
    """
    if int(ds.SamplesPerPixel) != 1 or int(ds.get("PixelRepresentation", 0)) != 0:
        raise UnsupportedEncoding("JPEG Extended with 12 bits is read for unsigned grey images only")
    gdcm: Any = import_module("gdcm")  # an optional dependency
    rows, columns = int(ds.Rows), int(ds.Columns)
    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    grey = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(grey))
    syntax = gdcm.TransferSyntax.GetTSType("1.2.840.10008.1.2.4.51")
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, CODESTREAM_BITS, CODESTREAM_BITS - 1, 0))
    with quiet_stderr():  # gdcm tries its 8-bit codec first, which complains on every image
        buffer = image.GetBuffer().encode("utf-8", "surrogateescape")  # gdcm hands bytes over as text
    if len(buffer) < 2 * rows * columns:
        raise UndecodableImage("the JPEG Extended decoder returned too few pixels")
    pixels_HW = np.frombuffer(buffer, "<u2", rows * columns).reshape(rows, columns)
    return np.minimum(pixels_HW, 2 ** int(ds.BitsStored) - 1).astype(np.uint16)
