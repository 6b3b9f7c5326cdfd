"""What decoding returns (``Radiograph``) and what it is allowed to spend (``DecodeLimits``)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cxr_ray.errors import InputError, OversizedInput, PixelShape

DECODE_POLICIES = ("corrected", "published", "windowed")
"""Names of the decode policies (DESIGN section 1); part of the preprocessing id."""

DECODE_VERSION = "1"
"""Raised whenever the pixels that ``decode`` returns change for any input; part of the preprocessing id."""


@dataclass(frozen=True, kw_only=True)
class DecodeLimits:
    """Bounds checked before a decoder allocates anything. Execution options, not part of the identity."""

    max_bytes: int = 512 * 2**20
    """Largest encoded file, in bytes; also the largest inflated DICOM data set."""

    max_pixels: int = 150_000_000
    """Largest rows x columns, as stated by the header."""

    min_side: int = 16
    """Smallest number of rows and of columns."""

    max_scans: int = 100
    """Most scans of one progressive JPEG; real files have about ten, decoding bombs have thousands."""

    def check_bytes(self, count: int) -> None:
        """Raise OversizedInput when ``count`` encoded bytes are more than ``max_bytes``."""
        if count > self.max_bytes:
            raise OversizedInput(f"the file has {count} bytes; at most {self.max_bytes} are read")

    def check_size(self, rows: int, columns: int) -> None:
        """Raise OversizedInput or PixelShape when a frame of this size is not to be decoded."""
        if rows * columns > self.max_pixels:
            raise OversizedInput(
                f"the header states {rows} x {columns} pixels; at most {self.max_pixels} pixels are decoded"
            )
        if min(rows, columns) < self.min_side:
            raise PixelShape(
                f"the header states {rows} x {columns} pixels; "
                f"at least {self.min_side} rows and columns are needed"
            )


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Header facts of one image: exactly the columns of the score table (DESIGN section 4).

    Every text is from a closed or safe vocabulary; what does not fit is None, so that free text
    cannot carry personal data into the table. All fields are None where unknown.
    """

    view: str | None = None
    """PA, AP, LL, RL, LLD, RLD, LLO, RLO, LATERAL or OBLIQUE."""
    modality: str | None = None
    """DICOM code string, for example CR or DX."""
    body_part: str | None = None
    """DICOM code string, upper case, at most 16 characters."""
    photometric: str | None = None
    """DICOM term; rasters: MONOCHROME2, MONOCHROME1 (TIFF, white is zero), RGB, PALETTE COLOR or CMYK."""
    transfer_syntax: str | None = None
    """DICOM transfer syntax UID; None for rasters and for data sets without file meta information."""
    manufacturer: str | None = None
    """At most 64 characters."""
    sex: str | None = None
    """M, F or O."""
    image_rows: int | None = None
    image_columns: int | None = None
    bits_stored: int | None = None
    """Bits per sample in use."""
    age_years: int | None = None
    """Whole years; 90 means 90 or more."""
    study_year: int | None = None
    """Year of the study date; the caller drops it unless it is asked for."""
    pixel_spacing_mm: float | None = None
    """Distance of neighbouring rows, mm."""


@dataclass(frozen=True, repr=False)
class Identifiers:
    """Identifiers as the header has them, trimmed, to be hashed by the caller and never to be printed."""

    patient_id: str | None = None
    issuer: str | None = None
    study_uid: str | None = None
    instance_uid: str | None = None

    def __repr__(self) -> str:
        """Say which identifiers are present, without their values."""
        present = [name for name, value in vars(self).items() if value is not None]
        return f"Identifiers(present={present})"


@dataclass(frozen=True, kw_only=True)
class Radiograph:
    """One decoded frame."""

    pixels: np.ndarray
    """``[H, W]``, a real numeric dtype in native byte order (uint8, uint16, int16, float32, ...).

    Values as the policy says: bright is dense under ``corrected`` and ``windowed``.
    """
    facts: Facts
    identifiers: Identifiers = field(default_factory=Identifiers)
    flags: tuple[str, ...] = ()
    """Sorted. monochrome1_inverted, padding_excluded, colour, modality_unusual, body_part_not_chest,
    view_lateral, low_resolution, extreme_aspect."""


LOW_RESOLUTION_ROWS, LOW_RESOLUTION_COLUMNS = 300, 340  # the network's input: below it, pixels are invented
EXTREME_ASPECT = 1.9  # long side / short side; whole chest films stay below 1.5


def shape_flags(rows: int, columns: int) -> list[str]:
    """Quality flags that follow from the size alone."""
    flags = []
    if rows < LOW_RESOLUTION_ROWS or columns < LOW_RESOLUTION_COLUMNS:
        flags.append("low_resolution")
    if max(rows, columns) > EXTREME_ASPECT * min(rows, columns):
        flags.append("extreme_aspect")
    return flags


def reversed_values(pixels_HW: np.ndarray) -> np.ndarray:
    """Bright to dark within the same dtype.

    For integers the bitwise complement: full range - p when unsigned, -1 - p when signed. It cannot
    overflow even where values exceed BitsStored, and the min-max that follows sees the same steps.
    """
    return -pixels_HW if pixels_HW.dtype.kind == "f" else np.invert(pixels_HW)


def attach_header(error: InputError, facts: Facts, identifiers: Identifiers | None = None) -> None:
    """Let an error carry what the header said, so that a quarantined row still has it.

    The error pickles with it. Read it back with ``facts_of`` and ``identifiers_of``.
    """
    error.__dict__.update(facts=facts, identifiers=identifiers or Identifiers())


def facts_of(error: InputError) -> Facts:
    """Header facts known when ``error`` was raised; all None if the header was not read."""
    facts = error.__dict__.get("facts")
    return facts if isinstance(facts, Facts) else Facts()


def identifiers_of(error: InputError) -> Identifiers:
    """Identifiers known when ``error`` was raised; all None if the header was not read."""
    identifiers = error.__dict__.get("identifiers")
    return identifiers if isinstance(identifiers, Identifiers) else Identifiers()
