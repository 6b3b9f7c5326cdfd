"""ROC curves: per fold with their mean, and the ensemble beside its own paths."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from training.report.blocks import Block, Figure, Section, listed, mean_std, number, with_interval
from training.report.drawing import FAINT, INK, POSITIVE, Drawing, colour
from training.report.run import Run
from training.report.scored import Scored, auc, mixed_part

_GRID = np.linspace(0, 1, 201)


def receiver(run: Run) -> Section:
    """One figure for the folds, one for their mixed sources, two for each split that the ensemble was scored on."""
    blocks: list[Block] = []
    missing = []
    if run.out_of_fold is None:
        missing.append(
            f"ROC curves per fold are not shown: members/*/out_of_fold.parquet is not in {run.classification.url}."
        )
    else:
        blocks += _by_fold(run.out_of_fold)
    for split, pictures in run.ensemble.items():
        blocks += [
            figure
            for mixed in (False, True)
            if (figure := _ensemble(run, split, pictures, mixed=mixed)) is not None
        ]
    if not run.ensemble:
        missing.append(
            "ROC curves of the ensemble are not shown: neither calibration.parquet nor "
            f"audit/*/predictions.parquet is in {run.classification.url}."
        )
    return Section(name="roc", title="ROC curves", blocks=tuple(blocks), missing=tuple(missing))


def _by_fold(everyone: Scored) -> list[Block]:
    figures: list[Block] = []
    for mixed in (False, True):
        chosen = mixed_part(everyone) if mixed else everyone
        folds = {fold: part for fold, part in chosen.folds().items() if np.isfinite(auc(part))}
        if not folds:
            continue
        areas = {fold: auc(part) for fold, part in folds.items()}
        rows = np.array([_curve(part) for part in folds.values()])
        with (drawing := Drawing((5.2, 5.2))) as axes:
            for place, fold in enumerate(folds):
                axes.plot(
                    _GRID, rows[place], color=colour(place), lw=1.1, label=f"fold {fold}: {areas[fold]:.3f}"
                )
            mean, spread = rows.mean(axis=0), rows.std(axis=0)
            axes.fill_between(
                _GRID, np.clip(mean - spread, 0, 1), np.clip(mean + spread, 0, 1), color=FAINT, alpha=0.2
            )
            axes.plot(_GRID, mean, color=INK, lw=2.4, label=f"mean: {mean_std(areas.values())}")
            _frame(axes)
        where = "mixed sources only" if mixed else "all sources"
        ends = listed([f"fold {fold} {number(area)}" for fold, area in areas.items()])
        figures.append(
            Figure(
                title=f"Out of fold, {where}",
                image=drawing.uri,
                alt=f"ROC curve of each fold and their mean, {where}. Areas: {ends}; mean (std) "
                f"{mean_std(areas.values())}.",
                how="Each path on the fold that it did not see"
                + (
                    f", {int(chosen.positive.sum())} positive and {int((~chosen.positive).sum())} negative pictures; "
                    if mixed
                    else "; "
                )
                + "the mean is over the true positive rates at equal false positive rates, the band one standard "
                "deviation. Numbers: area (std).",
            )
        )
    return figures


def _ensemble(run: Run, split: str, pictures: Scored, *, mixed: bool) -> Figure | None:
    chosen = mixed_part(pictures) if mixed else pictures
    area = run.areas.get((split, "mixed" if mixed else "pooled"))
    if area is None:
        return None
    words = with_interval(area.value, area.low, area.high)
    paths = chosen.paths()
    with (drawing := Drawing((5.2, 5.2))) as axes:
        for number_, path in enumerate(paths):
            axes.plot(_GRID, _curve(path), color=FAINT, lw=0.9, label="single paths" if not number_ else None)
        axes.plot(_GRID, _curve(chosen), color=POSITIVE, lw=2.4, label=f"ensemble: {words}")
        _frame(axes)
    where = "mixed sources only" if mixed else "all sources"
    single = f" Single paths, mean (std): {mean_std(map(auc, paths))}." if paths else ""
    return Figure(
        title=f"Ensemble on {split}, {where}",
        image=drawing.uri,
        alt=f"ROC curve of the ensemble on the {split} split, {where}: area {words}.{single}",
        how=f"{int(chosen.positive.sum())} positive and {int((~chosen.positive).sum())} negative pictures that no path "
        f"has seen; area with its 95 % interval from {run.draws} resamples of whole groups.{single}",
    )


def _curve(pictures: Scored) -> NDArray[np.float64]:
    """True positive rate on the grid of false positive rates."""
    wrong, right, _ = roc_curve(pictures.positive, pictures.logit)
    rates = np.interp(_GRID, wrong, right)
    rates[0] = 0.0
    return np.asarray(rates)


def _frame(axes: object) -> None:
    axes.plot([0, 1], [0, 1], color=FAINT, lw=0.8, ls=":")  # type: ignore[attr-defined]
    axes.set(  # type: ignore[attr-defined]
        xlabel="false positive rate (1 − specificity)",
        ylabel="true positive rate (sensitivity)",
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.01),
        aspect="equal",
    )
    axes.legend(loc="lower right", fontsize=9)  # type: ignore[attr-defined]
