"""One row of the training manifest, with the safe forms of what may identify a patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

SHOWN = 5
"""At most so many names in one message."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row of the manifest. Empty cells are None, ``split`` apart."""

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
    """As written, e.g. ``train``, ``val``, ``test``; "" for an empty cell, None where there is no such column."""
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
    unit_key: str = ""
    """What intervals draw as one, safe: names all pictures that are linked, directly or through others, by group,
    patient or file (``load_frames`` fills it in); ``group_key`` where that is not known."""
    id_key: str | None = None
    """Safe form of ``id``: the pseudonym itself, or a keyed hash; None with raw ids and no key."""
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
        if not self.unit_key:
            object.__setattr__(self, "unit_key", self.group_key)


def names(examples: Sequence[Example]) -> str:
    """The first few, as messages name them."""
    shown = "; ".join(example.called for example in examples[:SHOWN])
    return shown + ("; ..." if len(examples) > SHOWN else "")
