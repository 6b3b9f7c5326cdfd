"""The manifest of training data: which picture shows what, whose it is and where its mask lies.

The format is documented in docs/reference/training-manifest.md. Only ``file`` is required; every other
column is used where it is there. Raw patient identifiers stay in memory: messages and tables carry
``patient_key``, ``group_key`` and row numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import TrainingDataError
from cxr_ray.pipeline.planner import age_in_years
from cxr_ray.pipeline.privacy import PSEUDONYMS, Privacy, resolve_privacy
from training.data.table import read_text_columns

#: Our name -> what the column may be called, case ignored, where the settings do not say.
ALIASES: dict[str, tuple[str, ...]] = {
    "file": ("file", "uri", "path"),
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
_SHOWN = 5  # at most so many names in one message


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


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row of the manifest. Empty cells are None."""

    file: str
    """As written: a URL, an absolute path, or one below the root."""
    member: str | None = None
    """Name inside ``file``, where that is a tar or zip."""
    id: str = ""
    """The user's name of the row; default: file and member."""
    label: str | None = None
    """Class name, after ``label_map``."""
    mask: str | None = None
    """File of the lung mask, written as ``file`` is."""
    mask_style: str | None = None
    """What counts as lung in the mask, e.g. ``v7`` or ``jms``; styles are never mixed."""
    patient: str | None = field(default=None, repr=False)
    """As written; may be a raw identifier, so it goes into no table, log or message."""
    group: str = field(default="", repr=False)
    """What must stay on one side of a split; default: the patient, else ``id``. May be raw, as ``patient``."""
    source: str | None = None
    """Hospital or collection."""
    split: str | None = None
    """As written, e.g. ``train``, ``val``, ``test``."""
    view: str | None = None
    """``PA``, ``AP``, ..."""
    age_years: int | None = None
    """Whole years; 90 means 90 or more."""
    pediatric: bool | None = None
    """Under 18; from the column, else from the age; None where neither is known."""
    licence: str | None = None
    """As written, the mask's included."""
    row: int = 0
    """Number of the row; the first after the header is 1."""
    patient_key: str | None = None
    """Safe form of ``patient``: the pseudonym itself, or a keyed hash; None with raw ids and no key."""
    group_key: str = ""
    """Safe form of ``group``, never empty; with raw ids and no key "row N" of the group's first row."""
    called: str = ""
    """How messages name this row: row number, and the id where ids are pseudonyms."""

    def __post_init__(self) -> None:
        default_id = self.file if self.member is None else f"{self.file}::{self.member}"
        defaults = {"id": default_id, "group": self.patient or self.id or default_id}
        for name, value in defaults.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        # An Example made by hand is taken at its word; read_manifest always gives safe ones.
        for name, value in {"group_key": self.group, "called": self.id}.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)


def manifest_root(settings: ManifestSettings) -> str:
    """The address that relative files and masks start from, canonical."""
    storage = open_storage(settings.path, settings.options)
    return storage.at(settings.root or storage.url.rsplit("/", 1)[0] or storage.url).url


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
    labels = _Labels(settings.label_map)
    first_rows: dict[str, int] = {}
    examples = [
        _example(number, row, labels, privacy, first_rows) for number, row in enumerate(rows, start=1)
    ]
    labels.check()
    _check_repetitions(examples)
    return examples


def check_classes(examples: Iterable[Example], classes: Sequence[str], *, where: str) -> dict[str, int]:
    """Pictures of each class, in the order of ``classes``.

    Args:
        where: names the examples in the message, e.g. "the training split".

    Raises:
        TrainingDataError: an example without label, or of another class, or a class without example.
    """
    examples = list(examples)
    unlabelled = [example for example in examples if example.label is None]
    if unlabelled:
        raise TrainingDataError(
            f"{len(unlabelled)} of {len(examples)} pictures in {where} have no label ({_names(unlabelled)}); "
            "label them or take them out of the manifest"
        )
    counts = Counter(str(example.label) for example in examples)
    other = sorted(set(counts) - set(classes))
    if other:
        strange = [example for example in examples if example.label in other]
        raise TrainingDataError(
            f"{len(strange)} pictures in {where} are of no class in {', '.join(classes)} ({_names(strange)}); "
            "set manifest.label_map or classes"
        )
    empty = [name for name in classes if not counts[name]]
    if empty:
        raise TrainingDataError(
            f"class {' and class '.join(empty)} has no picture in {where} ({len(examples)} pictures in all); "
            "training needs pictures of every class"
        )
    return {name: counts[name] for name in classes}


class _Labels:
    """Maps labels, and gathers those the map does not know for one message."""

    def __init__(self, label_map: Mapping[str, str]) -> None:
        self.map = dict(label_map)
        self.unknown: list[tuple[int, str]] = []

    def __call__(self, row: int, text: str | None) -> str | None:
        if text is None or not self.map:
            return text
        if text not in self.map:
            self.unknown.append((row, text))
        return self.map.get(text)

    def check(self) -> None:
        if not self.unknown:
            return
        rows = ", ".join(str(row) for row, _ in self.unknown[:_SHOWN])
        # A column named by mistake may hold identifiers; a label is a word that comes again and again.
        again = [text for text, count in Counter(text for _, text in self.unknown).items() if count > 1]
        words = f" such as {again[0]!r}" if again and len(again) <= _SHOWN else ""
        raise TrainingDataError(
            f"{len(self.unknown)} rows have a label{words} that manifest.label_map does not know "
            f"(rows {rows}{', ...' if len(self.unknown) > _SHOWN else ''}); "
            f"it knows {', '.join(sorted(self.map))}"
        )


def _example(
    number: int, row: Mapping[str, str | None], labels: _Labels, privacy: Privacy, first_rows: dict[str, int]
) -> Example:
    file, member, patient = row.get("file"), row.get("member"), row.get("patient")
    if file is None:
        raise TrainingDataError(f"row {number} of the manifest names no file; fill the cell or drop the row")
    identity = row.get("id") or (file if member is None else f"{file}::{member}")
    group = row.get("group") or patient or identity
    first = first_rows.setdefault(group, number)
    safe = privacy.manifest_ids == PSEUDONYMS
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
        split=row.get("split"),
        view=row.get("view"),
        age_years=age_in_years(row.get("age_years")),
        pediatric=_pediatric(number, row.get("pediatric"), age_in_years(row.get("age_years"))),
        licence=row.get("licence"),
        row=number,
        patient_key=privacy.manifest_key("patient", patient),
        group_key=privacy.manifest_key(name, group) or f"row {first}",
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
                f"({_names(repeated)}); keep one of each"
            )


def _names(examples: Sequence[Example]) -> str:
    shown = "; ".join(example.called for example in examples[:_SHOWN])
    return shown + ("; ..." if len(examples) > _SHOWN else "")
