"""Header facts come out clean or not at all; identifiers never show; errors carry both."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import traceback

import numpy as np
import pytest
from decode_samples import SECRETS, dicom_bytes, dicom_object, grey_pixels
from pydicom import uid
from pydicom.dataset import Dataset

from cxr_ray.decode import Facts, Identifiers, decode, facts_of, identifiers_of
from cxr_ray.errors import InputError, UndecodableImage

# Writing malformed headers warns; reading them must not (held in test_decode_dicom.py).
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

PIXELS = grey_pixels()


def facts_with(**attributes: object) -> Facts:
    return decode(dicom_bytes(dicom_object(PIXELS, **attributes))).facts


def test_all_facts_of_a_complete_header() -> None:
    radiograph = decode(dicom_bytes(dicom_object(PIXELS)))
    assert radiograph.facts == Facts(
        view="PA",
        modality="CR",
        body_part="CHEST",
        photometric="MONOCHROME2",
        transfer_syntax=uid.ExplicitVRLittleEndian,
        manufacturer="Acme Imaging",
        sex="F",
        image_rows=60,
        image_columns=48,
        bits_stored=8,
        age_years=58,  # born 1961-04-07, studied 2020-03-15
        study_year=2020,
        pixel_spacing_mm=0.143,
    )
    assert radiograph.identifiers == Identifiers(
        "MRN-8812734", "ST-ELSEWHERE", "1.2.3.4.555.666", "1.2.3.4.777.888"
    )


def test_facts_are_the_columns_of_the_table() -> None:
    names = [field.name for field in dataclasses.fields(Facts)]
    columns = "view modality body_part photometric transfer_syntax manufacturer sex image_rows image_columns "
    assert names == (columns + "bits_stored age_years study_year pixel_spacing_mm").split()


@pytest.mark.parametrize(
    ("stated", "view", "is_lateral"),
    [
        ("pa ", "PA", False),
        ("AP", "AP", False),
        ("LL", "LL", True),
        ("LATERAL", "LATERAL", True),
        ("DOE JANE", None, False),
        ("", None, False),
    ],
)
def test_view(stated: str, view: str | None, is_lateral: bool) -> None:
    radiograph = decode(dicom_bytes(dicom_object(PIXELS, ViewPosition=stated)))
    assert radiograph.facts.view == view
    assert ("view_lateral" in radiograph.flags) is is_lateral


def test_view_from_the_code_sequence() -> None:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "R-10236", "SRT", "left lateral"
    assert facts_with(ViewPosition=None, ViewCodeSequence=[item]).view == "LL"


@pytest.mark.parametrize(
    ("stated", "body_part", "is_flagged"),
    [
        ("chest", "CHEST", False),
        ("THORAX", "THORAX", False),
        ("HIP", "HIP", True),
        ("", None, False),
        ("Doe, Jane 1961", None, False),
    ],
)
def test_body_part(stated: str, body_part: str | None, is_flagged: bool) -> None:
    radiograph = decode(dicom_bytes(dicom_object(PIXELS, BodyPartExamined=stated)))
    assert radiograph.facts.body_part == body_part
    assert ("body_part_not_chest" in radiograph.flags) is is_flagged


@pytest.mark.parametrize(
    ("stated", "years"),
    [
        ("045Y", 45),
        ("089Y", 89),
        ("090Y", 90),
        ("101Y", 90),
        ("011M", 0),
        ("018M", 1),
        ("006W", 0),
        ("010D", 0),
        ("45", 58),
        ("", 58),
    ],
)
def test_age_in_whole_years_and_from_the_birth_date_when_it_is_malformed(stated: str, years: int) -> None:
    assert facts_with(PatientAge=stated).age_years == years


def test_age_is_unknown_without_a_birth_date_or_when_it_is_impossible() -> None:
    assert facts_with(PatientBirthDate=None).age_years is None
    assert facts_with(PatientBirthDate="18700101").age_years is None
    assert facts_with(PatientBirthDate="20210101").age_years is None
    assert facts_with(PatientBirthDate="20200315").age_years == 0
    assert facts_with(PatientBirthDate="19200101").age_years == 90


def test_sex_manufacturer_and_spacing() -> None:
    assert [facts_with(PatientSex=sex).sex for sex in ("M", "f", "O", "X", "")] == ["M", "F", "O", None, None]
    assert facts_with(Manufacturer="Fuji & Co. (Japan)").manufacturer == "Fuji & Co. (Japan)"
    assert facts_with(Manufacturer="A" * 80).manufacturer == "A" * 64
    assert facts_with(Manufacturer="name\x1b[31m <b>").manufacturer is None
    assert facts_with(PixelSpacing=None, ImagerPixelSpacing=[0.2, 0.1]).pixel_spacing_mm == 0.2
    assert facts_with(PixelSpacing=[0, 0]).pixel_spacing_mm is None
    assert facts_with(PixelSpacing=None).pixel_spacing_mm is None


def test_absent_attributes_are_unknown_and_identifiers_are_trimmed() -> None:
    absent = dict.fromkeys((*SECRETS, "StudyDate", "PatientSex", "Manufacturer", "BodyPartExamined"))
    ds = dicom_object(PIXELS, **{k: v for k, v in absent.items() if k != "SOPInstanceUID"})
    ds.PatientID = "  42 "
    radiograph = decode(dicom_bytes(ds))
    assert radiograph.identifiers == Identifiers("42", None, None, "1.2.3.4.777.888")
    assert radiograph.facts.age_years is radiograph.facts.study_year is radiograph.facts.sex is None


# -- nothing personal gets out -----------------------------------------------------------------------


def assert_no_secret(text: str) -> None:
    for secret in SECRETS.values():
        assert secret not in text
        assert secret.encode().hex() not in text


def test_no_value_shows_in_facts_flags_or_repr() -> None:
    radiograph = decode(dicom_bytes(dicom_object(PIXELS)))
    assert_no_secret(repr(radiograph))
    assert_no_secret(str(radiograph.identifiers))
    assert_no_secret(f"{radiograph.facts}{radiograph.flags}")
    assert repr(radiograph.identifiers) == (
        "Identifiers(present=['patient_id', 'issuer', 'study_uid', 'instance_uid'])"
    )


def broken_objects() -> dict[str, bytes]:
    """Objects that fail in different places, with secrets also where no secret belongs."""
    name = SECRETS["PatientName"]
    whole = dicom_bytes(dicom_object(PIXELS))
    return {
        "cut": whole[:-100],
        "cut_header": whole[: whole.index(b"\x28\x00\x02\x00")],
        "modality": dicom_bytes(dicom_object(PIXELS, Modality="CT")),
        "frames": dicom_bytes(dicom_object(PIXELS, NumberOfFrames=3)),
        "bits": dicom_bytes(dicom_object(PIXELS, BitsAllocated=7)),
        "size": dicom_bytes(dicom_object(PIXELS, Rows=61)),
        "photometric": dicom_bytes(dicom_object(PIXELS, PhotometricInterpretation=name)),
        "syntax": whole.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"),
        "wrong_syntax": whole.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"),
    }


@pytest.mark.parametrize(
    "name",
    ["cut", "cut_header", "modality", "frames", "bits", "size", "photometric", "syntax", "wrong_syntax"],
)
def test_no_value_shows_in_an_error_or_its_traceback(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError) as caught:
        decode(broken_objects()[name])
    error = caught.value
    assert_no_secret(str(error))
    assert_no_secret(repr(error))
    assert_no_secret("".join(traceback.format_exception(error)))
    assert_no_secret(repr(facts_of(error)) + repr(identifiers_of(error)))
    assert capfd.readouterr() == ("", "")


def test_a_name_in_a_code_attribute_does_not_become_a_fact() -> None:
    secret = "Doe^Jane^Q"
    ds = dicom_object(PIXELS, Modality=secret, BodyPartExamined=secret, ViewPosition=secret)
    ds.Manufacturer, ds.PatientSex = secret, "F"
    assert secret.upper() not in repr(decode(dicom_bytes(ds)).facts).upper()


def test_an_error_carries_the_header_through_pickling() -> None:
    with pytest.raises(InputError) as caught:
        decode(dicom_bytes(dicom_object(PIXELS))[:-100])
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
        assert facts_of(error).view == "PA"
        assert facts_of(error).age_years == 58
        assert identifiers_of(error).patient_id == "MRN-8812734"


def test_an_error_without_a_header_has_empty_facts() -> None:
    assert facts_of(UndecodableImage("x")) == Facts()
    assert identifiers_of(UndecodableImage("x")) == Identifiers()


def test_malformed_numbers_do_not_stop_decoding() -> None:
    data = dicom_bytes(dicom_object(PIXELS)).replace(b"0.143", b"zebra")
    radiograph = decode(data)
    np.testing.assert_array_equal(radiograph.pixels, PIXELS)
    assert radiograph.facts.pixel_spacing_mm is None
