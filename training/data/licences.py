"""What a licence, as written in a manifest, allows: never train shipped weights on NC or ND rows.

This reads words, not law. A row whose licence is not stated passes, and is listed by source and count.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from training.data.example import Example

# NC and ND count as elements: letters of their own ("CC BY-NC", "by_nd", "BY NC"), or grown together with
# BY or SA. Words that only contain the letters (licence, NCBI, NCSA, and, 2nd) do not match.
_RESTRICTED = re.compile(
    r"(?<![a-z0-9])(?:nc|nd)(?![a-z0-9])"
    r"|(?<![a-z])(?:cc[\s\-_]*)?by[\s\-_]*(?:nc|nd)(?:[\s\-_]*(?:sa|nd))?(?![a-z])"
    r"|\b(?:non|not?[\s\-]+(?:for[\s\-]+)?(?:any[\s\-]+)?)[\s\-]*commercial"
    r"|\bno[nt]?[\s\-]*deriv",
    re.IGNORECASE,
)
_NOT_STATED = re.compile(
    r"not (?:stated|given|specified|known)|none\b|no licen[cs]e|unknown|unstated|unspecified|n/a\b|[-?.]*$",
    re.IGNORECASE,
)
NONE_STATED = "none stated"


def allows(licence: str | None) -> bool:
    """Whether a licence, the mask's included, is free of non-commercial and no-derivatives terms.

    Args:
        licence: as the manifest gives it, e.g. "CC BY-NC-SA 4.0 | mask CC BY 4.0"; None and "" are allowed,
            since nothing is stated that forbids.
    """
    return _RESTRICTED.search(licence or "") is None


def stated(licence: str | None) -> bool:
    """Whether a licence is stated for the row itself, for each part ("picture | mask ...") of it.

    "not stated per image (repo CC BY 4.0)" is not stated: the carrier's licence is not the picture's.
    """
    return all(_NOT_STATED.match(part.strip()) is None for part in (licence or "").split("|"))


def licence_basis(used: Iterable[Example], left_out: Iterable[Example] = ()) -> dict[str, Any]:
    """What the weights rest on, for bundle.json and the model card: plain JSON.

    Args:
        used: the rows trained on (calibration rows included).
        left_out: rows left out for their licence.

    Returns:
        ``rows``; ``by_source``: source -> licence as written -> rows; ``none_stated``: source -> rows;
        ``left_out``: source -> licence -> rows; ``sentence``.
    """
    used, left_out = list(used), list(left_out)
    none_stated = Counter(_source(example) for example in used if not stated(example.licence))
    refused = sum(not allows(example.licence) for example in used)
    parts = [f"Trained on {len(used)} rows"]
    if refused:
        parts.append(f"{refused} of them under non-commercial or no-derivatives terms")
    else:
        parts.append("none of them under non-commercial or no-derivatives terms")
    if none_stated:
        counts = ", ".join(f"{source} {count}" for source, count in sorted(none_stated.items()))
        parts.append(f"{none_stated.total()} without a stated licence of their own ({counts})")
    if left_out:
        parts.append(f"{len(left_out)} further rows were left out for their licence")
    return {
        "rows": len(used),
        "by_source": _by_source(used),
        "none_stated": dict(sorted(none_stated.items())),
        "left_out": _by_source(left_out),
        "sentence": "; ".join(parts) + ". For research use; no warranty of rights.",
    }


def _by_source(examples: list[Example]) -> dict[str, dict[str, int]]:
    table: dict[str, Counter[str]] = {}
    for example in examples:
        table.setdefault(_source(example), Counter())[example.licence or NONE_STATED] += 1
    return {source: dict(sorted(counts.items())) for source, counts in sorted(table.items())}


def _source(example: Example) -> str:
    return example.source or "unnamed source"
