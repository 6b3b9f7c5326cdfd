"""Folds for cross-validation: grouped and stratified (ours), or the original's plain ones (REFERENCE_SPEC 10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import KFold

from cxr_ray.errors import TrainingDataError
from training.data.example import Example
from training.data.units import Links
from training.splits.dealing import deal

GROUPED = "grouped"
PUBLISHED = "published"
_PERMUTATION_SEED = 1338
_KFOLD_SEED = 20


@dataclass(kw_only=True)
class FoldSettings:
    """How training pictures are dealt to folds."""

    count: int = 6
    """Folds, and so paths."""
    rule: str = GROUPED
    """``grouped``: by group and patient, stratified by class and source. ``published``: the original's, which leak."""
    seed: int = 1
    """Breaks ties of ``grouped``; ``published`` has its own two."""
    max_group_share: float = 0.5
    """A group with a larger share of a source (and 30 or more pictures) is taken apart by patient; 1: never."""


def assign_folds(examples: Sequence[Example], settings: FoldSettings, also: Links = ()) -> list[int]:
    """The fold (0 to count - 1) that holds each example out.

    Groups are taken as they are: call ``regroup_large`` before. ``published`` takes the examples in the
    order of their ids, so that folds do not depend on where the files lie. ``also``: further links that
    ``grouped`` may not cut, see ``components``.

    Raises:
        TrainingDataError: an unknown rule, fewer than two folds, or a fold without pictures of some class.
    """
    if settings.rule not in (GROUPED, PUBLISHED):
        raise TrainingDataError(f"folds.rule must be {GROUPED} or {PUBLISHED}, not {settings.rule!r}")
    if not 2 <= settings.count <= len(examples):
        raise TrainingDataError(
            f"folds.count must lie between 2 and the number of pictures ({len(examples)}), not {settings.count}"
        )
    if settings.rule == GROUPED:
        return grouped_folds(examples, settings.count, settings.seed, also)
    order = sorted(range(len(examples)), key=lambda index: examples[index].id)
    folds = [0] * len(examples)
    for number, held_out in enumerate(published_folds([examples[i].id for i in order], settings.count)):
        for place in held_out:
            folds[order[place]] = number
    return folds


def grouped_folds(examples: Sequence[Example], k: int, seed: int, also: Links = ()) -> list[int]:
    """The fold of each example: whole groups, stratified by class, source and class within mixed sources.

    Raises:
        TrainingDataError: a class has too few groups for every fold to hold one.
    """
    folds = deal(examples, [1 / k] * k, seed=seed, also=also)
    for label in sorted({example.label for example in examples if example.label is not None}):
        members = [index for index, example in enumerate(examples) if example.label == label]
        if len({folds[index] for index in members}) < k:
            groups = len({examples[index].group for index in members})
            raise TrainingDataError(
                f"class {label} has {len(members)} pictures in {groups} groups, too few for {k} folds; "
                "give more pictures or a smaller folds.count"
            )
    return folds


def published_folds(names: Sequence[str], k: int = 6) -> list[list[int]]:
    """The original's folds: for each, the indices into ``names`` that it holds out.

    A permutation with NumPy's legacy generator and seed 1338, then KFold(k, shuffle, random_state=20) over
    the permuted list; with the original's 2265 names in the order of its file, these are the released folds.
    Neither grouped nor stratified: patients leak between folds.
    """
    permuted = np.random.RandomState(_PERMUTATION_SEED).permutation(len(names))
    splitter = KFold(k, shuffle=True, random_state=_KFOLD_SEED)
    return [permuted[held_out].tolist() for _, held_out in splitter.split(permuted)]
