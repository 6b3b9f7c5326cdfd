"""The model card that lies beside a bundle's weights: under two pages of Markdown, written from what is known.

Every sentence is true of any data set that a user trains on: what is counted is counted here, and what is not known
is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from cxr_ray.weights import BundleMeta
from training.card_tables import CUT, DRAWS, Scored, confound, sides_table, subgroups_table
from training.loop import Stage
from training.material import Material
from training.options import Recipe
from training.provenance import LungRun
from training.splits.folds import PUBLISHED

_TWO_PAGES_OF_GROUPS = 5


def card_text(
    meta: BundleMeta,
    material: Material,
    out_of_fold: pa.Table,
    *,
    recipe: Recipe | None = None,
    data: Mapping[str, Any] | None = None,
    lungs: LungRun | None = None,
) -> str:
    """Model card of an assembled bundle.

    Args:
        meta: of the bundle, metrics and thresholds included.
        material: of the classification output.
        out_of_fold: one row per training picture: image_id, group, source, label, fold, logit (null: no lungs found).
        recipe: that the paths were trained with; None: not known, and the card does not say what was run.
        data: ``data.json`` of the classification output (``dropped``, ``regrouped``).
        lungs: how Module 1 was trained; None: its weights were taken from another bundle.
    """
    seed = 0 if recipe is None else recipe.loop.seed
    examples = dict(zip(material.frames.image_id, material.frames.examples, strict=True))
    scored = Scored.of(out_of_fold, examples, meta.positive_class)
    parts = [
        f"# {meta.name}",
        *_use(meta),
        *([] if recipe is None else ["## What was run", _run(meta, recipe, lungs)]),
        "## Data",
        f"Paths trained on {meta.trained_on}. Fingerprint of the data: `{meta.training_data_fingerprint}`.",
        sides_table(material),
        _left_out(material, data or {}),
        confound(material, meta.positive_class),
        "## Figures",
        _scope(recipe),
        _figures(meta.metrics),
        f"Out of fold, by source, view and age group (child: under 18), {DRAWS:,} draws; AUC over pairs of the same "
        f"fold, sensitivity and specificity of the one path at a probability of {CUT}, which is no threshold of the "
        "bundle; -: undefined. Small rows say little.",
        subgroups_table(scored, meta.positive_class, seed=seed),
        "## Reading a score",
        _reading(meta),
        "## Licence",
        meta.licence_basis,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _use(meta: BundleMeta) -> list[str]:
    return [
        "Research software, not a medical device.",
        "## Intended use",
        "Research on frontal chest radiographs: scoring archives for study, comparing methods, studying data sets. "
        f'Classes: {", ".join(meta.classes)}; `p_covid` speaks of "{meta.positive_class}".',
        "**Not to be used** to diagnose, treat or triage patients or to decide about any person; to estimate how "
        "common a disease is; on other views or body parts; to compare hospitals or groups of patients. No clinical "
        "validation was made. A heat map shows what moved the score, not where a disease is.",
    ]


def _run(meta: BundleMeta, recipe: Recipe, lungs: LungRun | None) -> str:
    """A list of what decided the weights."""
    paths = recipe.classification
    rule = (
        "dealt as the original's, which keep no patient together"
        if paths.folds.rule == PUBLISHED
        else "of whole patients and groups, stratified by class and source"
    )
    shares = paths.copy_shares or [1.0] * len(paths.copies.kinds)
    copies = ", ".join(
        f"{kind} {share / sum(shares):.0%}" for kind, share in zip(paths.copies.kinds, shares, strict=True)
    )
    drawn = "anew in every epoch" if paths.fresh_copies else "once"
    lines = [
        f"Module 2 (class): recipe `{recipe.name}`, seed {recipe.loop.seed}. {meta.paths} paths, each trained without "
        f"one of {paths.folds.count} folds ({rule}; fold seed {paths.folds.seed}).",
        *(f"Stage {number}: {_stage(stage)}." for number, stage in enumerate(paths.stages, start=1)),
        f"Copies of a picture, drawn {drawn} (seed {paths.copies.seed}): {copies}; mirrored {paths.mirror:.0%}. Class "
        f"weights: {paths.class_weights}. Lung gate: {'on' if meta.lung_gate else 'off'}. Lungs of style "
        f"{meta.mask_style}.",
    ]
    if lungs is None:
        lines.append(
            f"Module 1 (lungs; {', '.join(meta.mask_styles)}) was not trained in this run; its weights were taken from "
            "another bundle."
        )
    else:
        lines += _lung_lines(lungs)
    if "removed" in paths.copies.kinds:
        lines.append(
            "The copies with the lungs removed are blanked as an audit's hide and seek blanks them: that figure shows "
            "what was taught, for this way of blanking."
        )
    lines.append("Weights are those of the last epoch; no epoch is chosen by a figure.")
    return "\n".join(f"* {line}" for line in lines)


def _lung_lines(lungs: LungRun) -> list[str]:
    pairs = Counter((row["mask_style"], row["split"]) for row in lungs.pairs)
    recipe = lungs.recipe.segmentation
    counts = "; ".join(
        f"{style}: {pairs[style, 'train']} pairs trained on, {pairs[style, 'val']} watched"
        for style in recipe.styles
    )
    return [
        f"Module 1 (lungs): recipe `{lungs.recipe.name}`, seed {lungs.recipe.loop.seed}. {counts}.",
        *(
            f"Stage {number}: frames of {stage.rows} x {stage.columns}, {_stage(stage)}."
            for number, stage in enumerate(recipe.stages, start=1)
        ),
    ]


def _stage(stage: Stage) -> str:
    rate = stage.optimiser
    warm_up = f", warm-up {rate.warm_up:.0%}" if rate.warm_up else ""
    epochs = "1 epoch" if stage.epochs == 1 else f"{stage.epochs} epochs"
    silence = f", silence {stage.silence:g}" if stage.silence else ""
    return f"{epochs}, batch {stage.batch}, learning rate {rate.learning_rate:g} ({rate.schedule}{warm_up}){silence}"


def _left_out(material: Material, data: Mapping[str, Any]) -> str:
    """What is missing from the data, and what was taken apart."""
    sentences = []
    reasons = Counter(reason for reason in material.reason if reason)
    if reasons:
        counts = ", ".join(f"{count:,} for their {reason}" for reason, count in sorted(reasons.items()))
        sentences.append(f"Left out: {counts.replace('_', ' ')}.")
    dropped = data.get("dropped", material.frames.dropped)
    if dropped:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(dropped.items()))
        sentences.append(f"Not decoded when ingested, and so not in the table: {counts}.")
    seen = [f"{count:,} of {side}" for side, count in material.seen_by_segmenter.items()]
    if seen:
        sentences.append(
            f"Pictures that share file, patient or group with those that Module 1 was trained on (it sees no class): "
            f"{', '.join(seen)}."
        )
    regrouped = list(data.get("regrouped", ()))
    if regrouped:
        sentences.append(
            "Calibration takes whole groups only, so none of those named next is among its pictures."
        )
    for one in regrouped[:_TWO_PAGES_OF_GROUPS]:
        sentences.append(
            f"Group {one['group_key']} ({one['pictures']:,} pictures) held {one['share']:.0%} of the source "
            f"{one['source'] or 'without a name'}; it was taken apart by patient, into {one['patients']} groups, so "
            "near copies of different patients may stand in two folds."
        )
    if len(regrouped) > _TWO_PAGES_OF_GROUPS:
        sentences.append(f"So were {len(regrouped) - _TWO_PAGES_OF_GROUPS} more groups.")
    return " ".join(sentences)


def _scope(recipe: Recipe | None) -> str:
    text = (
        "Value with 95 % interval over groups of patients. *Out of fold*: each training picture by the one path that "
        "did not see it. *Calibration*: the whole ensemble on pictures that no path saw. Other splits took no part; "
        "`jobs/audit.py` measures them."
    )
    if recipe is not None and recipe.classification.folds.rule == PUBLISHED:
        text += " The folds keep no patient together, so out-of-fold figures are too high where a patient has several."
    return text


def _figures(metrics: Mapping[str, Any]) -> str:
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
        "Thresholds on `p_covid`, with sensitivity and specificity on the calibration pictures. They were chosen on "
        "these, so expect less on others:",
    ]
    for name, point in meta.thresholds.items():
        shown = [
            f"{kind} {point[kind][0]:.3f} ({point[kind][1]:.3f} to {point[kind][2]:.3f})"
            for kind in ("sensitivity", "specificity")
        ]
        default = ", the default" if name == meta.default_threshold else ""
        lines.append(f"* `{name}`{default}: {point['p_covid']:.4f}, {', '.join(shown)}")
    return "\n".join(lines)
