"""Folds, calibration split and leak checks: whole groups, every cell spread, and refusals that name no one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cxr_ray.errors import LeakError, TrainingDataError
from training.data.example import Example
from training.data.licences import allows
from training.data.manifest import ManifestSettings, read_manifest
from training.data.units import components, with_units
from training.splits.calibration import calibration_split
from training.splits.dealing import mixed_sources
from training.splits.folds import FoldSettings, assign_folds, grouped_folds, published_folds
from training.splits.groups import regroup_large
from training.splits.leaks import check_leaks


def made(count: int = 240, seed: int = 0) -> list[Example]:
    """Patients of one to four pictures in three sources; ``both`` holds two classes, with few negatives."""
    random = np.random.default_rng(seed)
    examples: list[Example] = []
    while len(examples) < count:
        patient = f"p{len(examples)}"
        source = ["both", "sick", "well"][int(random.integers(3))]
        label = {"sick": "Covid+", "well": "Covid-"}.get(source) or random.choice(
            ["Covid+", "Covid-"], p=[0.8, 0.2]
        )
        for _ in range(int(random.integers(1, 5))):
            number = len(examples)
            examples.append(
                Example(
                    file=f"{number:04d}.png", label=str(label), source=source, patient=patient, row=number + 1
                )
            )  # fmt: skip
    return examples


def test_folds_keep_groups_and_spread_cells() -> None:
    examples = made()
    folds = assign_folds(examples, FoldSettings())
    assert sorted(set(folds)) == list(range(6))
    for indices in components(examples):
        assert len({folds[index] for index in indices}) == 1
    cells = Counter((one.source, one.label) for one in examples)
    held = Counter((one.source, one.label, fold) for one, fold in zip(examples, folds, strict=True))
    for (source, label), total in cells.items():
        counts = [held[source, label, fold] for fold in range(6)]
        # Groups hold up to four pictures, so no cell can be cut closer than that.
        assert max(counts) - min(counts) <= 4, (source, label, total, counts)


def test_folds_depend_on_names_and_seed_only() -> None:
    examples = made()
    folds = dict(zip((one.id for one in examples), assign_folds(examples, FoldSettings()), strict=True))
    order = np.random.default_rng(1).permutation(len(examples))
    shuffled = [examples[int(index)] for index in order]
    assert folds == dict(
        zip((one.id for one in shuffled), assign_folds(shuffled, FoldSettings()), strict=True)
    )
    assert folds != dict(
        zip((one.id for one in examples), assign_folds(examples, FoldSettings(seed=2)), strict=True)
    )


def test_a_patient_in_two_groups_stays_together() -> None:
    examples = [
        Example(file="a", patient="p", group="g1"),
        Example(file="b", patient="p", group="g2"),
        Example(file="c", patient="q", group="g2"),
        Example(file="d", patient="r", group="g3"),
    ]
    assert components(examples) == [[0, 1, 2], [3]]
    assert components(examples, [["x", None, "y", "y"]]) == [[0, 1, 2, 3]]
    assert components(examples, [["x", None, "x", None]]) == [[0, 1, 2], [3]]


def test_what_intervals_draw_is_all_that_is_linked() -> None:
    examples = [
        Example(file="a", patient="Doe", group="study 1", group_key="row 1", row=1),
        Example(file="b", patient="Doe", group="study 2", group_key="row 2", row=2),
        Example(file="c", group_key="row 3", row=3),
        Example(file="d", group_key="row 4", row=4),
    ]
    assert [one.unit_key for one in with_units(examples)] == ["row 1", "row 1", "row 3", "row 4"]
    copies: list[str | None] = [None, "sha", None, "sha"]
    assert [one.unit_key for one in with_units(examples, [copies])] == ["row 1", "row 1", "row 3", "row 1"]
    # A study alone would be narrower than its patient.
    assert [one.group_key for one in with_units(examples)] == ["row 1", "row 2", "row 3", "row 4"]


def test_what_stays_is_not_drawn_and_copies_are_not_cut() -> None:
    examples = made()
    label = [one.label for one in examples]
    stay = {index for index, one in enumerate(examples) if one.source == "sick"}
    copies: list[str | None] = [None] * len(examples)
    copies[0] = copies[100] = copies[200] = "one file"
    chosen = calibration_split(examples, share=0.15, seed=1, also=[copies], stay=stay)
    assert not chosen & stay
    assert {index in chosen for index in (0, 100, 200)} in ({True}, {False})
    # What stays counts for the share that is wanted, so the others give more where they can.
    assert 0.1 <= len(chosen) / len(examples) <= 0.18
    assert {label[index] for index in chosen} == {"Covid+", "Covid-"}
    folds = assign_folds(examples, FoldSettings(), [copies])
    assert folds[0] == folds[100] == folds[200]


def test_a_class_with_too_few_groups_is_refused() -> None:
    examples = [Example(file=f"{n}", label="Covid+" if n < 3 else "Covid-") for n in range(30)]
    with pytest.raises(
        TrainingDataError, match=r"class Covid\+ has 3 pictures in 3 groups, too few for 6 folds"
    ):
        grouped_folds(examples, 6, 1)
    with pytest.raises(TrainingDataError, match=r"folds\.count must lie between 2 and"):
        assign_folds(examples, FoldSettings(count=1))
    with pytest.raises(TrainingDataError, match=r"folds\.rule"):
        assign_folds(examples, FoldSettings(rule="random"))


def test_calibration_takes_whole_groups_of_every_class() -> None:
    examples = made()
    chosen = calibration_split(examples, share=0.15, seed=1)
    assert 0.13 <= len(chosen) / len(examples) <= 0.17
    for indices in components(examples):
        assert len({index in chosen for index in indices}) == 1
    for label in ("Covid+", "Covid-"):
        members = [index for index, one in enumerate(examples) if one.label == label]
        assert 0.12 <= len(chosen.intersection(members)) / len(members) <= 0.18
    with pytest.raises(TrainingDataError, match="between 0 and 1"):
        calibration_split(examples, share=1.0)
    with pytest.raises(TrainingDataError, match="no picture left for"):
        calibration_split([Example(file=f"{n}", label="Covid-" if n else "Covid+") for n in range(20)])


def test_large_groups_are_taken_apart_by_patient() -> None:
    chained = [
        Example(file=f"{n}", group="g", patient=f"p{n // 2}" if n < 38 else None, source="x", row=n + 1)
        for n in range(40)
    ]
    small = [Example(file=f"s{n}", group="h", patient=f"q{n}", source="y", row=50 + n) for n in range(5)]
    examples, records = regroup_large([*chained, *small], max_group_share=0.5)
    assert [(one.source, one.pictures, one.patients, one.share) for one in records] == [("x", 40, 21, 1.0)]
    assert len({one.group for one in examples[:40]}) == 21
    # Raw ids without a key: the names of the new groups are row numbers, one for each patient.
    assert [one.group_key for one in examples[:4]] == ["row 1", "row 1", "row 3", "row 3"]
    assert examples[40:] == small
    assert regroup_large([*chained, *small], max_group_share=1.0) == ([*chained, *small], [])


def test_published_folds() -> None:
    names = [f"{number:06d}" for number in range(2265)]
    folds = published_folds(names)
    assert [len(fold) for fold in folds] == [378, 378, 378, 377, 377, 377]  # as the specification counts them
    assert sorted(index for fold in folds for index in fold) == list(range(2265))
    # The draws of NumPy's legacy generator, made from the names themselves as the original did.
    permuted = np.random.RandomState(1338).permutation(names)
    order = np.random.RandomState(20).permutation(2265)
    assert {names[index] for index in folds[0]} == set(permuted[np.sort(order[:378])])
    examples = [Example(file=name) for name in names[::-1]]
    assigned = assign_folds(examples, FoldSettings(rule="published"))
    assert {one.id for one, fold in zip(examples, assigned, strict=True) if fold == 0} == {
        names[index] for index in folds[0]
    }


def leak(examples: list[Example], side: list[str], content: list[str | None] | None = None) -> str:
    with pytest.raises(LeakError) as caught:
        check_leaks(examples, content or [None] * len(examples), side)
    assert "Doe" not in str(caught.value)
    return str(caught.value)


def test_leaks_are_refused_and_named_by_key() -> None:
    first = Example(file="1", patient="Doe^John", patient_key="ab12", group="g1", row=1, called="row 1")
    second = replace(first, file="2", id="2", row=2, called="row 2", group="g2", group_key="g2")
    message = leak([first, second], ["train", "test"])
    assert "1 patient (2 pictures) on more than one side of the split (test, train): ab12;" in message
    check_leaks([first, second], [None, None], ["train", "train"])


def test_leaks_of_raw_patients_name_rows() -> None:
    first = Example(file="1", patient="Doe^John", group_key="row 1", row=1, called="row 1")
    second = replace(first, file="2", id="2", row=2, called="row 2")
    assert "row 1 = row 2" in leak([first, second], ["fold 0", "fold 1"])


def test_leaks_of_groups_and_contents() -> None:
    examples = [Example(file=f"{number}", group="g", called=f"row {number}") for number in range(2)]
    assert "1 group (2 pictures)" in leak(examples, ["train", "calibration"])
    apart = [Example(file=f"{number}", called=f"row {number}") for number in range(14)]
    content: list[str | None] = [f"{number // 2}" for number in range(14)]
    message = leak(apart, ["train", "test"] * 7, content)
    assert "7 file contents (14 pictures)" in message
    assert "row 0 = row 1" in message
    assert "and 2 more" in message
    check_leaks(apart, [None] * 14, ["train", "test"] * 7)
    with pytest.raises(LeakError, match="1 picture "):
        check_leaks(apart[:2], [None, None], ["train", "test"], ["picture", "picture"])


def test_real_split(shared_dir: Path) -> None:
    settings = ManifestSettings(
        path=str(shared_dir / "data" / "cls" / "manifest.csv"), manifest_ids="pseudonyms"
    )
    examples = read_manifest(settings)
    nothing: list[str | None] = [None] * len(examples)
    check_leaks(examples, nothing, [str(one.split) for one in examples])
    allowed = [one for one in examples if one.split == "train" and allows(one.licence)]
    apart, records = regroup_large(allowed, max_group_share=0.5)
    assert [(one.group_key, one.source, one.pictures) for one in records] == [("g29", "hannover", 123)]
    stay = {index for index, one in enumerate(allowed) if one.group_key == "g29"}
    train, chosen = allowed, calibration_split(allowed, share=0.15, seed=1, stay=stay)
    assert not chosen & stay
    rest = [one for index, one in enumerate(apart) if index not in chosen]
    folds = assign_folds(rest, FoldSettings())
    check_leaks(rest, nothing[: len(rest)], [f"fold {fold}" for fold in folds])
    assert sorted(Counter(fold for one, fold in zip(rest, folds, strict=True) if one.source == "hannover")) == [
        0, 1, 2, 3, 4, 5,
    ]  # fmt: skip
    mixed = mixed_sources(train)
    assert mixed == {"cohen", "actualmed", "figure1"}
    held = Counter(
        fold for one, fold in zip(rest, folds, strict=True) if one.label == "noncovid" and one.source in mixed
    )
    assert sorted(held.values()) == [4] * 6
    sides = {one.group: "calibration" if index in chosen else "train" for index, one in enumerate(train)}
    check_leaks(train, nothing[: len(train)], [sides[one.group] for one in train])
