"""``decode``: the bytes of one image file to a Radiograph."""

from __future__ import annotations

from cxr_ray.decode.coded_errors import coded_errors
from cxr_ray.decode.radiograph import DECODE_POLICIES, DecodeLimits, Radiograph
from cxr_ray.decode.raster import decode_raster
from cxr_ray.decode.sniff import sniff
from cxr_ray.errors import EmptyInput, UsageError

DEFAULT_LIMITS = DecodeLimits()


def decode(data: bytes, *, policy: str = "corrected", limits: DecodeLimits = DEFAULT_LIMITS) -> Radiograph:
    """Decode the bytes of one image file.

    Args:
        data: The whole encoded file. Its format is recognised from these bytes alone.
        policy: One of ``DECODE_POLICIES`` (DESIGN section 1). Rasters are the same under all,
            but for TIFF of more than 8 bits whose header says that white is zero.
            ``corrected``: MONOCHROME1 inverted, padding excluded, stored values otherwise.
            ``published``: stored values as they are; colour is refused.
            ``windowed``: rescale, then VOI LUT or window, MONOCHROME1 inverted.
        limits: Bounds that are checked on the header, before a decoder allocates anything.

    Returns:
        A Radiograph whose pixels are ``[H, W]`` of a real numeric dtype.

    Raises:
        InputError: one of its subclasses, and no other exception, whatever the bytes are. The text
            carries no path and no attribute value. Once the header was read the error carries what
            it said: see ``facts_of`` and ``identifiers_of``.
        UsageError: an unknown policy.
    """
    if policy not in DECODE_POLICIES:
        raise UsageError(f"decode policy {policy!r} is unknown; choose one of {', '.join(DECODE_POLICIES)}")
    if not data:
        raise EmptyInput("the file is empty")
    limits.check_bytes(len(data))
    kind = sniff(data)
    if kind == "DICOM":
        # pydicom and its codecs take two thirds of a decode process's start, and many archives have no DICOM.
        from cxr_ray.decode.dicom import decode_dicom

        with coded_errors(kind):
            return decode_dicom(data, policy=policy, limits=limits)
    with coded_errors(kind):
        return decode_raster(data, kind=kind, policy=policy, limits=limits)
