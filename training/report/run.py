"""What one page reports on: a classification with its bundle, and the segmentation whose masks it uses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from cxr_ray.errors import CxrRayError, UsageError
from training.metrics.bootstrap import Interval
from training.report.options import ReportOptions
from training.report.reading import TrainingOutput, read_training
from training.report.scored import PAPER_THRESHOLD, Scored, auc, auc_interval, mixed_part, scored, together

OUT_OF_FOLD = "out of fold"


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that the sections draw from."""

    classification: TrainingOutput
    """With bundle, calibration and audits of the assembly where there was one."""
    segmentation: TrainingOutput
    places: tuple[str, ...]
    """Every output that was read, without credentials."""
    draws: int = 2000
    """Resamples of each bootstrap interval."""

    @property
    def positive(self) -> str:
        """Name of the positive class."""
        return self.classification.positive

    @cached_property
    def out_of_fold(self) -> Scored | None:
        """Each training picture as the one path scores it that did not see its group."""
        return together(self.classification.out_of_fold, self.positive)

    @cached_property
    def ensemble(self) -> dict[str, Scored]:
        """Split -> pictures scored by the ensemble, none of them seen by any path: calibration, then audits.

        An audit of pictures that were trained on flatters, and is left out.
        """
        tables = {"calibration": self.classification.calibration}
        tables |= {
            name: audit.predictions
            for name, audit in self.classification.audits.items()
            if not self._trained_on(audit.predictions)
        }
        found = {name: scored(table, self.positive, groups=self.groups) for name, table in tables.items()}
        return {name: pictures for name, pictures in found.items() if pictures is not None}

    def _trained_on(self, predictions: pa.Table | None) -> bool:
        """Whether a path was trained on pictures of the table, by ``split.parquet``."""
        split = self.classification.split
        if split is None or predictions is None or "image_id" not in predictions.column_names:
            return False
        sides = zip(split.column("image_id").to_pylist(), split.column("split").to_pylist(), strict=True)
        trained = {picture for picture, side in sides if side == "train"}
        return not trained.isdisjoint(predictions.column("image_id").to_pylist())

    @cached_property
    def areas(self) -> dict[tuple[str, str], Interval]:
        """(split or ``out of fold``, ``pooled`` or ``mixed``) -> area with its interval, where it is defined."""
        sets = dict(self.ensemble)
        if self.out_of_fold is not None:
            sets[OUT_OF_FOLD] = self.out_of_fold
        return {
            (name, kind): auc_interval(part, self.draws)
            for name, pictures in sets.items()
            for kind, part in (("mixed", mixed_part(pictures)), ("pooled", pictures))
            if len(part) and math.isfinite(auc(part))
        }

    @cached_property
    def groups(self) -> dict[str, str]:
        """image_id -> group, from ``split.parquet``."""
        table = self.classification.split
        if table is None or not {"image_id", "group"} <= set(table.column_names):
            return {}
        rows = zip(table.column("image_id").to_pylist(), table.column("group").to_pylist(), strict=True)
        return {str(picture): str(group) for picture, group in rows if group is not None}

    @property
    def threshold(self) -> tuple[str, float]:
        """Name and raw probability of the default threshold; 0.5 in a run without a bundle."""
        bundle = self.classification.bundle or {}
        name = bundle.get("default_threshold") or ""
        point = bundle.get("thresholds", {}).get(name)
        return (name, float(point["p_covid"])) if point else ("0.5", PAPER_THRESHOLD)


def gather(options: ReportOptions) -> Run:
    """Read the output, and those that it was assembled from. Raises UsageError for what is not there or damaged."""
    given = read_training(options.training, options.training_options)
    classification, places = given, [given.url]
    named = options.classification or (
        given.settings.get("classification") if given.task == "assemble" else None
    )
    if named:
        other = _read(str(named), options, demanded=options.classification is not None)
        if other is not None:
            classification = _filled(given, other)
            places.append(other.url)
    if options.audit:
        other = _read(options.audit, options, demanded=True)
        assert other is not None  # demanded: refused otherwise
        classification = dataclasses.replace(classification, audits={**classification.audits, **other.audits})
        places.append(other.url)
    segmentation = given
    if options.segmentation or given.task != "segmentation":
        named = options.segmentation or given.settings.get("segmentation")
        other = _read(str(named), options, demanded=options.segmentation is not None) if named else None
        segmentation = other or _without_classification(given)
        places += [other.url] if other else []
    return Run(
        classification=classification, segmentation=segmentation, places=tuple(places), draws=options.draws
    )


def _read(url: str, options: ReportOptions, *, demanded: bool) -> TrainingOutput | None:
    """An output that was named; one that only the settings name may have moved or be a bundle."""
    try:
        return read_training(url, options.training_options)
    except (CxrRayError, OSError) as error:
        if demanded and isinstance(error, UsageError):
            raise
        if demanded:
            raise UsageError(f"cannot read {url} ({type(error).__name__}); check the address") from error
        return None


def _filled(first: TrainingOutput, second: TrainingOutput) -> TrainingOutput:
    """``first``, with what it lacks from ``second``; the settings are those of the training, not of the assembly."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(TrainingOutput):
        mine, other = getattr(first, field.name), getattr(second, field.name)
        if (
            isinstance(mine, Mapping)
            and isinstance(other, Mapping)
            and field.name not in ("config", "bundle")
        ):
            values[field.name] = {**other, **mine}
        else:
            values[field.name] = mine if mine is not None else other
    if second.config is not None:
        values["config"] = second.config
    if any(second.out_of_fold):
        values["out_of_fold"] = second.out_of_fold
    return TrainingOutput(**values)


def _without_classification(output: TrainingOutput) -> TrainingOutput:
    """The part of an output that speaks of lungs, where one folder holds both."""
    names = set(output.validation)
    return dataclasses.replace(
        output,
        histories={name: table for name, table in output.histories.items() if name in names},
        out_of_fold={},
        split=output.split if names else None,
    )


def column(table: pa.Table, name: str) -> list[Any]:
    """Values of a column; None for each row where there is no such column."""
    return table.column(name).to_pylist() if name in table.column_names else [None] * table.num_rows
