"""DICOM attributes to table facts, identifiers and flags.

Only closed vocabularies and harmless code strings leave this module as facts: whatever does not fit
is dropped, because a wrong or misused attribute may hold anything, also a name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TypeVar

from pydicom.dataset import Dataset

from cxr_ray.decode.radiograph import Facts, Identifiers

VIEWS = {
    **{view: view for view in ("PA", "AP", "LL", "RL", "LLD", "RLD", "LLO", "RLO", "LATERAL", "OBLIQUE")},
    **{"LAT": "LATERAL", "L LAT": "LL", "R LAT": "RL", "LLAT": "LL", "RLAT": "RL"},
    **{"AP ERECT": "AP", "AP SUPINE": "AP", "PA ERECT": "PA", "P-A": "PA", "A-P": "AP"},
}
LATERAL_VIEWS = {"LL", "RL", "LATERAL"}
VIEW_CODES = {  # PS3.16 CID 4010, SNOMED CT and the older SNOMED RT codes
    **{"399348003": "AP", "R-10206": "AP", "272479007": "PA", "R-10214": "PA"},
    **{"399173006": "LL", "R-10236": "LL", "399198007": "RL", "R-10232": "RL"},
    **{"399067008": "LATERAL", "R-10230": "LATERAL"},
}
CHEST_WORDS = ("CHEST", "THORA", "LUNG", "RIB", "CXR", "TORSO", "TRUNK", "STERNUM", "HEART", "MEDIASTINUM")
PHOTOMETRIC = {
    *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422"),
    *("YBR_PARTIAL_420", "YBR_PARTIAL_422", "YBR_ICT", "YBR_RCT", "HSV", "ARGB", "CMYK", "XYB"),
}
USUAL_MODALITIES = {"CR", "DX"}
OLDEST_AGE = 90  # older people are too few not to be recognised: 90 means 90 or more
DAYS_PER_UNIT = {"D": 1.0, "W": 7.0, "M": 30.4375, "Y": 365.25}

_CODE_STRING = re.compile(r"[A-Z0-9_ ]{1,16}")
_UID = re.compile(r"[0-9.]{1,64}")
_MANUFACTURER = re.compile(r"[A-Za-z0-9 .,&()/+_'-]{1,64}")
_AGE = re.compile(r"(\d{1,3})([DWMY])")
_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")

T = TypeVar("T")


def read_facts(ds: Dataset) -> Facts:
    """The table's facts; a missing, malformed or unusual attribute is None. Never raises."""
    syntax = _text(getattr(ds, "file_meta", None), "TransferSyntaxUID")
    photometric = _text(ds, "PhotometricInterpretation")
    sex = (_text(ds, "PatientSex") or "").upper()
    return Facts(
        view=_view(ds),
        modality=_code_string(ds, "Modality"),
        body_part=_code_string(ds, "BodyPartExamined"),
        photometric=photometric if photometric in PHOTOMETRIC else None,
        transfer_syntax=syntax if syntax and _UID.fullmatch(syntax) else None,
        manufacturer=_manufacturer(ds),
        sex=sex if sex in ("M", "F", "O") else None,
        image_rows=_integer(ds, "Rows", 1, 2**16 - 1),
        image_columns=_integer(ds, "Columns", 1, 2**16 - 1),
        bits_stored=_integer(ds, "BitsStored", 1, 64),
        age_years=_age_years(ds),
        study_year=_study_year(ds),
        pixel_spacing_mm=_row_spacing(ds),
    )


def read_identifiers(ds: Dataset) -> Identifiers:
    """The identifiers that are hashed by the caller; empty ones are None. Never raises."""
    return Identifiers(
        patient_id=_text(ds, "PatientID"),
        issuer=_text(ds, "IssuerOfPatientID"),
        study_uid=_text(ds, "StudyInstanceUID"),
        instance_uid=_text(ds, "SOPInstanceUID"),
    )


def header_flags(facts: Facts) -> list[str]:
    """Quality flags that follow from the facts alone; such an image is still scored."""
    flags = []
    if facts.modality not in USUAL_MODALITIES:
        flags.append("modality_unusual")
    if facts.body_part is not None and not any(word in facts.body_part for word in CHEST_WORDS):
        flags.append("body_part_not_chest")
    if facts.view in LATERAL_VIEWS:
        flags.append("view_lateral")
    return flags


def _attempt(read: Callable[[], T]) -> T | None:
    """The value, or None where pydicom cannot convert the attribute (it then raises anything)."""
    try:
        return read()
    except Exception:  # a malformed fact is an unknown fact; the pixels may still be fine
        return None


def _text(ds: Dataset | None, keyword: str) -> str | None:
    value = _attempt(lambda: ds.get(keyword)) if ds is not None else None
    if value is None:
        return None
    parts = [value] if isinstance(value, str) else _attempt(lambda: list(value)) or [value]
    return "\\".join(str(part) for part in parts).strip(" \0\t\r\n") or None


def _code_string(ds: Dataset, keyword: str) -> str | None:
    text = (_text(ds, keyword) or "").upper()
    return text if _CODE_STRING.fullmatch(text) else None


def _integer(ds: Dataset, keyword: str, low: int, high: int) -> int | None:
    value = _attempt(lambda: int(ds.get(keyword)))
    return value if value is not None and low <= value <= high else None


def _view(ds: Dataset) -> str | None:
    view = VIEWS.get((_text(ds, "ViewPosition") or "").upper())
    if view is not None:
        return view
    code = _attempt(lambda: str(ds.get("ViewCodeSequence")[0].get("CodeValue")).strip())
    return VIEW_CODES.get(code or "")


def _manufacturer(ds: Dataset) -> str | None:
    text = (_text(ds, "Manufacturer") or "")[:64].strip()
    return text if _MANUFACTURER.fullmatch(text) else None


def _date(ds: Dataset, keyword: str) -> tuple[int, int, int] | None:
    match = _DATE.match(_text(ds, keyword) or "")
    if match is None:
        return None
    year, month, day = map(int, match.groups())
    return (year, month, day) if 1850 <= year <= 2200 and 1 <= month <= 12 and 1 <= day <= 31 else None


def _age_years(ds: Dataset) -> int | None:
    """Stated age, else birth date to study date."""
    match = _AGE.fullmatch((_text(ds, "PatientAge") or "").upper())
    if match is not None:
        years = int(int(match[1]) * DAYS_PER_UNIT[match[2]] / DAYS_PER_UNIT["Y"] + 1e-9)
    else:
        born, studied = _date(ds, "PatientBirthDate"), _date(ds, "StudyDate")
        if born is None or studied is None:
            return None
        years = studied[0] - born[0] - (studied[1:] < born[1:])
    return min(years, OLDEST_AGE) if 0 <= years <= 130 else None


def _study_year(ds: Dataset) -> int | None:
    date = _date(ds, "StudyDate")
    return date[0] if date is not None else None


def _row_spacing(ds: Dataset) -> float | None:
    """Distance between rows in mm: at the patient if calibrated, else at the detector."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        spacing = _attempt(lambda keyword=keyword: float(ds.get(keyword)[0]))  # type: ignore[misc]
        if spacing is not None and math.isfinite(spacing) and 0.001 <= spacing <= 10:
            return spacing
    return None
