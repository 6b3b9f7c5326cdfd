"""What is known of the audited pictures, as arrays, and the three areas that every comparison is made in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.manifest import Example
from training.metrics.bootstrap import DRAWS, Indices, Interval, group_bootstrap, paired_difference
from training.metrics.classification import mixed_sources, roc_auc, within_source_auc

AREAS = ("mixed", "within", "pooled")
"""ROC AUC of the sources that hold both classes with all pairs between them; of pairs of one source only; of all."""
UNKNOWN = "unknown"
Scores = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """N labelled pictures."""

    positive: NDArray[np.bool_]
    """[N] whether the label is the positive class."""
    class_index: NDArray[np.int64]
    """[N] label as index into the bundle's classes."""
    group: NDArray[Any]
    """[N] unit key: what the bootstrap draws as one."""
    source: NDArray[Any]
    view: NDArray[Any]
    age_group: NDArray[Any]
    """[N] "child" (under 18), "adult" or "unknown"."""

    def __len__(self) -> int:
        return len(self.positive)

    def take(self, chosen: NDArray[Any]) -> Pictures:
        """The pictures of a mask or index array."""
        return replace(self, **{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


def pictures_of(examples: Sequence[Example], classes: Sequence[str], positive_class: str) -> Pictures:
    """Arrays of the examples, every one with a label out of ``classes``."""
    place = {name: number for number, name in enumerate(classes)}
    return Pictures(
        positive=np.array([example.label == positive_class for example in examples], dtype=bool),
        class_index=np.array([place[str(example.label)] for example in examples], dtype=np.int64),
        group=np.array([example.unit_key for example in examples]),
        source=np.array([example.source or UNKNOWN for example in examples]),
        view=np.array([example.view or UNKNOWN for example in examples]),
        age_group=np.array([age_group(example) for example in examples]),
    )


def age_group(example: Example) -> str:
    """ "child", "adult" or "unknown"."""
    return {True: "child", False: "adult", None: UNKNOWN}[example.pediatric]


@dataclass(frozen=True, kw_only=True)
class Areas:
    """The areas of any scores of the same pictures, with intervals over the same resamples."""

    pictures: Pictures
    mixed: Sequence[str]
    """The sources that hold both classes; fixed before resampling."""
    draws: int = DRAWS
    seed: int = 0

    @classmethod
    def of(cls, pictures: Pictures, mixed: Sequence[str] = (), *, draws: int = DRAWS, seed: int) -> Areas:
        """``mixed`` empty: the sources that hold both classes in these pictures."""
        found = list(mixed) or mixed_sources(pictures.positive, pictures.source)
        return cls(pictures=pictures, mixed=found, draws=draws, seed=seed)

    @property
    def in_mixed(self) -> NDArray[np.bool_]:
        """[N] whether the picture is of a mixed source."""
        return np.isin(self.pictures.source, list(self.mixed))

    def values(self, score_N: Scores) -> dict[str, float]:
        """mixed, within, pooled -> area, without interval."""
        return {name: area(score)(np.arange(len(part))) for name, part, score, area in self._each(score_N)}

    def intervals(self, score_N: Scores) -> dict[str, Interval]:
        """mixed, within, pooled -> area with its interval over whole groups."""
        return {
            name: group_bootstrap(area(score), part.group, draws=self.draws, seed=self.seed)
            for name, part, score, area in self._each(score_N)
        }

    def difference(self, first_N: Scores, second_NK: Scores) -> dict[str, Interval]:
        """Area of ``first`` minus that of ``second``, paired; K columns of a second count by the mean of K areas."""
        columns = second_NK.reshape(len(second_NK), -1)
        result = {}
        for name, part, both, area in self._each(np.column_stack((first_N, columns))):
            first = area(both[:, 0])
            others = [area(column) for column in both[:, 1:].T]

            def second(i: Indices, others: list[Callable[[Indices], float]] = others) -> float:
                return float(np.mean([other(i) for other in others]))

            result[name] = paired_difference(first, second, part.group, draws=self.draws, seed=self.seed)
        return result

    def _each(self, score: Scores) -> list[tuple[str, Pictures, Scores, _Area]]:
        """(name, its pictures, their scores, function of a score that gives the statistic of indices)."""
        chosen = self.in_mixed
        mixed, mixed_score = self.pictures.take(chosen), score[chosen]

        def plain(pictures: Pictures) -> _Area:
            return lambda s: lambda i: roc_auc(pictures.positive[i], s[i])

        def within(s: Scores) -> Callable[[Indices], float]:
            return lambda i: within_source_auc(mixed.positive[i], s[i], mixed.source[i])

        return [
            ("mixed", mixed, mixed_score, plain(mixed)),
            ("within", mixed, mixed_score, within),
            ("pooled", self.pictures, score, plain(self.pictures)),
        ]


_Area = Callable[[Scores], Callable[[Indices], float]]
