"""The option pages in ``docs/reference`` and ``conf/`` against the settings that the code takes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from training.audit.classification import AuditSettings
from training.audit.options import AuditOptions
from training.augmentation.classification_warp import ClassificationWarpSettings
from training.augmentation.degradation import DegradationSettings
from training.augmentation.segmentation_warp import SegmentationWarpSettings
from training.classification import ClassificationRecipe
from training.data.manifest import ManifestSettings
from training.features import CopySettings
from training.loop import LoopSettings, Stage
from training.optimiser import OptimiserSettings
from training.options import Execution, Recipe, TrainOptions
from training.segmentation import SegmentationRecipe
from training.splits.folds import FoldSettings

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "reference"
SETTINGS: dict[str, Any] = {
    "": TrainOptions,
    "manifest.": ManifestSettings,
    "execution.": Execution,
    "recipe.": Recipe,
    "recipe.loop.": LoopSettings,
    "recipe.segmentation.": SegmentationRecipe,
    "recipe.segmentation.warp.": SegmentationWarpSettings,
    "recipe.classification.": ClassificationRecipe,
    "recipe.classification.folds.": FoldSettings,
    "recipe.classification.copies.": CopySettings,
    "recipe.classification.copies.warp.": ClassificationWarpSettings,
    "recipe.classification.copies.degradation.": DegradationSettings,
    "recipe.*.stages.N.": Stage,
    "recipe.*.stages.N.optimiser.": OptimiserSettings,
}


def shown(field: dataclasses.Field[Any]) -> str | None:
    """A plain default as the page writes it; None where it is a table of its own."""
    if field.default is dataclasses.MISSING:
        assert field.default_factory is not dataclasses.MISSING
        value = field.default_factory()
        nested = dataclasses.is_dataclass(value) or (
            isinstance(value, list) and any(dataclasses.is_dataclass(one) for one in value)
        )
        return "below" if nested else str(value).replace("'", "")
    special = {"???": "(needed)", None: "null", "": '""', True: "true", False: "false"}
    value = field.default
    return special[value] if isinstance(value, (str, bool, type(None))) and value in special else str(value)


@pytest.mark.parametrize(
    ("page", "tables"),
    [("train-options.md", SETTINGS), ("audit-options.md", {"": AuditOptions, "settings.": AuditSettings})],
)
def test_the_page_has_every_option_with_its_default(page: str, tables: dict[str, Any]) -> None:
    text = (PAGES / page).read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w.*]+)` \| (.*?) \|", text, re.MULTILINE))
    expected = {
        f"{prefix}{field.name}": shown(field)
        for prefix, settings in tables.items()
        for field in dataclasses.fields(settings)
    }
    assert rows == expected


@pytest.mark.parametrize(
    "recipe", sorted((ROOT / "conf" / "recipe").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_shipped_recipe_fits_the_code(recipe: Path) -> None:
    merged = OmegaConf.merge(OmegaConf.structured(Recipe), OmegaConf.load(recipe))
    assert isinstance(OmegaConf.to_object(merged), Recipe)
    assert merged.name == recipe.stem


def test_the_shipped_config_names_every_option_of_the_job() -> None:
    config = OmegaConf.load(ROOT / "conf" / "train.yaml")
    for section, settings in (("", TrainOptions), ("manifest", ManifestSettings), ("execution", Execution)):
        found = set(config[section] if section else config) - {"defaults", "hydra"}
        names = {field.name for field in dataclasses.fields(settings)} - {"recipe"}
        assert found == names, section
