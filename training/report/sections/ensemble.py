"""The paper's Table 2: the single paths, mean (std), against their ensemble."""

from __future__ import annotations

from typing import Final

from training.metrics.bootstrap import Interval
from training.metrics.classification import binary_metrics, mixed_source_auc, with_intervals
from training.report.blocks import Block, Note, Section, Table, mean_std, number, with_interval
from training.report.run import Run
from training.report.scored import PAPER_THRESHOLD, SEED, Scored, gain_over_paths, mixed_part

_TITLE: Final = "The single paths against their ensemble"
_NAMES: Final = {
    "roc_auc": "ROC AUC",
    "mixed_auc": "ROC AUC, mixed sources",
    "pr_auc": "PR AUC",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall (sensitivity)",
    "specificity": "specificity",
    "f1": "F1",
    "brier": "Brier score (lower is better)",
    "calibration_error": "calibration error (lower is better)",
}
_PUBLISHED: Final = {
    "accuracy": 0.789,
    "precision": 0.739,
    "recall": 0.693,
    "f1": 0.715,
    "roc_auc": 0.852,
    "specificity": 801 / 945,
}
"""Of the ensemble in the paper (confusion matrix [[407, 180], [144, 801]])."""


def ensemble_table(run: Run) -> Section:
    """Columns: paths out of fold; paths and ensemble on each split; the paper's ensemble on its own pictures."""
    blocks: list[Block] = []
    columns: dict[str, dict[str, str]] = {}
    if run.out_of_fold is not None:
        folds = list(run.out_of_fold.folds().values())
        columns["single paths, out of fold"] = _spread(folds)
    for split, pictures in run.ensemble.items():
        paths = pictures.paths()
        if paths:
            columns[f"single paths, {split}"] = _spread(paths)
        columns[f"ensemble, {split}"] = {
            name: with_interval(found.value, found.low, found.high)
            for name, found in _measured(run, split, pictures).items()
        }
    if not columns:
        missing = (
            "The table of single paths and ensemble is not shown: neither members/*/out_of_fold.parquet, "
            f"calibration.parquet nor audit/*/predictions.parquet is in {run.classification.url}."
        )
        return Section(name="ensemble", title=_TITLE, missing=(missing,))
    columns["paper's ensemble, its own pictures"] = {
        name: number(value) for name, value in _PUBLISHED.items()
    }
    rows = tuple(
        (words, *(column.get(name, "–") for column in columns.values())) for name, words in _NAMES.items()
    )
    blocks.append(
        Table(
            title="Single paths and ensemble (the paper's Table 2)",
            columns=("figure", *columns),
            rows=rows,
            how=f"Threshold 0.5 on the uncalibrated probability. Single paths: mean (standard deviation) over the "
            f"paths. Ensemble: 95 % interval from {run.draws} resamples of whole groups. The paper's figures are of "
            "other pictures (1,532 of one hospital) and no yardstick for these. "
            "Resampling makes a calibration error look larger, so its interval may lie above it.",
        )
    )
    blocks += [
        _gain(split, pictures, run.draws) for split, pictures in run.ensemble.items() if pictures.paths()
    ]
    return Section(name="ensemble", title=_TITLE, blocks=tuple(blocks))


def _metrics(pictures: Scored) -> dict[str, float]:
    found = binary_metrics(pictures.positive, pictures.probability, PAPER_THRESHOLD, score=pictures.logit)
    return {**found, "mixed_auc": mixed_source_auc(pictures.positive, pictures.logit, pictures.source)}


def _spread(parts: list[Scored]) -> dict[str, str]:
    found = [_metrics(part) for part in parts]
    return {name: mean_std(one[name] for one in found) for name in found[0]}


def _measured(run: Run, split: str, pictures: Scored) -> dict[str, Interval]:
    found = with_intervals(
        pictures.positive,
        pictures.probability,
        PAPER_THRESHOLD,
        groups=pictures.group,
        score=pictures.logit,
        draws=run.draws,
        seed=SEED,
    )
    mixed = run.areas.get((split, "mixed"))
    return found if mixed is None else {**found, "mixed_auc": mixed}


def _gain(split: str, pictures: Scored, draws: int) -> Note:
    words = []
    for name, part in (("all sources", pictures), ("mixed sources", mixed_part(pictures))):
        if len(part):
            gain = gain_over_paths(part, draws)
            words.append(f"{name} {with_interval(gain.value, gain.low, gain.high)}")
    return Note(
        text=f"On {split}, ROC AUC of the ensemble minus the mean of its own {len(pictures.paths())} paths: "
        f"{'; '.join(words)} (95 % interval, paired, whole groups)."
    )
