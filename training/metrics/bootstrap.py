"""Bootstrap intervals over whole groups: pictures of one patient are drawn together or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
LEVEL = 0.95
Indices = NDArray[np.intp]
Statistic = Callable[[Indices], float]


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % percentile interval; NaN where it is undefined."""

    value: float
    """On the pictures as they are."""
    low: float
    high: float
    draws: int = 0
    """Draws that the interval rests on."""
    left_out: int = 0
    """Draws without a value (one class only, nothing predicted positive, ...), which the interval leaves out."""

    def as_list(self) -> list[float | None]:
        """``[value, low, high]`` for JSON, null for NaN."""
        return [number_or_none(self.value), number_or_none(self.low), number_or_none(self.high)]

    def as_dict(self) -> dict[str, Any]:
        """``{"value", "low", "high", "draws", "left_out"}`` for JSON, null for NaN."""
        value, low, high = self.as_list()
        return {"value": value, "low": low, "high": high, "draws": self.draws, "left_out": self.left_out}

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def group_bootstrap(
    statistic: Statistic, groups: Sequence[str] | NDArray[Any], *, draws: int = DRAWS, seed: int
) -> Interval:
    """Interval of ``statistic(indices)``, indices into the pictures with repeats.

    Args:
        statistic: returns NaN where it is undefined for a draw; such draws are left out and counted.
        groups: group of each picture; all pictures of a drawn group come together.
        draws: number of resamples.
        seed: the same seed gives the same resamples, so figures of one set of pictures are comparable.
    """
    return group_bootstrap_many(lambda indices: {"": statistic(indices)}, groups, draws=draws, seed=seed)[""]


def group_bootstrap_many(
    statistics: Callable[[Indices], Mapping[str, float]],
    groups: Sequence[str] | NDArray[Any],
    *,
    draws: int = DRAWS,
    seed: int,
) -> dict[str, Interval]:
    """As ``group_bootstrap`` for several figures of the same resamples, by name."""
    count = len(groups)
    values = statistics(np.arange(count)) if count else {}
    rows = [statistics(indices) for indices in resamples(groups, draws=draws, seed=seed)] if values else []
    return {name: _interval(value, np.array([row[name] for row in rows])) for name, value in values.items()}


def paired_difference(
    first: Statistic,
    second: Statistic,
    groups: Sequence[str] | NDArray[Any],
    *,
    draws: int = DRAWS,
    seed: int,
) -> Interval:
    """Interval of ``first - second``, both on the same resamples of the same pictures."""
    return group_bootstrap(lambda indices: first(indices) - second(indices), groups, draws=draws, seed=seed)


def resamples(groups: Sequence[str] | NDArray[Any], *, draws: int = DRAWS, seed: int) -> Iterator[Indices]:
    """``draws`` index arrays, each made of as many groups as there are, drawn with replacement."""
    _, code = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(code)
    order = np.argsort(code, kind="stable")
    starts = np.cumsum(sizes) - sizes
    generator = np.random.default_rng(seed)
    for _ in range(draws):
        chosen = generator.integers(len(sizes), size=len(sizes))
        lengths = sizes[chosen]
        ends = np.cumsum(lengths)
        # Position of each index inside its group, added to where that group starts.
        inside = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        yield order[np.repeat(starts[chosen], lengths) + inside]


def number_or_none(value: float) -> float | None:
    """A float for JSON: null in place of NaN and infinity."""
    return float(value) if math.isfinite(value) else None


def _interval(value: float, drawn: NDArray[np.float64]) -> Interval:
    usable = drawn[np.isfinite(drawn)]
    if not math.isfinite(value) or not len(usable):
        return Interval(float("nan"), float("nan"), float("nan"), len(usable), len(drawn) - len(usable))
    low, high = np.quantile(usable, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high), len(usable), len(drawn) - len(usable))
