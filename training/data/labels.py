"""Labels of the manifest: mapped to class names, and checked against the classes that are to be told apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from cxr_ray.errors import TrainingDataError
from training.data.example import SHOWN, Example, names


def check_classes(examples: Iterable[Example], classes: Sequence[str], *, where: str) -> dict[str, int]:
    """Pictures of each class, in the order of ``classes``.

    Args:
        where: names the examples in the message, e.g. "the training split".

    Raises:
        TrainingDataError: an example without label, or of another class, or a class without example.
    """
    examples = list(examples)
    unlabelled = [example for example in examples if example.label is None]
    if unlabelled:
        raise TrainingDataError(
            f"{len(unlabelled)} of {len(examples)} pictures in {where} have no label ({names(unlabelled)}); "
            "label them or take them out of the manifest"
        )
    counts = Counter(str(example.label) for example in examples)
    other = sorted(set(counts) - set(classes))
    if other:
        strange = [example for example in examples if example.label in other]
        raise TrainingDataError(
            f"{len(strange)} pictures in {where} are of no class in {', '.join(classes)} ({names(strange)}); "
            "set manifest.label_map or classes"
        )
    empty = [name for name in classes if not counts[name]]
    if empty:
        raise TrainingDataError(
            f"class {' and class '.join(empty)} has no picture in {where} ({len(examples)} pictures in all); "
            "training needs pictures of every class"
        )
    return {name: counts[name] for name in classes}


class Labels:
    """Maps labels, and gathers those the map does not know for one message."""

    def __init__(self, label_map: Mapping[str, str]) -> None:
        self.map = dict(label_map)
        self.unknown: list[tuple[int, str]] = []

    def __call__(self, row: int, text: str | None) -> str | None:
        if text is None or not self.map:
            return text
        if text not in self.map:
            self.unknown.append((row, text))
        return self.map.get(text)

    def check(self) -> None:
        if not self.unknown:
            return
        rows = ", ".join(str(row) for row, _ in self.unknown[:SHOWN])
        # A column named by mistake may hold identifiers; a label is a word that comes again and again.
        again = [text for text, count in Counter(text for _, text in self.unknown).items() if count > 1]
        words = f" such as {again[0]!r}" if again and len(again) <= SHOWN else ""
        raise TrainingDataError(
            f"{len(self.unknown)} rows have a label{words} that manifest.label_map does not know "
            f"(rows {rows}{', ...' if len(self.unknown) > SHOWN else ''}); "
            f"it knows {', '.join(sorted(self.map))}"
        )
