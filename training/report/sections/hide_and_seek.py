"""Hide and seek: what is left of the score when the lungs, or everything but the lungs, are hidden."""

from __future__ import annotations

from typing import Any, Final

from training.report.blocks import Block, Note, Section, Table
from training.report.run import Run
from training.report.sections.sources import interval_words

_TITLE: Final = "Hide and seek, and other weights"
_ROWS: Final = {
    "untouched": "untouched",
    "lungs_removed": "lungs removed",
    "lungs_only": "lungs only",
    "lungs_only_minus_untouched": "lungs only minus untouched",
}
_AREAS: Final = {"mixed": "mixed sources", "within": "pairs of one source", "pooled": "all sources"}


def hide_and_seek(run: Run) -> Section:
    """One table per audited split; a second one where another bundle was scored beside."""
    blocks: list[Block] = []
    for split, audit in run.classification.audits.items():
        facts = audit.facts
        if facts.get("hide_and_seek"):
            blocks.append(_table(split, facts["hide_and_seek"], facts.get("bundle", {})))
        if facts.get("compared"):
            blocks.append(_compared(split, facts))
            if facts["compared"].get("hide_and_seek"):
                other = facts["compared"]
                blocks.append(_table(split, other["hide_and_seek"], other.get("bundle", {})))
    if not blocks:
        missing = f"Hide and seek is not shown: no audit/*/audit.json with it is in {run.classification.url}."
        return Section(name="hide-and-seek", title=_TITLE, missing=(missing,))
    words = (
        "With the lungs removed an honest network can only guess (ROC AUC near 0.5); what it still tells apart then, "
        "it tells by the frame, the view or the look of a source. With the lungs alone it should lose next to nothing."
    )
    return Section(name="hide-and-seek", title=_TITLE, blocks=(Note(text=words), *blocks))


def _table(split: str, areas: dict[str, Any], bundle: dict[str, Any]) -> Table:
    gate = {True: ", with lung gate", False: ", without lung gate"}.get(bundle.get("lung_gate"), "")  # type: ignore[arg-type]
    return Table(
        title=f"“{bundle.get('name', 'ensemble')}” on {split}{gate}: ROC AUC",
        columns=("picture", *_AREAS.values()),
        rows=tuple(
            (words, *(interval_words(areas[key].get(kind)) for kind in _AREAS))
            for key, words in _ROWS.items()
            if areas.get(key)
        ),
        how="The standardised picture times 1 − mask (lungs removed) or times mask (lungs only), before scattering; "
        "the mask is the soft one of the bundle's own Module 1 on the untouched picture. 95 % intervals over whole "
        "groups; the difference is paired.",
    )


def _compared(split: str, facts: dict[str, Any]) -> Table:
    other = facts["compared"]
    rows = {
        str(facts.get("bundle", {}).get("name", "this bundle")): facts.get("auc", {}),
        str(other.get("bundle", {}).get("name", "the other bundle")): other.get("auc", {}),
        "difference, paired": other.get("difference", {}),
    }
    return Table(
        title=f"Beside other weights, on {split}: ROC AUC",
        columns=("weights", *_AREAS.values()),
        rows=tuple(
            (name, *(interval_words(areas.get(kind)) for kind in _AREAS)) for name, areas in rows.items()
        ),
        how="Both bundles on the same pictures with the same scorer; the difference is the first minus the second. An "
        "interval that holds 0 does not allow the claim that one is better.",
    )
