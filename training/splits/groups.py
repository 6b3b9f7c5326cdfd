"""Which groups may be taken apart after all when pictures are dealt to folds (what belongs together: data/units.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from training.data.example import Example

_SMALLEST_LARGE = 30
"""Pictures. A smaller group fills most of a source only where the source is tiny; no fold suffers much from it."""


@dataclass(frozen=True, kw_only=True)
class Regrouped:
    """One group that was taken apart by patient; safe to store and print."""

    group_key: str
    """The group, as ``Example.group_key`` had it."""
    source: str
    """The source of which the group held too much."""
    share: float
    """Share of the source's pictures in the group, 0 to 1."""
    pictures: int
    """Pictures of the group, of all sources."""
    patients: int
    """Groups that it became."""


def regroup_large(
    examples: Sequence[Example], *, max_group_share: float
) -> tuple[list[Example], list[Regrouped]]:
    """Take groups that swallow a source apart by patient; call it first, on the training examples only.

    Groups that chain near copies can grow until one fold, or the calibration split, would hold a whole
    source. Such a group (at least 30 pictures, and more than ``max_group_share`` of a source) is replaced by
    its patients; a picture of unknown patient stays alone. Near copies of different patients may then stand
    on two sides of a fold: say so where results are reported. For folds only: the calibration split is drawn
    from whole groups, and those taken apart here stay in training.

    Args:
        examples: those of the training split.
        max_group_share: 0 to 1; 1 never takes a group apart.

    Returns:
        the examples, in order, with ``group`` and ``group_key`` replaced where a group was taken apart; and
        one record per such group. ``unit_key`` stays: intervals go on drawing the whole group as one.
    """
    by_source = Counter(example.source or "" for example in examples)
    in_group = Counter((example.group, example.source or "") for example in examples)
    sizes = Counter(example.group for example in examples)
    large: dict[str, tuple[str, float]] = {}
    for (group, source), count in sorted(in_group.items()):
        share = count / by_source[source]
        if sizes[group] >= _SMALLEST_LARGE and share > max(max_group_share, large.get(group, ("", 0.0))[1]):
            large[group] = (source, share)
    first_rows: dict[str, int] = {}
    for example in examples:
        first_rows.setdefault(example.patient or example.id, example.row)
    regrouped = [
        _by_patient(example, first_rows) if example.group in large else example for example in examples
    ]
    records = []
    for group, (source, share) in large.items():
        members = [index for index, example in enumerate(examples) if example.group == group]
        records.append(
            Regrouped(
                group_key=examples[members[0]].group_key,
                source=source,
                share=round(share, 4),
                pictures=len(members),
                patients=len({regrouped[index].group for index in members}),
            )
        )
    return regrouped, records


def _by_patient(example: Example, first_rows: Mapping[str, int]) -> Example:
    name = example.patient or example.id
    # Raw ids without a key have row numbers for names, as in read_manifest.
    return replace(example, group=name, group_key=example.patient_key or f"row {first_rows[name]}")
