"""The split of a run: sides by the manifest's words, folds and calibration without leaks, and what a resume refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_material import write_manifest

from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import LeakError, TrainingDataError
from training.data.example import Example
from training.data.frames import Frames
from training.data.manifest import ManifestSettings, read_manifest
from training.data.units import with_units
from training.material import Material, divide, split_bytes
from training.options import TrainOptions, train_options
from training.overlap import seen_by_segmenter
from training.sides import left_out
from training.split_table import SPLIT_FILE, match, read_split, with_stored_keys


def options(task: str = "classification", **recipe: Any) -> TrainOptions:
    settings = {"folds": {"count": 2}, "calibration_share": 0.2} | recipe
    return train_options(
        {
            "task": task, "shards": "none", "output": "none", "segmentation": "none",
            "recipe": {task: {"styles": ["v7"], **recipe} if task == "segmentation" else settings},
        }
    )  # fmt: skip


def framed(
    examples: list[Example], content: list[str | None] | None = None, names: list[str] | None = None
) -> Frames:
    """Frames of one grey pixel each."""
    order = sorted(range(len(examples)), key=lambda i: examples[i].id)
    content = [(content or [f"sha {i}" for i in range(len(examples))])[i] for i in order]
    names = [(names or [f"{i:032x}" for i in range(len(examples))])[i] for i in order]
    return Frames(
        pixels_NHW=np.zeros((len(examples), 1, 1), np.uint8), image_id=names, content_sha256=content,
        examples=with_units([examples[i] for i in order], [names, content]),
        source_rows=np.ones(len(examples), np.int32), source_columns=np.ones(len(examples), np.int32), dropped={},
    )  # fmt: skip


def made(count: int = 40, **fields: Any) -> list[Example]:
    """Two pictures a patient, patients of both classes in turn."""
    return [
        Example(
            file=f"{i:03d}.png", patient=f"p{i // 2}", patient_key=f"p{i // 2}", source="ab"[i // 20 % 2], row=i + 1,
            label=("Covid+", "Covid-")[i // 2 % 2], id_key=f"{i:03d}.png", **fields,
        )
        for i in range(count)
    ]  # fmt: skip


def test_a_group_on_train_and_test_is_found_although_it_is_taken_apart() -> None:
    examples = made(120, split="train")
    chained = [replace(one, group="g", group_key="g") if i < 40 else one for i, one in enumerate(examples)]
    chained[39] = replace(chained[39], split="test")
    with pytest.raises(LeakError, match=r"1 patient .*\(test, train\)"):
        divide(framed(chained), options())
    chained[38] = replace(chained[38], split="test")  # the patient is whole; the group is not
    with pytest.raises(LeakError, match=r"1 group \(40 pictures\) .*\(test, train\): g;"):
        divide(framed(chained), options())


def test_calibration_takes_whole_groups_before_any_is_taken_apart() -> None:
    chained = [
        replace(one, group="g", group_key="g", source="c") if i < 40 else one
        for i, one in enumerate(made(120))
    ]
    material = divide(framed(chained), options(folds={"count": 2, "max_group_share": 0.5}))
    assert [one.group_key for one in material.regrouped] == ["g"]
    sides = [
        (side, fold, example.group_key, example.unit_key)
        for side, fold, example in zip(material.split, material.fold, material.frames.examples, strict=True)
    ]
    inside = [one for one in sides if one[2] == "g"]
    assert len(inside) == 40  # the manifest's group is kept ...
    assert {one[0] for one in inside} == {"train"}  # ... none of it is used for calibration ...
    assert {one[1] for one in inside} == {0, 1}  # ... and both folds have some of it,
    assert {one[3] for one in inside} == {"g"}  # while intervals draw it as one.
    assert 0.1 < sum(one[0] == "calibration" for one in sides) / 120 < 0.3


def test_copies_without_a_group_are_dealt_together() -> None:
    content: list[str | None] = [f"sha {i}" for i in range(40)]
    for first, second in ((0, 23), (4, 31), (8, 37), (12, 19)):
        content[second] = content[first]
    for seed in range(3):
        material = divide(framed(made(), content), options(folds={"count": 4, "seed": seed}))
        for first, second in ((0, 23), (4, 31), (8, 37), (12, 19)):
            assert material.split[first] == material.split[second]
            assert material.fold[first] == material.fold[second]


def test_a_picture_with_two_masks_counts_once() -> None:
    examples = made()
    examples.append(replace(examples[3], id="again", mask="m", mask_style="jms", row=41))
    names = [f"{i:032x}" for i in range(40)]
    material = divide(framed(examples, names=[*names, names[3]]), options())
    assert [i for i, why in enumerate(material.reason) if why == "repetition"] == [40]
    assert material.split[40] == "left_out"
    examples[40] = replace(examples[40], label="Covid+")
    with pytest.raises(TrainingDataError, match="are one picture with two labels"):
        divide(framed(examples, names=[*names, names[3]]), options())
    examples[40] = replace(examples[40], label="Covid-", split="test")
    with pytest.raises(LeakError):
        divide(framed(examples, names=[*names, names[3]]), options())


def test_words_of_the_split_are_matched_exactly() -> None:
    words = ["dev", "train", "", "calibration", "left_out", "test", "val"]
    examples = [replace(one, split=words[i // 2] if i < 14 else "dev") for i, one in enumerate(made())]
    chosen = replace(options(), train_split="dev")
    material = divide(framed(examples), chosen)
    assert list(material.split[2:14]) == [
        "manifest:train", "manifest:train", "left_out", "left_out", "manifest:calibration", "manifest:calibration",
        "manifest:left_out", "manifest:left_out", "test", "test", "val", "val",
    ]  # fmt: skip
    assert material.reason[4] == "missing_split"
    assert set(material.split[14:]) == {"train", "calibration"}
    assert set(divide(framed(made()), options()).split) == {"train", "calibration"}  # no column split at all


def test_reasons_are_counted_with_the_words_found() -> None:
    examples = [replace(one, label="covid" if i % 4 < 2 else "normal") for i, one in enumerate(made())]
    with pytest.raises(
        TrainingDataError, match=r"40 of no class .*: covid 20, normal 20 \(manifest\.label_map"
    ):
        divide(framed(examples), options())
    examples = [replace(one, label="Covd+") if i % 10 == 0 else one for i, one in enumerate(made())]
    material = divide(framed(examples), options())
    (line,) = left_out(material.frames, material.reason)
    assert "4 of no class in recipe.classification.classes: Covd+ 4" in line
    restricted = [replace(one, licence="CC BY-NC 4.0") for one in made()]
    with pytest.raises(TrainingDataError, match="40 under a licence with NC or ND terms"):
        divide(framed(restricted), options())
    elsewhere = [replace(one, split="dev") for one in made()]
    with pytest.raises(TrainingDataError, match=r"40 on other sides: dev 40 \(train_split=train"):
        divide(framed(elsewhere), options())


def test_labels_that_may_be_identifiers_are_not_shown() -> None:
    examples = [replace(one, label=f"Doe{i // 2}") for i, one in enumerate(made())]
    with pytest.raises(TrainingDataError) as caught:
        divide(framed(examples), options())
    assert "Doe" not in str(caught.value)


def test_styles_are_checked_before_anything_is_trained() -> None:
    examples = made(mask="m", mask_style="v7")
    assert set(divide(framed(examples), options("segmentation")).split) == {"train"}
    with pytest.raises(
        TrainingDataError, match=r"no training picture has a mask of style 'jms'.*styles=\[v7\]"
    ):
        divide(framed(examples), options("segmentation", styles=["v7", "jms"]))
    with pytest.raises(TrainingDataError, match=r"of no style in .*: own 40"):
        divide(framed(made(mask="m", mask_style="own")), options("segmentation"))


def test_raw_identifiers_do_not_reach_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"file": f"Doe^{i}.png", "patient": f"Doe^{i}", "label": "Covid+"} for i in range(8)]
    manifest = write_manifest(tmp_path / "m.csv", rows)
    monkeypatch.setenv("TRAINING_KEY", "k" * 32)
    for key_env in (None, "TRAINING_KEY"):
        frames = framed(read_manifest(ManifestSettings(path=str(manifest), key_env=key_env)))
        data = split_bytes(Material(frames, ["train"] * 8, [0] * 8, [None] * 8))
        (tmp_path / SPLIT_FILE).write_bytes(data)
        stored = read_split(open_storage(str(tmp_path)))
        assert "Doe" not in json.dumps(stored)
        assert all((row["id"] is None) == (key_env is None) for row in stored)


@pytest.fixture
def begun(tmp_path: Path) -> tuple[Frames, list[dict[str, Any]]]:
    """Frames, and what an output begun with them has stored."""
    frames = framed(made(split="train"))
    (tmp_path / SPLIT_FILE).write_bytes(split_bytes(divide(frames, options())))
    return frames, read_split(open_storage(str(tmp_path)))


def changed(frames: Frames, place: int, **fields: Any) -> Frames:
    examples = list(frames.examples)
    examples[place] = replace(examples[place], **fields)
    return replace(frames, examples=examples)


def test_a_changed_manifest_is_refused(begun: tuple[Frames, list[dict[str, Any]]]) -> None:
    frames, rows = begun
    assert match(rows, frames) == rows
    for what, fields in {
        "another label for 1": {"label": "Covid-"},
        "another source for 1": {"source": "z"},
        "another split for 1": {"split": "test"},
        "other patients": {"patient": "p7"},
        "other groups": {"group": "p7"},
        "another id for 1": {"id_key": "another"},
    }.items():
        with pytest.raises(TrainingDataError, match=rf"\({what}\)"):
            match(rows, changed(frames, 0, **fields))
    with pytest.raises(TrainingDataError, match="0 pictures are new, 1 are gone"):
        match(rows, frames.take(range(1, 40)))
    with pytest.raises(TrainingDataError, match="another file content for 1"):
        match(rows, replace(frames, content_sha256=["other", *frames.content_sha256[1:]]))


def test_a_resume_without_the_key_goes_on_with_the_stored_keys(
    begun: tuple[Frames, list[dict[str, Any]]],
) -> None:
    frames, rows = begun
    without = replace(
        frames,
        examples=[
            replace(one, patient_key=None, id_key=None, group_key=f"row {one.row}", unit_key=f"row {one.row}")
            for one in frames.examples
        ],
    )
    found = match(rows, without)
    again = [with_stored_keys(one, row) for one, row in zip(without.examples, found, strict=True)]
    assert again == frames.examples


def test_a_table_of_an_earlier_version_is_read(begun: tuple[Frames, list[dict[str, Any]]]) -> None:
    frames, rows = begun
    for row in rows:
        row["group"] = row.pop("manifest_group")
        del row["content_sha256"], row["manifest_split"]
    found = match(rows, frames)
    assert [
        with_stored_keys(one, row) for one, row in zip(frames.examples, found, strict=True)
    ] == frames.examples


def segmentation_output(folder: Path, frames: Frames, ids: str, manifest: str = "seg.csv") -> str:
    folder.mkdir()
    settings = {"settings": {"manifest": {"path": manifest, "manifest_ids": ids}}}
    (folder / "config.json").write_text(json.dumps(settings))
    count = len(frames)
    (folder / SPLIT_FILE).write_bytes(
        split_bytes(Material(frames, ["train"] * count, [None] * count, [None] * count))
    )
    return str(folder)


def test_what_module_1_was_trained_on_is_counted_and_refused_on_test(tmp_path: Path) -> None:
    chosen = options()
    chosen.manifest = ManifestSettings(path="cls.csv", manifest_ids="pseudonyms")
    material = divide(framed(made()), chosen)
    seen = [replace(one, file=f"seg/{one.file}", id="") for one in made()[:10]]
    other = framed(seen, [None] * 10, [f"f{i}" for i in range(10)])
    chosen.segmentation = segmentation_output(tmp_path / "a", other, "pseudonyms")
    counts = seen_by_segmenter(chosen, material)
    assert sum(counts.values()) == 10
    assert counts["train"] == sum(side == "train" for side in material.split[:10])
    tested = replace(
        material, split=["test" if i in (4, 5) else side for i, side in enumerate(material.split)]
    )
    with pytest.raises(LeakError, match=r"2 pictures of side test share .*004\.png"):
        seen_by_segmenter(chosen, tested)
    # Raw ids elsewhere say nothing about these, and row numbers of another manifest are no groups.
    chosen.segmentation = segmentation_output(tmp_path / "b", other, "raw")
    assert seen_by_segmenter(chosen, tested) == {}
    # The file itself is known whatever it is called.
    same = framed(seen, list(material.frames.content_sha256[:10]), [f"f{i}" for i in range(10)])
    chosen.segmentation = segmentation_output(tmp_path / "c", same, "raw")
    with pytest.raises(LeakError, match="2 pictures"):
        seen_by_segmenter(chosen, tested)
    chosen.segmentation = "default"
    assert seen_by_segmenter(chosen, tested) == {}
