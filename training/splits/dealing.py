"""Deal whole groups to sides so that every side gets its share of everything that counts.

scikit-learn's StratifiedGroupKFold makes equal folds only and balances one label; here sides may have any
share, and class, source x class and the classes of the mixed sources are balanced at the same time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from training.data.example import Example
from training.data.units import Links, components

_MIXED_WEIGHT = 4.0
"""The figure to quote rests on the few negatives of the mixed sources, so their spread counts most."""
_MOST_MOVES = 2000


def deal(
    examples: Sequence[Example],
    shares: Sequence[float],
    *,
    seed: int,
    also: Links = (),
    stay: Collection[int] = (),
) -> list[int]:
    """The side of each example; a group, a patient or what ``also`` links is never on two sides.

    The largest groups are dealt first, each to the side where the sum over columns of
    (count - wanted)^2 / wanted grows least; then single groups move while that sum falls. Depends on ids,
    groups and seed, not on the order of the examples.

    Args:
        shares: wanted share of each side; they sum to 1.
        seed: breaks ties.
        also: see ``components``.
        stay: indices of examples that are on side 0, with all that they are linked with.
    """
    groups = components(examples, also)
    fixed_G = np.array([any(index in stay for index in group) for group in groups], bool)
    counts_GF, weights_F = _counts(examples, groups)
    wanted_SF = np.outer(np.asarray(shares, float), counts_GF.sum(axis=0))
    scale_SF = weights_F / wanted_SF
    side_G = _greedy(counts_GF, fixed_G, wanted_SF, scale_SF, np.random.default_rng(seed))
    _improve(side_G, counts_GF, fixed_G, wanted_SF, scale_SF)
    sides = [0] * len(examples)
    for group, side in zip(groups, side_G.tolist(), strict=True):
        for index in group:
            sides[index] = side
    return sides


def mixed_sources(examples: Sequence[Example]) -> set[str]:
    """Sources whose pictures are of two or more classes."""
    cells = {(example.source or "", example.label) for example in examples}
    return {source for source, count in Counter(source for source, _ in cells).items() if count > 1}


def _counts(
    examples: Sequence[Example], groups: Sequence[Sequence[int]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pictures of each group in each column ``[G, F]``, and the weight of each column ``[F]``."""
    mixed = mixed_sources(examples)
    columns: dict[tuple[str, ...], int] = {}
    entries: list[tuple[int, int]] = []
    for number, group in enumerate(groups):
        for index in group:
            source, label = examples[index].source or "", examples[index].label or ""
            names = [("all",), ("class", label), ("cell", source, label)]
            names += [("mixed", label)] if source in mixed else []
            entries += [(number, columns.setdefault(name, len(columns))) for name in names]
    counts_GF = np.zeros((len(groups), len(columns)))
    np.add.at(counts_GF, tuple(np.array(entries).T), 1.0)
    weights_F = np.array([_MIXED_WEIGHT if name[0] == "mixed" else 1.0 for name in columns])
    return counts_GF, weights_F


def _greedy(
    counts_GF: NDArray[np.float64],
    fixed_G: NDArray[np.bool_],
    wanted_SF: NDArray[np.float64],
    scale_SF: NDArray[np.float64],
    random: np.random.Generator,
) -> NDArray[np.int64]:
    held_SF = np.zeros_like(wanted_SF)
    held_SF[0] = counts_GF[fixed_G].sum(axis=0)
    side_G = np.zeros(len(counts_GF), np.int64)
    ties = random.permutation(len(counts_GF))
    for group in ties[np.argsort(-counts_GF[ties, 0], kind="stable")]:
        if fixed_G[group]:
            continue
        count_F = counts_GF[group]
        growth_S = (scale_SF * (2 * (held_SF - wanted_SF) * count_F + count_F**2)).sum(axis=1)
        side = int(np.argmin(growth_S))
        side_G[group] = side
        held_SF[side] += count_F
    return side_G


def _improve(
    side_G: NDArray[np.int64],
    counts_GF: NDArray[np.float64],
    fixed_G: NDArray[np.bool_],
    wanted_SF: NDArray[np.float64],
    scale_SF: NDArray[np.float64],
) -> None:
    """Move single groups to other sides, the best move first, while the cost falls; in place."""
    held_SF = np.zeros_like(wanted_SF)
    np.add.at(held_SF, side_G, counts_GF)
    square_GS = counts_GF**2 @ scale_SF.T
    everyone = np.arange(len(side_G))
    for _ in range(_MOST_MOVES):
        slope_GS = counts_GF @ (2 * scale_SF * (held_SF - wanted_SF)).T
        leaving_G = square_GS[everyone, side_G] - slope_GS[everyone, side_G]
        change_GS = slope_GS + square_GS + leaving_G[:, None]
        change_GS[everyone, side_G] = 0.0
        change_GS[fixed_G] = 0.0
        group, side = np.unravel_index(int(np.argmin(change_GS)), change_GS.shape)
        if change_GS[group, side] > -1e-9:
            return
        held_SF[side_G[group]] -= counts_GF[group]
        held_SF[side] += counts_GF[group]
        side_G[group] = side
