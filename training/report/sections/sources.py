"""How it does by source, and for an audited split by view and age group too."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from training.report.blocks import Block, Note, Section, Table, count, listed, number, with_interval
from training.report.run import Run
from training.report.scored import Scored, auc, auc_interval, confusion

_TITLE: Final = "By source, view and age"
_KINDS: Final = {"source": "source", "view": "view", "age_group": "age group"}
_WORDS: Final = "A source of one class has no AUC: only its share of right calls says anything."


def sources(run: Run) -> Section:
    """A table for each audited split, and by source for the folds and the calibration split."""
    name, threshold = run.threshold
    cut = f"{threshold:.3f}" + ("" if name == "0.5" else f" (“{name}”)")
    blocks: list[Block] = [
        Note(text=words)
        for split, audit in run.classification.audits.items()
        if (words := _counts(split, audit.facts))
    ]
    audited = {
        split: audit.facts for split, audit in run.classification.audits.items() if audit.facts.get("tables")
    }
    for split, facts in audited.items():
        blocks += [
            _audited(f"Ensemble on {split}, by {words}", words, facts["tables"][kind], facts)
            for kind, words in _KINDS.items()
            if facts["tables"].get(kind)
        ]
    for split, pictures in run.ensemble.items():
        if split not in audited:
            blocks.append(
                _counted(
                    f"Ensemble on {split}, by source",
                    pictures,
                    threshold,
                    run.draws,
                    f"threshold {cut}. {_WORDS}",
                )
            )
    if run.out_of_fold is not None:
        words = f"threshold 0.500, single paths, pairs inside a fold only. {_WORDS}"
        blocks.append(_counted("Out of fold, by source", run.out_of_fold, 0.5, run.draws, words))
    missing = (
        "Tables by source are not shown: neither audit/*/audit.json, calibration.parquet nor "
        f"members/*/out_of_fold.parquet is in {run.classification.url}.",
    )
    return Section(name="sources", title=_TITLE, blocks=tuple(blocks), missing=() if blocks else missing)


def _audited(title: str, kind: str, rows: list[dict[str, Any]], facts: dict[str, Any]) -> Table:
    return Table(
        title=title,
        columns=(kind, "pictures", "positive", "groups", "sensitivity", "specificity", "ROC AUC"),
        rows=tuple(
            (
                str(row["name"]),
                count(row["pictures"]),
                count(row["positive"]),
                count(row["groups"]),
                *(interval_words(row.get(key)) for key in ("sensitivity", "specificity", "roc_auc")),
            )
            for row in rows
        ),
        how=f"audit.json, threshold {number(facts.get('tables_threshold'))}; 95 % intervals over whole groups. "
        f"{_WORDS}",
    )


def _counted(title: str, pictures: Scored, threshold: float, draws: int, words: str) -> Table:
    rows = []
    for source in sorted(set(pictures.source.tolist())):
        part = pictures.take(pictures.source == source)
        counts = confusion(part, threshold)
        total = counts.sum(axis=1)
        shares = [counts[i, i] / total[i] if total[i] else None for i in (0, 1)]
        area = auc_interval(part, draws) if np.isfinite(auc(part)) else None
        rows.append(
            (
                source,
                count(len(part)),
                count(int(total[0])),
                count(len(set(part.group.tolist()))),
                number(shares[0]),
                number(shares[1]),
                "–" if area is None else with_interval(area.value, area.low, area.high),
            )
        )
    return Table(
        title=title,
        columns=("source", "pictures", "positive", "groups", "sensitivity", "specificity", "ROC AUC"),
        rows=tuple(rows),
        how=f"Uncalibrated probability, {words}",
    )


def _counts(split: str, facts: dict[str, Any]) -> str:
    """What the audit left uncounted, in one sentence; empty where it does not say."""
    counts, dropped = facts.get("counts"), facts.get("dropped") or {}
    if not counts:
        return ""
    lost = [f"{count(n)} dropped as {reason}" for reason, n in sorted(dropped.items())]
    lost += (
        [f"{count(counts['unscored'])} without a score (no lungs found)"] if counts.get("unscored") else []
    )
    whole = f"{split}: {count(counts['pictures'])} pictures of {count(counts['groups'])} groups"
    return f"{whole}; {listed(lost)}." if lost else f"{whole}, all of them scored."


def interval_words(value: Any) -> str:
    """An interval of ``audit.json`` or ``[value, low, high]`` in words; a dash for null."""
    if isinstance(value, dict):
        return with_interval(value.get("value"), value.get("low"), value.get("high"))
    return with_interval(*value) if isinstance(value, list) and len(value) == 3 else number(None)
