"""What a report is made of: sections that hold figures, tables and notes, and numbers as a reader wants them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One picture with its words."""

    title: str
    image: str
    """Data URI; the page refers to nothing outside itself."""
    alt: str
    """What a reader who cannot see the picture must know."""
    how: str
    """How it was computed, in one line."""
    width: str = "half"
    """Share of a desktop page: ``whole``, ``half`` or ``third``; on a telephone every figure takes the whole."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table; the first column names the row, the others hold numbers or short words."""

    title: str
    columns: tuple[str, ...]
    """Headings, with the unit where there is one: ``time (h)``."""
    rows: tuple[tuple[str, ...], ...]
    how: str
    words: frozenset[int] = frozenset()
    """Indices of columns beside the first that hold words; the rest is set flush right."""


@dataclass(frozen=True, kw_only=True)
class Note:
    """One paragraph of plain text."""

    text: str
    warning: bool = False


@dataclass(frozen=True, kw_only=True)
class Details:
    """A long text that is folded away on a screen and shown in print."""

    title: str
    text: str


Block = Figure | Table | Note | Details


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with its blocks; without blocks it is left out, and the page says why."""

    name: str
    """Anchor in the page."""
    title: str
    blocks: tuple[Block, ...] = ()
    missing: tuple[str, ...] = field(default_factory=tuple)
    """Sentences on what could not be shown, each naming the file that is not there."""


def number(value: float | None, digits: int = 3) -> str:
    """A number with a fixed count of decimals; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def count(value: int) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u2009")


def with_interval(value: float | None, low: float | None, high: float | None, digits: int = 3) -> str:
    """``0.724 (0.53 to 0.86)``; the bounds only where there are any."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return number(value, digits)
    short = max(digits - 1, 1)
    return f"{number(value, digits)} ({number(low, short)} to {number(high, short)})"


def mean_std(values: Iterable[float], digits: int = 3) -> str:
    """``0.712 (0.021)``: mean and sample standard deviation of the finite values; one value has no deviation."""
    finite = [float(value) for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return "–"
    mean = sum(finite) / len(finite)
    if len(finite) == 1:
        return number(mean, digits)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in finite) / (len(finite) - 1))
    return f"{number(mean, digits)} ({number(deviation, digits)})"


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
