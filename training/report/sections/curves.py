"""Learning curves of all members, and what their training cost."""

from __future__ import annotations

import math
from typing import Final

import pyarrow as pa

from training.report.blocks import Block, Figure, Section, Table, count, listed, number
from training.report.drawing import DASHES, Drawing, colour
from training.report.run import Run, column

_LOSSES: Final = {
    "classification": "class-weighted cross-entropy",
    "segmentation": "weighted Tanimoto loss with complement",
}
_SHOWN: Final = {
    "train_loss": (
        "Training loss",
        "loss",
        "Mean {loss} over the steps of an epoch, with augmentation and dropout.",
    ),
    "val_loss": (
        "Validation loss",
        "loss",
        "The same loss on the member's own held-out pictures, untouched.",
    ),
    "val_auc": (
        "Validation AUC",
        "ROC AUC",
        "Area under the ROC curve on the fold held out, all sources pooled.",
    ),
    "val_mixed_auc": (
        "Validation AUC, mixed sources",
        "ROC AUC",
        "The same inside the sources that hold both classes; few negatives, so it jumps. Nothing was chosen by it.",
    ),
    "val_accuracy": (
        "Validation accuracy",
        "accuracy",
        "Share of the held-out fold whose likeliest class is right.",
    ),
    "val_dice": (
        "Validation lung Dice",
        "Dice",
        "Lung class alone, threshold 0.5, mean over the validation pictures.",
    ),
    "val_tanimoto": (
        "Validation Tanimoto coefficient",
        "coefficient",
        "Soft, with complement, unweighted: what the original monitors. Higher than a lung Dice.",
    ),
    "learning_rate": (
        "Learning rate",
        "learning rate",
        "As the optimiser used it in the last step of the epoch.",
    ),
}
_LAST: Final = (
    "train_loss",
    "val_loss",
    "val_auc",
    "val_mixed_auc",
    "val_accuracy",
    "val_dice",
    "val_tanimoto",
)


def classification_curves(run: Run) -> Section:
    """Loss and monitored metrics of the paths."""
    histories = run.classification.histories
    if run.classification.task == "segmentation" or set(histories) <= set(run.segmentation.validation):
        histories = {}
    return _section("classification", "Learning curves of the paths", histories, run.classification.url)


def segmentation_curves(run: Run) -> Section:
    """Loss and monitored metrics of the segmenters."""
    return _section(
        "segmentation", "Learning curves of the segmenters", run.segmentation.histories, run.segmentation.url
    )


def _section(task: str, title: str, histories: dict[str, pa.Table], url: str) -> Section:
    name = f"{task}-curves"
    histories = {member: table for member, table in histories.items() if table.num_rows}
    if not histories:
        missing = f"{title} are not shown: members/*/history.parquet of a {task} is not in {url}."
        return Section(name=name, title=title, missing=(missing,))
    blocks: list[Block] = [
        figure
        for key, (heading, unit, how) in _SHOWN.items()
        if (figure := _curve(histories, key, heading, unit, how.format(loss=_LOSSES[task]))) is not None
    ]
    return Section(name=name, title=title, blocks=(*blocks, _cost(histories)))


def _curve(histories: dict[str, pa.Table], key: str, title: str, unit: str, how: str) -> Figure | None:
    lines = {member: _points(table, key) for member, table in histories.items()}
    lines = {member: points for member, points in lines.items() if points}
    if not lines:
        return None
    if len(lines) > 1 and len(set(map(tuple, lines.values()))) == 1:
        lines = {"all members": next(iter(lines.values()))}
    with (drawing := Drawing()) as axes:
        for place, (member, points) in enumerate(lines.items()):
            epochs, values = zip(*points, strict=True)
            axes.plot(
                epochs,
                values,
                color=colour(place),
                linestyle=DASHES[place // 8 % 4],
                marker="o" if len(points) < 12 else None,
                markersize=3.5,
                label=member,
            )
        axes.set_xlabel("epoch")
        axes.set_ylabel(unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.figure.legend(
            ncols=6 if len(lines) > 4 else 4, loc="outside lower center", handlelength=1.4, columnspacing=1
        )
    ends = listed([f"{member} {number(points[-1][1])}" for member, points in lines.items()])
    return Figure(
        title=title,
        image=drawing.uri,
        alt=f"{title} of each epoch, one line per member. At the end: {ends}.",
        how=how,
    )


def _points(table: pa.Table, key: str) -> list[tuple[int, float]]:
    epochs = column(table, "epoch")
    return [
        (int(epoch), float(value))
        for epoch, value in zip(epochs, column(table, key), strict=True)
        if value is not None and math.isfinite(value)
    ]


def _cost(histories: dict[str, pa.Table]) -> Table:
    measured = [key for key in _LAST if any(_points(table, key) for table in histories.values())]
    rows = []
    for member, table in histories.items():
        seconds = [float(value) for value in column(table, "seconds") if value is not None]
        speeds = [value for _, value in _points(table, "images_per_second")]
        steps = _points(table, "step")
        last = [points[-1][1] if (points := _points(table, key)) else None for key in measured]
        rows.append(
            (
                member,
                str(table.num_rows),
                count(int(steps[-1][1])) if steps else "–",
                number(sum(seconds) / 60, 1) if seconds else "–",
                number(sum(seconds) / len(seconds), 1) if seconds else "–",
                number(sum(speeds) / len(speeds), 1) if speeds else "–",
                *(number(value) for value in last),
            )
        )
    return Table(
        title="Last epoch and cost of each member",
        columns=(
            "member",
            "epochs",
            "steps",
            "time (min)",
            "time per epoch (s)",
            "speed (images/s)",
            *(_SHOWN[key][0].replace("Validation", "val.").replace("Training", "train.") for key in measured),
        ),
        rows=tuple(rows),
        how="Time of the training steps alone, without validation and without preparing masks and scattering.",
    )
