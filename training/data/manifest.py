"""The manifest of training data: which picture shows what, whose it is and where its mask lies.

The format is documented in docs/reference/training-manifest.md. Only ``file`` is required; every other
column is used where it is there. Raw patient identifiers stay in memory: messages and tables carry
``patient_key``, ``group_key`` and row numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import TrainingDataError
from cxr_ray.pipeline.privacy import PSEUDONYMS, Privacy, read_key, resolve_privacy
from cxr_ray.pipeline.spool import age_in_years
from training.data.example import Example, names
from training.data.labels import Labels
from training.data.table import read_text_columns

#: Our name -> what the column may be called, case ignored, first match wins, where the settings do not say. A file
#: is found as ``jobs/ingest.py`` finds it, so that both read the same column.
ALIASES: dict[str, tuple[str, ...]] = {
    "file": ("uri", "file", "path"),
    "member": ("member",),
    "id": ("id",),
    "label": ("label",),
    "mask": ("mask",),
    "mask_style": ("mask_style",),
    "patient": ("patient", "patient_id"),
    "group": ("group",),
    "source": ("source",),
    "split": ("split",),
    "view": ("view",),
    "age_years": ("age_years", "age"),
    "pediatric": ("pediatric",),
    "licence": ("licence", "license"),
}
_YES_NO = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(kw_only=True)
class ManifestSettings:
    """How to read a manifest."""

    path: str = ""
    """The manifest: CSV or Parquet, on any fsspec URL."""
    options: dict[str, Any] = field(default_factory=dict)
    """fsspec options of the manifest, its pictures and its masks; never recorded."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our column name -> theirs, e.g. ``{patient: case_number}``; what is not named is found by its usual names."""
    root: str | None = None
    """Address that relative files and masks start from; default: the manifest's own folder."""
    label_map: dict[str, str] = field(default_factory=dict)
    """Label in the manifest -> class name, e.g. ``{covid: Covid+, noncovid: Covid-}``; empty: taken as it is."""
    manifest_ids: str = "raw"
    """``raw``: patient and group are hashed wherever they leave; ``pseudonyms``: they are safe already."""
    key_env: str | None = "CXR_RAY_KEY"
    """Environment variable that holds the secret for the hashes."""
    key_file: str | None = None
    """File that holds the secret; wins over ``key_env``."""


def manifest_root(settings: ManifestSettings) -> str:
    """The address that relative files and masks start from, canonical."""
    storage = open_storage(settings.path, settings.options)
    return storage.at(settings.root or storage.url.rsplit("/", 1)[0] or storage.url).url


def manifest_key(settings: ManifestSettings) -> bytes | None:
    """The secret of the hashes, where one is given. Raises UsageError for an unusable one."""
    return read_key(settings.key_env, settings.key_file)


def read_manifest(settings: ManifestSettings) -> list[Example]:
    """Read a manifest; examples in its order.

    Raises:
        TrainingDataError: no such file, no table, no file column, an empty file cell, a label that
            ``label_map`` does not know, a row or an id that stands twice, a yes/no cell that is neither.
        UsageError: an unknown ``manifest_ids``, or an unusable key.
        StorageReadError: the storage failed.
    """
    if not settings.path.strip():
        raise TrainingDataError(
            "manifest.path is empty; give manifest.path=FILE of a CSV or Parquet manifest"
        )
    privacy = resolve_privacy(
        key_env=settings.key_env,
        key_file=settings.key_file,
        keep_uri=True,
        keep_year=False,
        manifest_ids=settings.manifest_ids,
    )
    columns = read_text_columns(open_storage(settings.path, settings.options), settings.columns, ALIASES)
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    if not rows:
        raise TrainingDataError(f"the manifest {settings.path} has a header but no rows")
    labels = Labels(settings.label_map)
    first_rows: dict[str, int] = {}
    examples = [
        _example(number, row, labels, privacy, first_rows) for number, row in enumerate(rows, start=1)
    ]
    labels.check()
    _check_repetitions(examples)
    return examples


def _example(
    number: int, row: Mapping[str, str | None], labels: Labels, privacy: Privacy, first_rows: dict[str, int]
) -> Example:
    file, member, patient = row.get("file"), row.get("member"), row.get("patient")
    if file is None:
        raise TrainingDataError(f"row {number} of the manifest names no file; fill the cell or drop the row")
    identity = row.get("id") or (file if member is None else f"{file}::{member}")
    group = row.get("group") or patient or identity
    first = first_rows.setdefault(group, number)
    # A file path is nobody's pseudonym: what stands in for a missing id is hashed like a raw identifier.
    own_id = row.get("id") is not None
    safe = privacy.manifest_ids == PSEUDONYMS and own_id
    id_key = privacy.manifest_key("id", identity) if own_id else privacy.hashed("id", identity)
    # A group named by the patient alone has the patient's key, so that tables of both can be joined.
    name = "patient" if group == patient else "group"
    return Example(
        file=file,
        member=member,
        id=identity,
        label=labels(number, row.get("label")),
        mask=row.get("mask"),
        mask_style=row.get("mask_style"),
        patient=patient,
        group=group,
        source=row.get("source"),
        split=(row["split"] or "") if "split" in row else None,
        view=row.get("view"),
        age_years=age_in_years(row.get("age_years")),
        pediatric=_pediatric(number, row.get("pediatric"), age_in_years(row.get("age_years"))),
        licence=row.get("licence"),
        row=number,
        patient_key=privacy.manifest_key("patient", patient),
        group_key=(id_key if group == identity else privacy.manifest_key(name, group)) or f"row {first}",
        id_key=id_key,
        called=f"row {number} ({identity})" if safe else f"row {number}",
    )


def _pediatric(number: int, text: str | None, age_years: int | None) -> bool | None:
    if text is None:
        return None if age_years is None else age_years < 18
    if text.lower() not in _YES_NO:
        raise TrainingDataError(
            f"row {number} of the manifest has a pediatric cell that is none of {', '.join(_YES_NO)}; "
            "leave it empty where the age is not known"
        )
    return _YES_NO[text.lower()]


def _check_repetitions(examples: Sequence[Example]) -> None:
    """A picture may stand twice only with two masks; an id never."""
    kinds = {
        "name the same picture and mask as an earlier row": lambda one: (one.file, one.member, one.mask),
        "repeat the id of an earlier row": lambda one: one.id,
    }
    for what, key in kinds.items():
        counts = Counter(key(example) for example in examples)
        repeated = [example for example in examples if counts[key(example)] > 1]
        if repeated:
            raise TrainingDataError(
                f"{len(repeated) - sum(count > 1 for count in counts.values())} rows of the manifest {what} "
                f"({names(repeated)}); keep one of each"
            )
