"""Made inputs for the decode tests: phantom-like pixels, DICOM objects and file bytes. Nothing real."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

ROWS, COLUMNS = 60, 48

# Values that must never leave the decoder but as Identifiers. They look like what real headers hold.
SECRETS = {
    "PatientName": "DOE^JANE^Q",
    "PatientID": "MRN-8812734",
    "IssuerOfPatientID": "ST-ELSEWHERE",
    "PatientBirthDate": "19610407",
    "AccessionNumber": "ACC5531907",
    "InstitutionName": "St Elsewhere Hospital",
    "ReferringPhysicianName": "HOUSE^GREGORY",
    "StudyInstanceUID": "1.2.3.4.555.666",
    "SOPInstanceUID": "1.2.3.4.777.888",
    "StudyDescription": "CXR Jane Doe bed 12",
}


def grey_pixels(dtype: Any = np.uint8, bits: int = 8) -> np.ndarray:
    """``[60, 48]`` smooth-and-noisy grey, using the whole range of ``bits``."""
    rng = np.random.default_rng(7)
    rows, columns = np.mgrid[0:ROWS, 0:COLUMNS]
    wave = 0.5 + 0.4 * np.sin(rows / 9.0) * np.cos(columns / 7.0) + rng.uniform(-0.05, 0.05, (ROWS, COLUMNS))
    pixels = np.clip(wave * (2**bits - 1), 0, 2**bits - 1).round()
    pixels[0, 0], pixels[-1, -1] = 0, 2**bits - 1
    return pixels.astype(dtype)


def rgb_pixels() -> np.ndarray:
    """``[60, 48, 3]`` uint8 with real colour."""
    grey = grey_pixels()
    return np.dstack([grey, grey[::-1], grey[:, ::-1]])


def pillow_bytes(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """The image as Pillow writes it."""
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def opencv_bytes(pixels: np.ndarray, extension: str) -> bytes:
    """The pixels (BGR when colour) as OpenCV writes them."""
    is_written, encoded = cv2.imencode(extension, pixels)
    assert is_written
    return encoded.tobytes()


def png_chunk(name: bytes, content: bytes) -> bytes:
    """One PNG chunk with its right checksum."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def tiff_bytes(pixels: np.ndarray, photometric: int) -> bytes:
    """Uncompressed little-endian TIFF of one strip; photometric 0 = white is zero, 1 = black is zero."""
    content, bits = pixels.tobytes(), 8 * pixels.dtype.itemsize
    fields = {256: pixels.shape[1], 257: pixels.shape[0], 258: bits, 259: 1, 262: photometric, 273: 8}
    fields |= {277: 1, 278: pixels.shape[0], 279: len(content)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    header = struct.pack("<2sHI", b"II", 42, 8 + len(content))
    return header + content + struct.pack("<H", len(fields)) + entries + bytes(4)


def dicom_object(pixels: np.ndarray, *, bits_stored: int | None = None, **attributes: Any) -> Dataset:
    """A chest CR in explicit VR little endian with PHI-looking values; keywords override attributes.

    An attribute given as None is left out.
    """
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = uid.ComputedRadiographyImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.777.888"
    for keyword, value in SECRETS.items():
        setattr(ds, keyword, value)
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = "CR", "CHEST", "PA"
    ds.StudyDate, ds.PatientSex, ds.Manufacturer = "20200315", "F", "Acme Imaging"
    ds.PixelSpacing = [0.143, 0.15]
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    ds.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = 8 * pixels.dtype.itemsize
    ds.BitsStored = bits_stored or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OW" if ds.BitsAllocated > 8 else "OB"
    for keyword, value in attributes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def dicom_bytes(ds: Dataset, syntax: uid.UID | None = None) -> bytes:
    """The object as a file with preamble, re-written in a native transfer syntax if one is given."""
    buffer = BytesIO()
    if syntax is None:
        ds.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()
    ds.file_meta.TransferSyntaxUID = syntax
    if syntax == uid.ExplicitVRBigEndian and ds.BitsAllocated == 16:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    ds.save_as(
        buffer,
        implicit_vr=syntax == uid.ImplicitVRLittleEndian,
        little_endian=syntax != uid.ExplicitVRBigEndian,
        enforce_file_format=True,
    )
    return buffer.getvalue()


def jpeg_dicom_bytes(pixels: np.ndarray, **attributes: Any) -> bytes:
    """JPEG baseline inside DICOM, quality 95."""
    ds = dicom_object(pixels, **attributes)
    ds.PixelData = encapsulate([opencv_bytes(pixels, ".jpg")])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    return dicom_bytes(ds)
