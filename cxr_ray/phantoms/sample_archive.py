"""A small mixed archive of phantoms: 8-bit and 16-bit PNG, JPEG, DICOM of both polarities, one broken file.

Every file says that it is synthetic: the name, the burned-in word, PNG text, JPEG comment, DICOM descriptions
and made-up identifiers, and a README beside them (text files are no images and are left out of a listing).
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

from cxr_ray.errors import OutputError, UsageError
from cxr_ray.phantoms.drawing import MAXIMUM, phantom

SYNTHETIC_NOTE: Final = "SYNTHETIC PHANTOM"
README_NAME: Final = "README.txt"

_KINDS: Final = ("png8", "monochrome2", "jpeg", "png16", "monochrome1")
_README: Final = """\
SYNTHETIC PHANTOMS

These {count} files were drawn by a program (cxr_ray.phantoms, seed {seed}). They show no one, come from no
patient, and every identifier in them is made up. They exist to try the software out: a score on them means
nothing.
The last file is broken on purpose (a PNG that breaks off), to show what becomes of unreadable input.
"""


def write_sample_archive(directory: Path | str, *, count: int = 12, seed: int = 0) -> list[Path]:
    """Write ``count`` synthetic inputs and a README into ``directory``, which is made if needed.

    For one ``seed`` (and one version of the image libraries) the bytes are always the same, so writing again
    is harmless. The last file is a truncated PNG. Returns the paths of the inputs, in order.

    Raises:
        UsageError: ``count`` under 2.
        OutputError: ``directory`` cannot be written, or holds files that are not of such an archive: phantoms
            must never be mixed with real films.
    """
    if count < 2:
        raise UsageError(f"a sample archive has at least 2 files (the last one is broken), got {count}")
    directory = Path(directory)
    suffixes = {"png8": "png", "png16": "png", "jpeg": "jpg", "monochrome1": "dcm", "monochrome2": "dcm"}
    kinds = [*(_KINDS[index % len(_KINDS)] for index in range(count - 1)), "png8"]
    names = [f"synthetic-{index:03d}.{suffixes[kind]}" for index, kind in enumerate(kinds)]
    names[-1] = f"synthetic-{count - 1:03d}-broken.png"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        foreign = sorted({path.name for path in directory.iterdir()} - {*names, README_NAME})
        if foreign:
            raise OutputError(
                f"{directory} already holds other files ({foreign[0]}); "
                "choose an empty directory, so that phantoms are never mixed with real films"
            )
        for index, (name, kind) in enumerate(zip(names, kinds, strict=True)):
            # One stream per file: a longer archive begins with the files of a shorter one.
            data = _encode(phantom(np.random.default_rng([seed, index])), kind, seed=seed, index=index)
            (directory / name).write_bytes(data[: len(data) // 2] if index == count - 1 else data)
        (directory / README_NAME).write_text(_README.format(count=count, seed=seed), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"the sample archive cannot be written to {directory}: {error.strerror}") from error
    return [directory / name for name in names]


def _encode(pixels_HW: NDArray[np.uint16], kind: str, *, seed: int, index: int) -> bytes:
    if kind.startswith("monochrome"):
        return _dicom(pixels_HW, inverted=kind == "monochrome1", seed=seed, index=index)
    buffer = io.BytesIO()
    if kind == "jpeg":
        Image.fromarray(_eight_bits(pixels_HW)).save(
            buffer, "JPEG", quality=92, comment=SYNTHETIC_NOTE.encode()
        )
        return buffer.getvalue()
    text = PngInfo()
    text.add_text("Description", SYNTHETIC_NOTE)
    # 12 bits to 16, so that a reader who drops the low byte would be noticed.
    picture = _eight_bits(pixels_HW) if kind == "png8" else pixels_HW * np.uint16(16)
    Image.fromarray(picture).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def _eight_bits(pixels_HW: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return (pixels_HW >> 4).astype(np.uint8)


def _uid(*parts: object) -> str:
    """A UID of the form 2.25.<number>, which anyone may make up, fixed by its parts."""
    digest = hashlib.sha256("|".join(map(str, (SYNTHETIC_NOTE, *parts))).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:15], 'big')}"


def _dicom(pixels_HW: NDArray[np.uint16], *, inverted: bool, seed: int, index: int) -> bytes:
    """A 12-bit CR object; ``inverted`` stores white as 0 and says MONOCHROME1, as many digitisers do."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = _uid("instance", seed, index)
    dataset.file_meta.ImplementationClassUID = _uid("implementation")
    dataset.StudyInstanceUID = _uid("study", seed, index)
    dataset.SeriesInstanceUID = _uid("series", seed, index)
    dataset.PatientName = "SYNTHETIC^PHANTOM"
    dataset.PatientID = f"SYNTHETIC-{seed}-{index:04d}"
    dataset.PatientSex = "FM"[index % 2]
    dataset.PatientAge = f"{30 + index % 60:03d}Y"
    dataset.StudyID = "SYNTHETIC"
    dataset.StudyDate = "20200101"
    dataset.StudyDescription = dataset.SeriesDescription = dataset.ImageComments = SYNTHETIC_NOTE
    dataset.Manufacturer = SYNTHETIC_NOTE
    dataset.Modality = "CR"
    dataset.BodyPartExamined = "CHEST"
    dataset.ViewPosition = "PA"
    dataset.Rows, dataset.Columns = pixels_HW.shape
    dataset.PixelSpacing = [0.7, 0.7]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    stored_HW = np.uint16(MAXIMUM) - pixels_HW if inverted else pixels_HW
    dataset.PixelData = stored_HW.astype("<u2").tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
