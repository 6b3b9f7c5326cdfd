"""The few figures to quote, on one table."""

from __future__ import annotations

import numpy as np

from training.report.blocks import Block, Note, Section, Table, count, with_interval
from training.report.run import OUT_OF_FOLD, Run, column
from training.report.scored import mixed_part
from training.report.sections.sources import interval_words


def summary(run: Run) -> Section:
    """Areas of the test split, the calibration split and the folds; hide and seek; lung Dice."""
    rows: list[tuple[str, str, str]] = []
    audited = [split for split in run.ensemble if split != "calibration"]
    for split in (*audited, OUT_OF_FOLD, "calibration"):
        rows += _areas(run, split)
    scored_at_all = bool(rows)
    for split, audit in run.classification.audits.items():
        hidden = (audit.facts.get("hide_and_seek") or {}).get("lungs_removed")
        if hidden:
            rows.append(
                (
                    f"ROC AUC with the lungs removed, all sources, {split}",
                    interval_words(hidden.get("pooled")),
                    "0.5 is honest",
                )
            )
    for style, table in run.segmentation.validation.items():
        dice = [value for value in column(table, "dice") if value is not None]
        if dice:
            rows.append(
                (f"lung Dice, {style} masks, validation", f"{np.mean(dice):.3f}", f"{len(dice)} pictures")
            )
    blocks: tuple[Block, ...] = ()
    if rows:
        table = Table(
            title="The figures to quote",
            columns=("figure", "value (95 % interval)", "of"),
            rows=tuple(rows),
            how="Intervals over whole groups (patients). Mixed sources: those that hold both classes; only there does "
            "a high area mean more than telling one hospital's pictures from another's. Out of fold: pairs of one "
            "fold.",
            words=frozenset({2}),
        )
        blocks = (table, *([Note(text=_CONFOUND, warning=True)] if scored_at_all else []))
    missing = (
        f"There are no figures to sum up: {run.classification.url} holds no scores and no lung metrics yet."
    )
    return Section(name="summary", title="At a glance", blocks=blocks, missing=() if rows else (missing,))


_CONFOUND = (
    "Where the class is nearly given by the source, the area over all sources measures the source as much as the "
    "disease. Quote the mixed-source figure with its interval."
)


def _areas(run: Run, split: str) -> list[tuple[str, str, str]]:
    pictures = run.out_of_fold if split == OUT_OF_FOLD else run.ensemble.get(split)
    rows = []
    for kind, words in (("mixed", "mixed sources"), ("pooled", "all sources")):
        area = run.areas.get((split, kind))
        if area is None or pictures is None:
            continue
        part = mixed_part(pictures) if kind == "mixed" else pictures
        name = "single paths, out of fold" if split == OUT_OF_FOLD else f"ensemble on {split}"
        yes = int(part.positive.sum())
        rows.append(
            (
                f"ROC AUC, {words}, {name}",
                with_interval(area.value, area.low, area.high),
                f"{count(yes)} + {count(len(part) - yes)} pictures",
            )
        )
    return rows
