"""One DICOM object to a Radiograph: header, refusals by header, pixels, policy."""

from __future__ import annotations

import struct
from io import BytesIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from cxr_ray.decode.coded_errors import coded_errors
from cxr_ray.decode.dicom_facts import header_flags, read_facts, read_identifiers
from cxr_ray.decode.dicom_pixels import stored_pixels
from cxr_ray.decode.dicom_policy import apply_policy
from cxr_ray.decode.dicom_quiet import quiet_dicom
from cxr_ray.decode.dicom_structure import check_inflated_size, has_preamble
from cxr_ray.decode.radiograph import DecodeLimits, Facts, Radiograph, shape_flags
from cxr_ray.errors import MultiFrame, NoPixels, NotRadiograph, TruncatedImage

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

NOT_RADIOGRAPHY = {
    *("CT", "CTPROTOCOL", "MR", "US", "IVUS", "NM", "PT", "SEG", "MG", "XA", "DSA", "ES", "SM", "GM", "OP"),
    *("OPM", "OPT", "OPV", "OCT", "OPTBSV", "OPTENF", "OSS", "ECG", "EPS", "HD", "IO", "PX", "BMD", "BDUS"),
    *("XC", "EM", "DMS", "TG", "RTIMAGE", "RTDOSE", "RTSTRUCT", "RTPLAN", "RTRECORD", "RTINTENT", "RTRAD"),
}
"""Modalities refused by the header. CR, DX, RG, RF, OT and anything unheard of are decoded and flagged."""


def decode_dicom(data: bytes, *, policy: str, limits: DecodeLimits) -> Radiograph:
    """Decode one single-frame DICOM object.

    Order: facts; modality; pixel data present; frames; size; only then pixels.

    Raises:
        InputError: any of its decoding subclasses; carries facts and identifiers once the header was read.
    """
    with quiet_dicom():
        limits.check_bytes(check_inflated_size(data, limits.max_bytes))
        ds = _read_data_set(data)
        facts, identifiers = read_facts(ds), read_identifiers(ds)
        with coded_errors("DICOM", facts, identifiers):
            _refuse_by_header(ds, facts)
            limits.check_size(facts.image_rows or 0, facts.image_columns or 0)
            stored = stored_pixels(ds, limits)
            pixels_HW, policy_flags = apply_policy(stored, ds, policy)
            flags = {*header_flags(facts), *shape_flags(*pixels_HW.shape), *policy_flags}
            return Radiograph(
                pixels=pixels_HW, facts=facts, identifiers=identifiers, flags=tuple(sorted(flags))
            )


def _read_data_set(data: bytes) -> Dataset:
    """All elements; where the pixel data breaks off, those before it.

    pydicom forgets every element when the delimiter of the pixel data is missing, so the header is then
    read again on its own.

    Raises:
        TruncatedImage: the data ends inside a sequence, or before the first element.
    """
    force = not has_preamble(data)
    try:
        ds = pydicom.dcmread(BytesIO(data), force=force)
        if not any(keyword in ds for keyword in PIXEL_KEYWORDS):
            ds = pydicom.dcmread(BytesIO(data), force=force, stop_before_pixels=True)
    except (OSError, EOFError, struct.error):  # pydicom's ways to say that a sequence has no end
        raise TruncatedImage("the DICOM object ends inside its header") from None
    if not len(ds):
        raise TruncatedImage("the DICOM object ends before its first element")
    return ds


def _refuse_by_header(ds: Dataset, facts: Facts) -> None:
    """Raise what follows from the header alone."""
    if facts.modality in NOT_RADIOGRAPHY:
        raise NotRadiograph(f"the header states modality {facts.modality}, which is no projection radiograph")
    keywords = [keyword for keyword in PIXEL_KEYWORDS if keyword in ds]
    if not keywords:
        if facts.image_rows is not None or _is_image_class(ds) or _breaks_off(ds):
            raise TruncatedImage("the DICOM object ends before its pixel data")
        raise NoPixels("the DICOM object holds no pixel data")
    if _breaks_off(ds):
        raise TruncatedImage("the DICOM object ends inside an element")
    frames = ds.get("NumberOfFrames")
    if frames is not None and int(frames) > 1:
        raise MultiFrame(f"the DICOM object holds {int(frames)} frames; a radiograph has one")


def _is_image_class(ds: Dataset) -> bool:
    """Whether the SOP class is one of images."""
    stated = ds.get("SOPClassUID") or getattr(ds, "file_meta", Dataset()).get("MediaStorageSOPClassUID")
    return "ImageStorage" in UID(str(stated or "")).keyword


def _breaks_off(ds: Dataset) -> bool:
    """Whether an element holds fewer bytes than its length field states, as at the end of a cut file."""
    for tag in ds.keys():  # noqa: SIM118 - iterating the data set itself would convert every element
        element = ds.get_item(tag)
        value, length = getattr(element, "value", None), getattr(element, "length", None)
        if isinstance(value, bytes) and isinstance(length, int) and len(value) < length < 0xFFFFFFFF:
            return True
    return False
