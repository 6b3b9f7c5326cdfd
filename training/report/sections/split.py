"""The split: who is trained on what, by fold, class and source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from training.metrics.classification import mixed_sources
from training.report.blocks import Block, Figure, Note, Section, Table, count, listed
from training.report.drawing import NEGATIVE, PALE, POSITIVE, Drawing, colour
from training.report.run import Run, column

LEFT_OUT = "left_out"
_ORDER = {"train": 1, "calibration": 2, "val": 3, "validation": 3, "test": 4, LEFT_OUT: 9}
_REASONS = {
    "licence": "a licence with NC or ND",
    "label": "another label",
    "mask_style": "another mask style",
}


def split(run: Run) -> Section:
    """Diagram, classes and sources of every part, and what was left out."""
    table = run.classification.split
    title = "How the pictures were split"
    if table is None or not table.num_rows:
        missing = f"The split is not shown: split.parquet is not in {run.classification.url}."
        return Section(name="split", title=title, missing=(missing,))
    parts = _parts(table)
    rows = [{**row, "source": row["source"] or "unknown"} for row in table.to_pylist()]
    named = {part: [rows[i] for i in members] for part, members in parts.items()}
    shown = {part: members for part, members in named.items() if part != LEFT_OUT}
    blocks: list[Block] = []
    if sum(part.startswith("fold ") for part in parts) > 1:
        blocks.append(_diagram(shown))
    if any(row.get("label") for row in rows):
        blocks.append(_bars(shown, "class", _class_of(run.positive), (POSITIVE, NEGATIVE)))
    blocks.append(_bars(shown, "source", lambda row: str(row["source"]), None))
    blocks.append(_part_table(named, run.positive))
    blocks.append(_source_table(named, run.positive))
    if LEFT_OUT in named:
        why: dict[str, int] = {}
        for row in named[LEFT_OUT]:
            reason = str(row.get("reason") or "no reason given")
            why[reason] = why.get(reason, 0) + 1
        reasons = listed(
            [f"{count(n)} for {_REASONS.get(reason, reason)}" for reason, n in sorted(why.items())]
        )
        blocks.append(Note(text=f"Left out of the training: {reasons}."))
    return Section(name="split", title=title, blocks=tuple(blocks))


def _parts(table: pa.Table) -> dict[str, list[int]]:
    """Part -> rows: a training picture with a fold belongs to that fold, others to their side of the split."""
    parts: dict[tuple[int, int, str], list[int]] = {}
    for i, (side, fold) in enumerate(zip(column(table, "split"), column(table, "fold"), strict=True)):
        inside = side == "train" and fold is not None
        name = f"fold {fold}" if inside else str(side)
        parts.setdefault((0 if inside else _ORDER.get(name, 5), fold if inside else 0, name), []).append(i)
    return {name: parts[order, fold, name] for order, fold, name in sorted(parts)}


def _class_of(positive: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: (
        positive if row["label"] == positive else "other classes" if row["label"] else "no label"
    )


def _diagram(parts: dict[str, list[dict[str, Any]]]) -> Figure:
    folds = [part for part in parts if part.startswith("fold ")]
    with (drawing := Drawing((10.4, 0.42 * len(folds) + 1.5))) as axes:
        for y, member in enumerate(folds):
            left = 0
            for part, rows in parts.items():
                role = "judged" if part == member else "trained" if part in folds else "kept"
                face = {"judged": POSITIVE, "trained": "#9ec5e0", "kept": PALE}[role]
                axes.barh(y, len(rows), left=left, height=0.8, color=face, edgecolor="white", linewidth=1.2)
                left += len(rows)
        left = 0
        for part, rows in parts.items():
            # A narrow part has no room for an upright word.
            narrow = len(rows) < 0.05 * sum(map(len, parts.values()))
            words = f"{part}\n{len(rows):,}" if not narrow else part
            axes.text(
                left + len(rows) / 2, -0.62, words, ha="center", va="bottom", fontsize=9, rotation=90 * narrow
            )
            left += len(rows)
        axes.set_yticks(range(len(folds)), [f"path {part.removeprefix('fold ')}" for part in folds])
        axes.set_ylim(len(folds) - 0.5, -1.5)
        axes.set_xlabel("pictures")
        axes.grid(visible=False)
        for name, face in (
            ("trains", "#9ec5e0"),
            ("is judged (out of fold)", POSITIVE),
            ("never sees", PALE),
        ):
            axes.barh(0, 0, color=face, label=name)
        axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.55 / len(folds) - 0.09))
    sizes = listed([f"{part} {len(rows)}" for part, rows in parts.items()])
    return Figure(
        title="Which path sees which pictures",
        image=drawing.uri,
        alt=f"One bar per path over all pictures; each path is judged on its own fold, trains on the other folds and "
        f"never sees the rest. Pictures: {sizes}.",
        how="Rows of split.parquet by split and fold; the width of a block is its number of pictures.",
        width="whole",
    )


def _bars(
    parts: dict[str, list[dict[str, Any]]],
    what: str,
    key: Callable[[dict[str, Any]], str],
    faces: tuple[str, ...] | None,
) -> Figure:
    tally = {part: [key(row) for row in rows] for part, rows in parts.items()}
    kinds = sorted({kind for values in tally.values() for kind in values})
    if what == "class":
        kinds.sort(key=lambda kind: kind in ("other classes", "no label"))
    with (drawing := Drawing((5.2, 0.34 * len(parts) + 1.5))) as axes:
        left = np.zeros(len(parts))
        for number, kind in enumerate(kinds):
            widths = np.array([values.count(kind) for values in tally.values()])
            face = (faces or ())[number] if faces and number < len(faces) else colour(number)
            # The ninth source repeats a colour; hatching tells the two apart.
            axes.barh(
                list(parts), widths, left=left, color=face, label=kind, hatch="//" * (number // 8), alpha=0.9
            )
            left += widths
        axes.invert_yaxis()
        axes.set_xlabel("pictures")
        axes.grid(visible=False, axis="y")
        axes.figure.legend(ncols=3, loc="outside lower center", fontsize=8.5)
    return Figure(
        title=f"Pictures by {what}",
        image=drawing.uri,
        alt=f"Stacked bars of the number of pictures of each {what} in {listed(list(parts))}; see the table.",
        how=f"Rows of split.parquet counted by part and {what}.",
    )


def _part_table(parts: dict[str, list[dict[str, Any]]], positive: str) -> Table:
    everyone = [row for part, rows in parts.items() if part != LEFT_OUT for row in rows if row["label"]]
    labels = np.array([row["label"] == positive for row in everyone], dtype=bool)
    mixed = set(mixed_sources(labels, np.array([row["source"] for row in everyone]))) if everyone else set()
    rows = []
    for part, members in parts.items():
        labelled = [row for row in members if row["label"]]
        inside = [row for row in labelled if row["source"] in mixed]
        yes, yes_inside = (sum(row["label"] == positive for row in some) for some in (labelled, inside))
        numbers = (
            len(members),
            len({row["group"] for row in members if row["group"]}),
            len({row["patient_key"] for row in members if row["patient_key"]}),
            yes,
            len(labelled) - yes,
            yes_inside,
            len(inside) - yes_inside,
        )
        rows.append((part.replace("_", " "), *(count(value) for value in numbers)))
    return Table(
        title="Parts of the split",
        columns=(
            "part",
            "pictures",
            "groups",
            "patients",
            positive,
            "others",
            f"{positive}, mixed",
            "others, mixed",
        ),
        rows=tuple(rows),
        how="A group is what must stay on one side: one patient, or near copies. Mixed: sources that hold both classes"
        + (f" ({listed(sorted(mixed))})." if mixed else "; there are none."),
    )


def _source_table(parts: dict[str, list[dict[str, Any]]], positive: str) -> Table:
    """Source x side, positives and others."""
    sides: dict[str, list[dict[str, Any]]] = {}
    for part, members in parts.items():
        sides.setdefault("train" if part.startswith("fold ") else part, []).extend(members)
    rows = []
    for source in sorted({row["source"] for members in sides.values() for row in members}):
        cells = []
        for members in sides.values():
            labels = [row["label"] for row in members if row["source"] == source]
            yes = sum(label == positive for label in labels)
            cells.append(f"{count(yes)} / {count(len(labels) - yes)}" if labels else "–")
        rows.append((str(source), *cells))
    return Table(
        title=f"Sources: {positive} / others",
        columns=("source", *(side.replace("_", " ") for side in sides)),
        rows=tuple(rows),
        how="Pictures of each source in each part. A source with one class only can be told by its look alone.",
    )
