"""The paper's Table 1: how well the lungs are found, by source; the paper's own pooled figure apart."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa

from training.metrics.segmentation import LUNG_METRICS, PAPER_POOLED
from training.report.blocks import Block, Figure, Section, Table, count, number
from training.report.drawing import Drawing, colour
from training.report.run import Run, column
from training.report.sections.sources import interval_words

_TITLE: Final = "Lungs (the paper's Table 1)"
_PUBLISHED: Final = {"v7": 0.957, "jms": 0.980}
"""What the authors print for Dice, precision, recall and F1 alike."""


def lungs(run: Run) -> Section:
    """Validation pictures of each segmenter; audits with their other bundle; the pooled figure."""
    output = run.segmentation
    blocks: list[Block] = []
    tables = {
        style: _with_source(table, output.split)
        for style, table in output.validation.items()
        if table.num_rows
    }
    if tables:
        blocks += [_boxes(style, rows) for style, rows in tables.items()]
        blocks.append(_validation(tables))
    audits = {
        (split, str(audit.segmentation.get("bundle", {}).get("name", "bundle"))): audit.segmentation["tables"]
        for place in (run.classification, run.segmentation)
        for split, audit in place.audits.items()
        if audit.segmentation.get("tables")
    }
    for (split, name), rows in audits.items():
        blocks += [_audited(split, name, rows), _pooled(split, name, rows)]
    missing = () if blocks else (
        f"Lung figures are not shown: neither members/*/validation.parquet nor audit/*/segmentation.json is in "
        f"{output.url}.",
    )  # fmt: skip
    if tables and not audits:
        missing = (
            "The paper's pooled figure is not shown: no audit/*/segmentation.json is in "
            f"{run.classification.url} or {output.url}.",
        )
    return Section(name="lungs", title=_TITLE, blocks=tuple(blocks), missing=missing)


Rows = dict[str, list[Any]]


def _with_source(table: pa.Table, split: pa.Table | None) -> Rows:
    """Columns of the table, sources taken from ``split.parquet`` where it has none."""
    rows: Rows = {name: column(table, name) for name in ("image_id", "source", *LUNG_METRICS)}
    if split is not None and not any(rows["source"]):
        known = dict(zip(column(split, "image_id"), column(split, "source"), strict=True))
        rows["source"] = [known.get(picture) for picture in rows["image_id"]]
    rows["source"] = [source or "unknown" for source in rows["source"]]
    return rows


def _boxes(style: str, rows: Rows) -> Figure:
    names = sorted(set(rows["source"]))
    values = [[d for d, s in zip(rows["dice"], rows["source"], strict=True) if s == name] for name in names]
    with (drawing := Drawing((5.2, 0.55 * len(names) + 1.5))) as axes:
        boxes = axes.boxplot(
            values, orientation="horizontal", tick_labels=names, patch_artist=True, widths=0.55,
            medianprops={"color": "black"}, flierprops={"markersize": 3, "alpha": 0.5},
        )  # fmt: skip
        for place, box in enumerate(boxes["boxes"]):
            box.set(facecolor=colour(place), alpha=0.55)
        axes.set_xlabel("lung Dice")
        axes.set_xlim(max(0.0, min(map(min, values)) - 0.03), 1.0)
    said = "; ".join(
        f"{name}: median {np.median(v):.3f}, lowest {min(v):.3f}"
        for name, v in zip(names, values, strict=True)
    )
    return Figure(
        title=f"Lung Dice per picture, {style} masks",
        image=drawing.uri,
        alt=f"Box plot of the lung Dice by source. {said}.",
        how="Validation pictures after the last epoch, lung class alone, threshold 0.5; boxes hold the middle half, "
        "whiskers reach 1.5 times its width.",
    )


def _validation(tables: dict[str, Rows]) -> Table:
    lines = []
    for style, rows in tables.items():
        for name in [*sorted(set(rows["source"])), "all"]:
            chosen = [i for i, source in enumerate(rows["source"]) if name in ("all", source)]
            means = (float(np.mean([rows[key][i] for i in chosen])) for key in LUNG_METRICS)
            lines.append((style, name, count(len(chosen)), *(number(mean) for mean in means)))
    return Table(
        title="Lung class alone, validation pictures",
        columns=("mask style", "source", "pictures", "Dice", "Jaccard", "precision", "recall"),
        rows=tuple(lines),
        how="Mean over pictures, 300 × 340, masks resized nearest, threshold 0.5, no smoothing. Two human annotators "
        "of v7 masks agree to a Dice of 0.944.",
        words=frozenset({1}),
    )


def _audited(split: str, name: str, rows: list[dict[str, Any]]) -> Table:
    beside = any(row.get("difference") for row in rows)
    return Table(
        title=f"Lung class alone, “{name}” on {split}",
        columns=(
            "mask style",
            "source",
            "pairs",
            "Dice",
            "Jaccard",
            "precision",
            "recall",
            *(("Dice of the other weights", "difference") if beside else ()),
        ),
        rows=tuple(
            (
                str(row.get("mask_style") or "all"),
                str(row.get("source") or "all"),
                count(row["pairs"]),
                interval_words(row.get("dice")),
                *(number((row.get(key) or {}).get("value")) for key in LUNG_METRICS[1:]),
                *(
                    (interval_words((row.get(k) or {}).get("dice")) for k in ("compared", "difference"))
                    if beside
                    else ()
                ),
            )
            for row in rows
        ),
        how="segmentation.json: mean over pictures, threshold 0.5, no smoothing, 95 % intervals over whole groups"
        + ("; the difference (first minus other weights) is paired." if beside else "."),
        words=frozenset({1}),
    )


def _pooled(split: str, name: str, rows: list[dict[str, Any]]) -> Table:
    def value(found: Any) -> str:
        return interval_words(found) if isinstance(found, dict | list) else number(found)

    return Table(
        title=f"The paper's pooled figure, “{name}” on {split}",
        columns=("mask style", "source", "pairs", "share of right pixels", "in the paper"),
        rows=tuple(
            (
                str(row.get("mask_style") or "all"),
                str(row.get("source") or "all"),
                count(row["pairs"]),
                value(row.get(PAPER_POOLED)),
                number(None if row.get("source") else _PUBLISHED.get(str(row.get("mask_style")))),
            )
            for row in rows
        ),
        how="Lung and background pooled over all pixels at 0.5: the paper prints this one number as Dice, precision, "
        "recall and F1. It is the share of right pixels, far above a lung Dice, and not to be set beside one.",
        words=frozenset({1}),
    )
