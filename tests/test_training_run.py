"""A whole training at a small size: two segmentation epochs, two folds, a bundle that scores, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from training_run import make_material, options

from cxr_ray import Scorer, load_bundle
from cxr_ray.errors import OutputError, TrainingDataError, UsageError
from training.job import run_training


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return make_material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, material: tuple[Path, str]) -> Path:
    """Folder with the three outputs, made by the three tasks."""
    folder = tmp_path_factory.mktemp("trained")
    given = [
        options("segmentation", *material, folder / "lungs"),
        options("classification", *material, folder / "folds", f"segmentation={folder / 'lungs'}"),
        options(
            "assemble", *material, folder / "all",
            f"segmentation={folder / 'lungs'}", f"classification={folder / 'folds'}", "bundle_name=small",
        ),
    ]  # fmt: skip
    for one in given:
        assert run_training(one) == 0
    return folder


def test_every_member_leaves_its_evidence(trained: Path) -> None:
    lungs = trained / "lungs" / "members" / "v7"
    assert pq.read_table(lungs / "validation.parquet").num_rows == 4
    history = pq.read_table(lungs / "history.parquet").to_pylist()
    assert [row["epoch"] for row in history] == [1, 2]
    assert all(0 <= row["val_dice"] <= 1 for row in history)
    assert list((lungs / "tensorboard").glob("events.*"))
    split = pq.read_table(trained / "folds" / "split.parquet").to_pylist()
    held_out: set[str] = set()
    for number in (0, 1):
        rows = pq.read_table(
            trained / "folds" / "members" / f"fold{number}" / "out_of_fold.parquet"
        ).to_pylist()
        assert {row["image_id"] for row in rows} == {
            row["image_id"] for row in split if row["fold"] == number
        }
        held_out |= {row["image_id"] for row in rows}
    assert len(held_out) == sum(row["split"] == "train" for row in split)


def test_no_patient_is_on_two_sides(trained: Path) -> None:
    sides: dict[str, set[object]] = {}
    for row in pq.read_table(trained / "folds" / "split.parquet").to_pylist():
        sides.setdefault(row["patient_key"], set()).add((row["split"], row["fold"]))
    assert all(len(side) == 1 for side in sides.values())


def test_the_bundle_scores_and_says_what_it_is(trained: Path) -> None:
    bundle = load_bundle(trained / "all" / "bundle")
    meta = bundle.meta
    assert (meta.name, meta.paths, meta.lung_gate, meta.mask_styles) == ("small", 2, True, ("v7",))
    assert meta.calibration is not None
    assert set(meta.thresholds) == {"youden", "sens95", "spec95"}
    assert meta.calibration["n"] == pq.read_table(trained / "all" / "calibration.parquet").num_rows
    assert {"out_of_fold_auc", "calibration_auc", "validation_lung_dice"} <= set(meta.metrics)
    assert "not a medical device" in bundle.card
    pixels = np.random.RandomState(0).randint(0, 256, (1, 300, 340)).astype(np.uint8)
    scores = Scorer(bundle).score(pixels)
    assert scores.path_logits.shape == (1, 2)


def test_the_same_command_does_nothing_again_and_another_is_refused(
    trained: Path, material: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    weights = trained / "lungs" / "members" / "v7" / "weights.safetensors"
    before = weights.stat().st_mtime_ns
    assert run_training(options("segmentation", *material, trained / "lungs")) == 0
    assert weights.stat().st_mtime_ns == before
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["members"]["v7"]["epochs"] == 2
    with pytest.raises(OutputError, match=r"other settings \(recipe.loop.seed\)"):
        run_training(options("segmentation", *material, trained / "lungs", "recipe.loop.seed=2"))
    with pytest.raises(OutputError, match=r"execution\.workers"):  # batch norm is each worker's own
        run_training(
            options(
                "segmentation", *material, trained / "lungs", "execution.workers=2", "execution.launcher=ray"
            )
        )
    with pytest.raises(TrainingDataError, match="names fold9, but the members are fold0, fold1"):
        run_training(
            options(
                "classification", *material, trained / "folds", f"segmentation={trained / 'lungs'}",
                "execution.only=[fold9]",
            )
        )  # fmt: skip


def test_an_output_of_an_earlier_version_goes_on(
    trained: Path, material: tuple[Path, str], tmp_path: Path
) -> None:
    """Options that came later count with their defaults."""
    lungs = tmp_path / "lungs"
    shutil.copytree(trained / "lungs", lungs)
    config = json.loads((lungs / "config.json").read_text())
    for stage in config["settings"]["recipe"]["segmentation"]["stages"]:
        del stage["silence"]
    (lungs / "config.json").write_text(json.dumps(config))
    assert run_training(options("segmentation", *material, lungs)) == 0


def test_no_credentials_are_recorded(trained: Path) -> None:
    settings = json.loads((trained / "folds" / "config.json").read_text())["settings"]
    assert not {"shards_options", "output_options", "execution"} & set(settings)
    assert not {"options", "key_env", "key_file"} & set(settings["manifest"])


def test_an_empty_class_and_a_missing_style_are_refused(material: tuple[Path, str], tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match="no training picture has the label 'Pneumonia'"):
        run_training(
            options(
                "classification", *material, tmp_path / "a", "segmentation=seeded",
                "recipe.classification.mask_style=seeded",
                "recipe.classification.classes=[Covid+,Covid-,Pneumonia]",
            )
        )  # fmt: skip
    with pytest.raises(TrainingDataError, match="no picture is left to train on"):
        run_training(options("segmentation", *material, tmp_path / "b", "recipe.segmentation.styles=[jms]"))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["task=tune"], "expected task to be one of"),
        (["recipe.classification.copies.kinds=[blurred]"], "expected kinds of copies out of plain"),
        (["recipe.loop.precision=float16"], "expected recipe.loop.precision float32 or bfloat16"),
        (["execution.workers=2"], "needs execution.launcher=ray"),
        (
            [
                "recipe.classification.stages=[{silence: 1.0}]",
                "recipe.classification.copies.kinds=[plain]",
                "recipe.classification.copy_shares=[1.0]",
            ],
            "needs the kind removed",
        ),
        (["task=classification", "segmentation=null"], "needs segmentation=URL"),
    ],
)
def test_options_that_make_no_sense(
    material: tuple[Path, str], tmp_path: Path, overrides: list[str], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        options("segmentation", *material, tmp_path, *overrides)


def test_shipped_recipes_compose(material: tuple[Path, str], tmp_path: Path) -> None:
    published = options("classification", *material, tmp_path, "recipe=published", "segmentation=x")
    assert published.recipe.name == "published"
    assert published.recipe.classification.lung_gate is False
