"""The tables and the counted sentences of a model card: pictures by side, the confound, figures by subgroup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from training.audit.pictures import UNKNOWN, age_group
from training.data.manifest import Example
from training.material import Material
from training.metrics.bootstrap import Indices, Interval, group_bootstrap_many
from training.metrics.classification import mixed_sources, roc_auc, within_source_auc

MOST_ROWS = 12
"""Sources (views, ...) with rows of their own; the others stand together, so that a card stays a card."""
DRAWS = 1000
CUT = 0.5
"""Probability from which on the subgroup table counts a picture as positive."""
KINDS = ("source", "view", "age group")


def sides_table(material: Material) -> str:
    """Pictures by source and class on each side of the split."""
    examples = material.frames.examples
    sources = _shortened([example.source or UNKNOWN for example in examples])
    counts = Counter(
        (source, example.label or "none", side)
        for source, example, side in zip(sources, examples, material.split, strict=True)
    )
    sides = sorted({side for _, _, side in counts})
    lines = [f"| source | class | {' | '.join(sides)} |", "| --- | --- |" + " ---: |" * len(sides)]
    for source, label in sorted({(source, label) for source, label, _ in counts}):
        numbers = " | ".join(str(counts[source, label, side]) for side in sides)
        lines.append(f"| {_cell(source)} | {_cell(label)} | {numbers} |")
    return "\n".join(lines)


def confound(material: Material, positive_class: str) -> str:
    """How far the class is given by the source, on the pictures of training and calibration."""
    examples = [
        example
        for example, side in zip(material.frames.examples, material.split, strict=True)
        if side in ("train", "calibration")
    ]
    label = np.array([example.label == positive_class for example in examples], dtype=bool)
    source = np.array([example.source or UNKNOWN for example in examples])
    names = [str(name) for name in np.unique(source)]
    if names == [UNKNOWN]:
        return (
            "The manifest names no source, so it cannot be told how far the class is given by where a picture comes "
            "from; no figure of this card is free of that."
        )
    if len(names) == 1:
        return f"All pictures are of one source ({names[0]}): no figure of this card says how other sources fare."
    mixed = mixed_sources(label, source)
    single = [name for name in names if name not in mixed]
    inside = np.isin(source, mixed)
    share = np.zeros(len(label))
    for name in names:
        share[source == name] = label[source == name].mean()
    parts = []
    if single:
        parts.append(
            f"{int((~inside).sum()):,} of {len(label):,} pictures of training and calibration are of sources that hold "
            f"only {positive_class} or none of it ({_list(single)}), so a network can tell their class by the source."
        )
    else:
        parts.append(f"Every source holds {positive_class} and other pictures.")
    parts.append(
        f"The source alone, by its share of {positive_class}, ranks these pictures with an AUC of "
        f"{roc_auc(label, share):.3f}; figures over all sources are to be read beside that."
    )
    if mixed:
        parts.append(
            f"{len(mixed)} {_plural(len(mixed), 'source holds', 'sources hold')} both ({_list(mixed)}: "
            f"{int(label[inside].sum()):,} {positive_class}, {int((~label[inside]).sum()):,} other): "
            "the mixed-source figures are of those, and are the ones to quote."
        )
    else:
        parts.append("No source holds both, so no figure of this card can tell the class from the source.")
    return " ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Out-of-fold pictures that have a score."""

    label: NDArray[np.bool_]
    """[N] whether the label is the positive class."""
    logit: NDArray[np.float64]
    """[N] log-odds by the one path that did not see the picture."""
    fold: NDArray[np.int64]
    group: NDArray[np.str_]
    """[N] what the bootstrap draws as one."""
    kinds: dict[str, list[str]]
    """Kind of ``KINDS`` -> value of each picture."""

    @classmethod
    def of(cls, out_of_fold: pa.Table, examples: dict[str, Example], positive_class: str) -> Scored:
        """Rows of ``out_of_fold.parquet`` with what the examples (by image_id) say of their pictures."""
        rows = [row for row in out_of_fold.to_pylist() if row["logit"] is not None]
        known = [examples.get(row["image_id"]) for row in rows]
        return cls(
            label=np.array([row["label"] == positive_class for row in rows], dtype=bool),
            logit=np.array([row["logit"] for row in rows], dtype=np.float64),
            fold=np.array([row["fold"] for row in rows], dtype=np.int64),
            group=np.array([row["group"] for row in rows], dtype=str),
            kinds={
                "source": [row["source"] or UNKNOWN for row in rows],
                "view": [(one.view if one else None) or UNKNOWN for one in known],
                "age group": [age_group(one) if one else UNKNOWN for one in known],
            },
        )


def subgroups_table(scored: Scored, positive_class: str, *, seed: int, draws: int = DRAWS) -> str:
    """Figures by source, view and age group; "-" where one is undefined."""
    lines = [
        f"| | pictures | {_cell(positive_class)} | AUC | sensitivity | specificity |",
        "| --- | ---: | ---: | --- | --- | --- |",
    ]
    for kind in KINDS:
        values = np.array(_shortened(scored.kinds[kind]))
        for name in np.unique(values):
            here = np.flatnonzero(values == name)
            found = _figures(scored, here, seed=seed, draws=draws)
            one_group = len(np.unique(scored.group[here])) == 1  # nothing to draw from
            cells = " | ".join(
                _interval(found[one], one_group) for one in ("auc", "sensitivity", "specificity")
            )
            lines.append(
                f"| {kind}: {_cell(str(name))} | {len(here)} | {int(scored.label[here].sum())} | {cells} |"
            )
    return "\n".join(lines)


def _figures(scored: Scored, here: NDArray[np.intp], *, seed: int, draws: int) -> dict[str, Interval]:
    label, logit, fold = scored.label[here], scored.logit[here], scored.fold[here]
    called = logit >= np.log(CUT / (1 - CUT))

    def statistics(i: Indices) -> dict[str, float]:
        positive = label[i]
        return {
            # Logits of different paths are on different scales, so only pairs of one fold are compared.
            "auc": within_source_auc(positive, logit[i], fold[i]),
            "sensitivity": _mean(called[i][positive]),
            "specificity": _mean(~called[i][~positive]),
        }

    return group_bootstrap_many(statistics, scored.group[here], draws=draws, seed=seed)


def _shortened(names: Sequence[str]) -> list[str]:
    """The names, all but the most frequent ones replaced by one word for all of them."""
    counts = Counter(names)
    if len(counts) <= MOST_ROWS:
        return list(names)
    kept = {name for name, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST_ROWS]}
    others = f"{len(counts) - MOST_ROWS} others"
    return [name if name in kept else others for name in names]


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_ROWS])
    return shown + (f" and {len(names) - MOST_ROWS} others" if len(names) > MOST_ROWS else "")


def _plural(count: int, one: str, many: str) -> str:
    return one if count == 1 else many


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def _interval(interval: Interval, one_group: bool) -> str:
    if np.isnan(interval.value):
        return "-"
    if one_group:
        return f"{interval.value:.2f} (one group)"
    return f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def _mean(values: NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else float("nan")
