"""From planned images to the unit table: read, decode, preprocess; every input becomes a row.

Pure Python and NumPy, no Ray: the Ray stage, the tests and the bare-loop benchmark call the same function.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from cxr_ray.archives.reading import read_inputs
from cxr_ray.decode import Facts, Identifiers
from cxr_ray.errors import InputError
from cxr_ray.pipeline.decoding.child_process import ProcessLimits
from cxr_ray.pipeline.decoding.decoded import Decoded, Recipe, decode_content
from cxr_ray.pipeline.decoding.isolated import isolated_decoder
from cxr_ray.pipeline.plan import PlannedImage
from cxr_ray.pipeline.privacy import Privacy
from cxr_ray.shards import QUARANTINED, READY, table_of

#: Called as ``report(stage, images)`` now and then; a no-op by default.
Report = Callable[[str, int], None]

DECODED = "decoded"

#: An image's decode process is gone and another one tries: no image is done, but the worker is not stuck either.
DECODE_AGAIN = "decode_again"

_REPORT_EVERY = 16


def no_report(stage: str, images: int) -> None:
    """The default ``Report``: nobody listens."""


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """What a worker needs to read and decode; sent to workers, never recorded.

    Attributes:
        process_limits: decode in a process of its own, within these. None decodes in this process, without
            limits: the same rows, but a file that crashes its decoder crashes the caller.
    """

    archive_url: str | None = None
    archive_options: dict[str, Any] = field(default_factory=dict, repr=False)
    decode_policy: str = "corrected"
    max_bytes: int = 512 * 2**20
    max_pixels: int = 150_000_000
    privacy: Privacy = field(default_factory=Privacy)
    process_limits: ProcessLimits | None = None


def decode_unit(
    images: Sequence[PlannedImage], settings: InputSettings, report: Report = no_report
) -> pa.Table:
    """The unit table (``UNIT_SCHEMA``) of planned images of one container, in their order."""
    rows = []
    waiting = 0
    for row in decode_rows(images, settings, report):
        rows.append(row)
        waiting += 1
        if waiting == _REPORT_EVERY:
            report(DECODED, waiting)
            waiting = 0
    if waiting:
        report(DECODED, waiting)
    return table_of(rows)


def decode_rows(
    images: Sequence[PlannedImage], settings: InputSettings, report: Report = no_report
) -> Iterator[dict[str, Any]]:
    """One row per planned image, in order, reading lazily (a tar.gz streams). Reports ``DECODE_AGAIN`` only."""
    sources = [image.source for image in images]
    contents: Iterable[bytes | InputError] = read_inputs(
        sources, settings.archive_options, max_bytes=settings.max_bytes, root=settings.archive_url
    )
    for image, content in zip(images, contents, strict=True):
        yield decode_row(image, content, settings, report)


def decode_row(
    image: PlannedImage, content: bytes | InputError, settings: InputSettings, report: Report = no_report
) -> dict[str, Any]:
    """Row of one image. Any ``InputError`` becomes a quarantined row with the facts known by then."""
    row = _planned_columns(image, settings.privacy)
    if isinstance(content, InputError):
        decoded = Decoded(error=content)
    else:
        row["content_sha256"] = hashlib.sha256(content).hexdigest()
        decoded = _decoded(image, content, settings, report)
    _add_facts(row, image, decoded.facts, decoded.identifiers, settings.privacy)
    row["flags"] = sorted(set(decoded.flags))
    row["pixels"] = decoded.pixels
    if decoded.error is None:
        row["status"] = READY
    else:
        row.update(status=QUARANTINED, reason=decoded.error.code, detail=str(decoded.error))
    return row


def _decoded(image: PlannedImage, content: bytes, settings: InputSettings, report: Report) -> Decoded:
    recipe = Recipe(
        policy=settings.decode_policy, max_bytes=settings.max_bytes, max_pixels=settings.max_pixels
    )
    if settings.process_limits is None:
        return decode_content(content, recipe)
    decoder = isolated_decoder(settings.process_limits)
    return decoder.decode(image.image_id, content, recipe, on_death=lambda: report(DECODE_AGAIN, 1))


def _planned_columns(image: PlannedImage, privacy: Privacy) -> dict[str, Any]:
    return {
        "image_id": image.image_id,
        "uri": image.uri if privacy.keep_uri else None,
        "member": image.member if privacy.keep_uri else None,
        "patient_key": image.patient_key,
        "study_key": image.study_key,
        "view": image.view,
        "sex": image.sex,
        "age_years": image.age_years,
        "label": image.label,
        "carry": image.carry,
        "flags": [],
    }


def _add_facts(
    row: dict[str, Any], image: PlannedImage, facts: Facts, identifiers: Identifiers, privacy: Privacy
) -> None:
    """Header facts into the row; what the user's manifest says wins over the header."""
    for name, value in asdict(facts).items():
        if row.get(name) is None:
            row[name] = value
    if not privacy.keep_year:
        row["study_year"] = None
    row["patient_key"] = image.patient_key or privacy.hashed(
        "patient", identifiers.patient_id, identifiers.issuer
    )
    row["study_key"] = image.study_key or privacy.hashed("study", identifiers.study_uid)
    row["instance_key"] = privacy.hashed("instance", identifiers.instance_uid)
