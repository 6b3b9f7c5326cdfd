"""The model card that lies beside a bundle's weights, in Markdown, from what is known of its training."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa

from cxr_ray.weights import BundleMeta
from training.material import Material


def card_text(meta: BundleMeta, material: Material, out_of_fold: pa.Table) -> str:
    """Model card of an assembled bundle. Figures are those of ``meta.metrics``; nothing is estimated here."""
    parts = [
        f"# {meta.name}",
        "Research software, not a medical device. Scores of this bundle must not be used to diagnose, treat or triage "
        "patients, or to decide about any person.",
        "## Trained on",
        f"{meta.trained_on}. Fingerprint of the data: `{meta.training_data_fingerprint}`.",
        _sides(material),
        "A source that holds one class only lets a network tell the class by the source. Figures over all sources "
        "therefore say little; those inside the sources that hold both classes are the ones to quote.",
        "## Figures (value, 95 % interval over groups of patients)",
        _figures(meta.metrics),
        "## Reading a score",
        _reading(meta),
        "## Licence",
        meta.licence_basis,
    ]
    regrouped = [
        f"Group {one.group_key} held {one.share:.0%} of the source {one.source}; it was taken apart into "
        f"{one.patients} groups by patient, so near copies of different patients may stand in two folds."
        for one in material.regrouped
    ]
    return "\n\n".join([*parts, *regrouped]) + "\n"


def _sides(material: Material) -> str:
    counts: Counter[tuple[str, str, str]] = Counter(
        (example.source or "?", example.label or "?", side)
        for example, side in zip(material.frames.examples, material.split, strict=True)
    )
    sides = sorted({side for _, _, side in counts})
    lines = [f"| source | class | {' | '.join(sides)} |", "| --- | --- |" + " ---: |" * len(sides)]
    for source, label in sorted({(source, label) for source, label, _ in counts}):
        numbers = " | ".join(str(counts[source, label, side]) for side in sides)
        lines.append(f"| {source} | {label} | {numbers} |")
    return "\n".join(lines)


def _figures(metrics: dict[str, Any]) -> str:
    lines = []
    for name, value in metrics.items():
        if isinstance(value, dict):
            for style, by_source in value.items():
                shown = ", ".join(f"{source} {dice:.3f}" for source, dice in sorted(by_source.items()))
                lines.append(f"* {name.replace('_', ' ')}, mask style {style}: {shown}")
        else:
            numbers = ["undefined" if number is None else f"{number:.3f}" for number in value]
            lines.append(f"* {name.replace('_', ' ')}: {numbers[0]} ({numbers[1]} to {numbers[2]})")
    return "\n".join(lines) or "None were measured."


def _reading(meta: BundleMeta) -> str:
    if not meta.calibration:
        return "The bundle has no calibration: scores rank pictures, they are no probabilities."
    lines = [
        f"`p_calibrated` is valid at a prevalence of {meta.calibration['prevalence']:.3f} only, that of the "
        f"{meta.calibration['n']} calibration pictures; give `prevalence=` to shift it to yours.",
        "Thresholds on `p_covid`, with sensitivity and specificity on the calibration pictures, where they were "
        "chosen, so that other pictures will show less:",
    ]
    for name, point in meta.thresholds.items():
        low, high = point["sensitivity"], point["specificity"]
        lines.append(
            f"* `{name}`: {point['p_covid']:.4f}, sensitivity {low[0]:.3f} ({low[1]:.3f} to {low[2]:.3f}), specificity "
            f"{high[0]:.3f} ({high[1]:.3f} to {high[2]:.3f})"
        )
    return "\n".join(lines)
