"""The side of the split that each picture is on by the manifest's own word, and why pictures are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from cxr_ray.errors import TrainingDataError
from training.data.frames import Frames
from training.data.licences import allows
from training.options import TrainOptions

LEFT_OUT = "left_out"
OURS = ("train", "val", "calibration", LEFT_OUT)
"""Sides that mean something here; a manifest that calls another side so gets it back as ``manifest:train``, ..."""
REASONS = {
    "licence": "under a licence with NC or ND terms (recipe.restricted_licences=true takes them)",
    "missing_split": "with an empty split, while the manifest has a column split",
    "label": "of no class in recipe.classification.classes{found} (manifest.label_map turns labels into classes)",
    "mask_style": "with a mask of no style in recipe.segmentation.styles{found}",
    "repetition": "that show a picture again (it counts once in classification)",
}
"""Why a picture is left out -> how messages say it."""
_MOST_WORDS = 10


def manifest_sides(frames: Frames, options: TrainOptions) -> tuple[list[str], list[str | None]]:
    """Side of each picture, and the reason (of ``REASONS``) where it is left out.

    Raises:
        TrainingDataError: nothing to train on, or two labels for one picture.
    """
    split, reason = [], []
    for example in frames.examples:
        side, why = _side(example.split, options)
        if side == "train" and not options.recipe.restricted_licences and not allows(example.licence):
            side, why = LEFT_OUT, "licence"
        if options.task == "segmentation" and example.mask_style not in options.recipe.segmentation.styles:
            side, why = LEFT_OUT, "mask_style"
        if options.task == "classification" and example.label not in options.recipe.classification.classes:
            side, why = LEFT_OUT, "label"
        split.append(side)
        reason.append(why)
    if options.task == "classification":
        _once_each(frames, split, reason)
    if "train" not in split:
        others = [one.split for one, side in zip(frames.examples, split, strict=True) if side != LEFT_OUT]
        parts = left_out(frames, reason)
        if others:
            found = f": {words(others)}" if words(others) else ""
            parts.append(
                f"{len(others):,} on other sides{found} (train_split={options.train_split} is trained on)"
            )
        raise TrainingDataError(f"no picture is left to train on: of {len(split):,}, {'; '.join(parts)}")
    return split, reason


def left_out(frames: Frames, reason: Sequence[str | None]) -> list[str]:
    """How many pictures are left out, for each reason, with the labels or styles that were found."""
    parts = []
    for why, count in sorted(Counter(one for one in reason if one is not None).items()):
        found = ""
        if why in ("label", "mask_style"):
            here = [example for example, one in zip(frames.examples, reason, strict=True) if one == why]
            found = words(getattr(example, why) for example in here)
        parts.append(f"{count:,} {REASONS[why].format(found=f': {found}' if found else '')}")
    return parts


def words(values: Iterable[str | None]) -> str:
    """Words with their counts, the most frequent first; empty where they may be identifiers."""
    # A column named by mistake may hold identifiers; a label is one of few words that come again and again.
    again = [(word or "none", count) for word, count in Counter(values).most_common() if count > 1]
    return ", ".join(f"{word} {count:,}" for word, count in again) if len(again) <= _MOST_WORDS else ""


def _side(word: str | None, options: TrainOptions) -> tuple[str, str | None]:
    if word == "":
        return LEFT_OUT, "missing_split"
    if word is None or word == options.train_split:
        return "train", None
    if word == options.validation_split:
        return "val", None
    return (f"manifest:{word}" if word in OURS else word), None


def _once_each(frames: Frames, split: list[str], reason: list[str | None]) -> None:
    """Leave out all but one row of each picture (rows may differ by their mask), in place."""
    rows: dict[str, list[int]] = {}
    for index, image_id in enumerate(frames.image_id):
        rows.setdefault(image_id, []).append(index)
    for indices in rows.values():
        used = [index for index in indices if split[index] != LEFT_OUT]
        if len({frames.examples[index].label for index in used}) > 1:
            raise TrainingDataError(
                f"{' and '.join(frames.examples[index].called for index in used[:2])} are one picture with two labels; "
                "mend the manifest"
            )
        for index in used[1:]:
            if split[index] == split[used[0]]:  # on two sides it is a leak, and refused as one
                split[index], reason[index] = LEFT_OUT, "repetition"
