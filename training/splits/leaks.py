"""Refuse a split that lets one side see what is on another."""

from __future__ import annotations

from collections.abc import Sequence

from cxr_ray.errors import LeakError
from training.data.example import Example

_SHOWN = 5


def check_leaks(
    examples: Sequence[Example],
    content_sha256: Sequence[str | None],
    side: Sequence[str],
    image_id: Sequence[str] | None = None,
) -> None:
    """Check that no patient, no group and no file is on two sides.

    A group that was taken apart by patient (``regroup_large``) carries its patients as groups, so only they
    count. Examples that share a picture (two masks) must share a side too.

    Args:
        examples: all that take part, of every side.
        content_sha256: of each picture's encoded bytes; None is not compared.
        side: name of each example's side, e.g. "train" or "fold 3".
        image_id: of each picture in the shards, where known: two rows of one picture must share a side.

    Raises:
        LeakError: names patient keys or group keys (row numbers where ids are raw and there is no key), how
            many there are, and the sides.
    """
    patients = [example.patient for example in examples]
    _refuse("patient", patients, [_patient_name(example) for example in examples], side)
    groups: list[str | None] = [example.group for example in examples]
    _refuse("group", groups, [example.group_key for example in examples], side)
    _refuse("picture", image_id or [None] * len(examples), [example.called for example in examples], side)
    _refuse("file content", content_sha256, [example.called for example in examples], side)


def _patient_name(example: Example) -> str:
    return example.patient_key or f"row {example.row}"


def _refuse(what: str, values: Sequence[str | None], names: Sequence[str], side: Sequence[str]) -> None:
    members: dict[str, list[int]] = {}
    for index, value in enumerate(values):
        if value is not None:
            members.setdefault(value, []).append(index)
    torn = {
        value: indices for value, indices in members.items() if len({side[index] for index in indices}) > 1
    }
    if not torn:
        return
    pictures = sum(len(indices) for indices in torn.values())
    sides = sorted({side[index] for indices in torn.values() for index in indices})
    shown = []
    for indices in list(torn.values())[:_SHOWN]:
        # One name stands for all where they are equal (a patient key); else all that meet (two rows).
        shown.append(" = ".join(list(dict.fromkeys(names[index] for index in indices))[:_SHOWN]))
    more = f" and {len(torn) - _SHOWN} more" if len(torn) > _SHOWN else ""
    raise LeakError(
        f"{len(torn)} {what}{'s' if len(torn) > 1 else ''} ({pictures} pictures) on more than one side of the split "
        f"({', '.join(sides)}): {'; '.join(shown)}{more}; give each {what} one side in the manifest"
    )
