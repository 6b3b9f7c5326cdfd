"""Scores of labelled pictures in one form, whichever table they come from, and what is counted on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import confusion_matrix

from training.metrics.bootstrap import Indices, Interval, Statistic, group_bootstrap, paired_difference
from training.metrics.classification import mixed_sources, roc_auc, within_source_auc

PAPER_THRESHOLD = 0.5
SEED = 0
"""Of the bootstrap, as in an audit, so that both give the same intervals."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Pictures with a label and a score; all arrays run over the same N pictures."""

    positive: NDArray[np.bool_]
    """Whether the label is the positive class."""
    logit: NDArray[np.float64]
    """Log-odds of the positive class."""
    source: NDArray[np.str_]
    group: NDArray[np.str_]
    """What the bootstrap draws as one: group, else patient, else the picture."""
    path_logits: NDArray[np.float64] | None = None
    """``[N, K]``: one column per path, where the ensemble was scored."""
    fold: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.positive)

    @property
    def probability(self) -> NDArray[np.float64]:
        """Uncalibrated probability of the positive class."""
        return np.asarray(expit(self.logit))

    @property
    def mixed(self) -> NDArray[np.bool_]:
        """Whether the picture's source holds both classes here."""
        return np.isin(self.source, mixed_sources(self.positive, self.source))

    def take(self, chosen: NDArray[np.bool_]) -> Scored:
        """The pictures of a mask."""
        return Scored(
            positive=self.positive[chosen],
            logit=self.logit[chosen],
            source=self.source[chosen],
            group=self.group[chosen],
            path_logits=None if self.path_logits is None else self.path_logits[chosen],
            fold=None if self.fold is None else self.fold[chosen],
        )

    def paths(self) -> list[Scored]:
        """The same pictures as each single path scores them."""
        if self.path_logits is None:
            return []
        return [
            Scored(positive=self.positive, logit=column, source=self.source, group=self.group)
            for column in self.path_logits.T
        ]

    def folds(self) -> dict[int, Scored]:
        """Fold number -> its pictures."""
        if self.fold is None:
            return {}
        return {int(fold): self.take(self.fold == fold) for fold in np.unique(self.fold)}


def scored(
    table: pa.Table | None, positive: str, *, logit: str = "logit", groups: Mapping[str, str] | None = None
) -> Scored | None:
    """Scores of a table's labelled rows; None without a table, the column or such rows.

    Args:
        table: columns ``label`` and ``logit``; ``source``, ``group``, ``patient_key``, ``image_id``, ``path_logits``
            and ``fold`` are used where they are there.
        positive: name of the positive class; every other label counts as negative.
        logit: name of the column with the log-odds.
        groups: image_id -> group, for a table without ``group``.
    """
    if table is None or not {"label", logit} <= set(table.column_names):
        return None
    columns = table.to_pydict()
    known = [
        i
        for i, (label, value) in enumerate(zip(columns["label"], columns[logit], strict=True))
        if label is not None and value is not None and np.isfinite(value)
    ]
    if not known:
        return None
    paths = columns.get("path_logits", [])
    whole = bool(paths) and logit == "logit" and all(paths[i] is not None for i in known)
    return Scored(
        positive=np.array([columns["label"][i] == positive for i in known], dtype=bool),
        logit=np.array([columns[logit][i] for i in known], dtype=np.float64),
        source=np.array([str(_first(columns, i, "source") or "unknown") for i in known]),
        group=np.array([_group(columns, i, groups or {}) for i in known]),
        path_logits=np.array([paths[i] for i in known], dtype=np.float64) if whole else None,
        fold=np.array([columns["fold"][i] for i in known], dtype=np.int64)
        if _complete(columns, "fold")
        else None,
    )


def together(tables: Mapping[str, pa.Table], positive: str) -> Scored | None:
    """The out-of-fold scores of all members as one; ``fold`` is the number of the member where it is not given."""
    parts = []
    for number, table in enumerate(tables.values()):
        part = scored(table, positive)
        if part is not None:
            fold = part.fold if part.fold is not None else np.full(len(part), number)
            parts.append((part, fold))
    if not parts:
        return None
    return Scored(
        positive=np.concatenate([part.positive for part, _ in parts]),
        logit=np.concatenate([part.logit for part, _ in parts]),
        source=np.concatenate([part.source for part, _ in parts]),
        group=np.concatenate([part.group for part, _ in parts]),
        fold=np.concatenate([fold for _, fold in parts]),
    )


def auc(pictures: Scored) -> float:
    """Area under the ROC curve; NaN where one class is missing."""
    return roc_auc(pictures.positive, pictures.logit)


def mixed_part(pictures: Scored) -> Scored:
    """The pictures of the sources that hold both classes."""
    return pictures.take(pictures.mixed)


def auc_interval(pictures: Scored, draws: int) -> Interval:
    """Area with its 95 % interval over whole groups; pairs of two folds are left out, as two paths scored them."""
    return group_bootstrap(_area(pictures), pictures.group, draws=draws, seed=SEED)


def within_interval(pictures: Scored, draws: int) -> Interval:
    """As ``auc_interval``, over pairs of one source (and fold) only."""
    fold = np.zeros(len(pictures), dtype=np.int64) if pictures.fold is None else pictures.fold
    cell = np.array([f"{source} {number}" for source, number in zip(pictures.source, fold, strict=True)])
    return group_bootstrap(_area_inside(pictures, cell), pictures.group, draws=draws, seed=SEED)


def gain_over_paths(pictures: Scored, draws: int) -> Interval:
    """Area of the ensemble minus the mean area of its paths, paired."""
    areas = [_area(path) for path in pictures.paths()]

    def mean(i: Indices) -> float:
        return sum(area(i) for area in areas) / len(areas)

    return paired_difference(_area(pictures), mean, pictures.group, draws=draws, seed=SEED)


def _area(pictures: Scored) -> Statistic:
    if pictures.fold is not None:
        return _area_inside(pictures, pictures.fold)
    return lambda i: roc_auc(pictures.positive[i], pictures.logit[i])


def _area_inside(pictures: Scored, cell: NDArray[Any]) -> Statistic:
    return lambda i: within_source_auc(pictures.positive[i], pictures.logit[i], cell[i])


def confusion(pictures: Scored, threshold: float) -> NDArray[np.int64]:
    """Counts ``[2, 2]``: rows true positive and negative class, columns called so (positive from the threshold on)."""
    called = pictures.probability >= threshold
    return np.asarray(confusion_matrix(pictures.positive, called, labels=[True, False]), dtype=np.int64)


def _group(columns: Mapping[str, Sequence[object]], row: int, groups: Mapping[str, str]) -> str:
    known = groups.get(str(_first(columns, row, "image_id")))
    return str(
        _first(columns, row, "group") or known or _first(columns, row, "patient_key", "image_id") or row
    )


def _complete(columns: Mapping[str, Sequence[object]], name: str) -> bool:
    return name in columns and all(value is not None for value in columns[name])


def _first(columns: Mapping[str, Sequence[object]], row: int, *names: str) -> object:
    return next(
        (columns[name][row] for name in names if name in columns and columns[name][row] is not None), None
    )
