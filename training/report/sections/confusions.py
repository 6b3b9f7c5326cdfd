"""Confusion matrices at the default threshold, and at the paper's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.report.blocks import Block, Figure, Section
from training.report.drawing import INK, Drawing
from training.report.run import Run
from training.report.scored import PAPER_THRESHOLD, Scored, confusion


def confusions(run: Run) -> Section:
    """One matrix for the folds together, one or two for each split that the ensemble was scored on."""
    blocks: list[Block] = []
    if run.out_of_fold is not None:
        blocks.append(
            _matrix(run.out_of_fold, "Out of fold, single paths", "0.5", PAPER_THRESHOLD, run.positive,
                    "All folds together, each picture scored by the path that did not see its group.")
        )  # fmt: skip
    for split, pictures in run.ensemble.items():
        for name, threshold in dict([("0.5", PAPER_THRESHOLD), run.threshold]).items():
            words = "The ensemble's uncalibrated probability."
            if split == "calibration" and name != "0.5":
                words += " The threshold was chosen on these very pictures, so this matrix flatters it."
            blocks.append(_matrix(pictures, f"Ensemble on {split}", name, threshold, run.positive, words))
    missing = (
        "Confusion matrices are not shown: neither members/*/out_of_fold.parquet, calibration.parquet nor "
        f"audit/*/predictions.parquet is in {run.classification.url}.",
    )
    return Section(
        name="confusion", title="Confusion matrices", blocks=tuple(blocks), missing=() if blocks else missing
    )


def _matrix(pictures: Scored, title: str, name: str, threshold: float, positive: str, words: str) -> Figure:
    counts: NDArray[np.int64] = confusion(pictures, threshold)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with (drawing := Drawing((3.9, 3.3))) as axes:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.25)
        for (row, place), cell in np.ndenumerate(counts):
            ink = "white" if shares[row, place] > 0.65 else INK
            axes.text(
                place,
                row,
                f"{cell:,}\n{shares[row, place]:.1%}",
                ha="center",
                va="center",
                color=ink,
                fontsize=13,
            )
        axes.set_xticks([0, 1], [positive, "other"])
        axes.set_yticks([0, 1], [positive, "other"], rotation=90, va="center")
        axes.set_xlabel("called")
        axes.set_ylabel("true class")
        axes.grid(visible=False)
        axes.tick_params(length=0)
    shown = "0.5" if name == "0.5" else f"“{name}” ({threshold:.3f})"
    return Figure(
        title=f"{title}, threshold {shown}",
        image=drawing.uri,
        alt=f"Confusion matrix. True {positive}: {counts[0, 0]} called so, {counts[0, 1]} missed. Others: "
        f"{counts[1, 0]} called {positive}, {counts[1, 1]} not.",
        how=f"{words} Positive from {threshold:.3f} on; percentages of each row.",
        width="third",
    )
