"""The calibration split: groups that no path is trained on, for calibration and thresholds of the ensemble."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cxr_ray.errors import TrainingDataError
from training.data.example import Example
from training.data.units import Links
from training.splits.dealing import deal


def calibration_split(
    examples: Sequence[Example],
    *,
    share: float = 0.15,
    seed: int = 1,
    also: Links = (),
    stay: Collection[int] = (),
) -> set[int]:
    """Indices of the calibration pictures: whole groups, stratified by class and source.

    Args:
        examples: of the training split, in the groups of the manifest (before ``regroup_large``).
        share: wanted share of the pictures, above 0 and below 1.
        seed: breaks ties.
        also: further links that may not be cut, see ``components``.
        stay: indices of examples that stay in training: those of groups that are taken apart for the folds.

    Raises:
        TrainingDataError: a share out of range, or a class that is not on both sides.
    """
    if not 0 < share < 1:
        raise TrainingDataError(f"the calibration share must lie between 0 and 1, not {share}")
    side = deal(examples, [1 - share, share], seed=seed, also=also, stay=stay)
    for label in sorted({example.label for example in examples if example.label is not None}):
        sides = {side[index] for index, example in enumerate(examples) if example.label == label}
        if len(sides) < 2:
            where = "the calibration split" if sides == {0} else "training"
            raise TrainingDataError(
                f"class {label} has no picture left for {where} at a share of {share}; give more pictures of it"
            )
    return {index for index, number in enumerate(side) if number == 1}
