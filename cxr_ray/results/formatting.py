"""Query results as text: an aligned table for people, CSV and JSON for programs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from cxr_ray.results.query import QueryResult

FORMATS: Final = ("table", "csv", "json")
TABLE_ROWS: Final = 40
"""Rows of an aligned table unless told otherwise; CSV and JSON are complete unless told otherwise."""

_WIDEST: Final = 60


def format_result(result: QueryResult, style: str, max_rows: int | None = None) -> Iterator[str]:
    """Lines of text without their line ends.

    Args:
        style: ``table`` (cells over 60 characters are cut), ``csv`` or ``json`` (an array of objects).
        max_rows: at most so many rows; a table says when there are more. None: 40 for a table, else all.

    Binary values are shown as ``<n bytes>``, nulls as an empty cell (``null`` in JSON).
    """
    if not result.columns:
        return iter(())
    if style == "table":
        return _table(result, TABLE_ROWS if max_rows is None else max_rows)
    rows = islice(result.rows, max_rows)
    return _csv(result.columns, rows) if style == "csv" else _json(result.columns, rows)


def _table(result: QueryResult, max_rows: int) -> Iterator[str]:
    rows = list(islice(result.rows, max_rows + 1))
    cut = len(rows) > max_rows
    rows = rows[:max_rows]
    cells = [list(result.columns), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(result.columns))]
    numeric = [
        any(row[index] is not None for row in rows)
        and all(
            row[index] is None or (isinstance(row[index], (int, float)) and not isinstance(row[index], bool))
            for row in rows
        )
        for index in range(len(widths))
    ]
    for number, row in enumerate(cells):
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        yield "  ".join(padded).rstrip()
        if number == 0:
            yield "  ".join("-" * width for width in widths)
    if cut:
        yield f"... more rows; {max_rows} shown (--max-rows N shows more, --format csv all)"


def _csv(columns: tuple[str, ...], rows: Iterator[tuple[Any, ...]]) -> Iterator[str]:
    yield _csv_line(columns)
    for row in rows:
        yield _csv_line(tuple(_plain(value) for value in row))


def _csv_line(values: tuple[Any, ...]) -> str:
    buffer = io.StringIO()
    # Nested values (flags, path_logits, carry) as JSON: the one text form that reads back unambiguously.
    texts = [json.dumps(value) if isinstance(value, (list, dict)) else value for value in values]
    csv.writer(buffer, lineterminator="\n").writerow(texts)  # it quotes only the line ends that it knows
    return buffer.getvalue().removesuffix("\n")


def _json(columns: tuple[str, ...], rows: Iterator[tuple[Any, ...]]) -> Iterator[str]:
    yield "["
    pending: str | None = None
    for row in rows:
        if pending is not None:
            yield f"{pending},"
        pending = json.dumps(dict(zip(columns, map(_plain, row), strict=True)), ensure_ascii=False)
    if pending is not None:
        yield pending
    yield "]"


def _plain(value: Any) -> Any:
    """A value as JSON knows it: bytes as their length, non-finite numbers as null, other types as text."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<{len(value)} bytes>"
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _cell(value: Any) -> str:
    plain = value if isinstance(value, float) else _plain(value)
    if plain is None:
        return ""
    if isinstance(plain, float):
        return f"{plain:.6g}"
    if isinstance(plain, list):
        text = "[" + ", ".join(_cell(item) for item in plain) + "]"
    elif isinstance(plain, dict):
        text = json.dumps(plain, ensure_ascii=False)
    else:
        text = str(plain)
    text = " ".join(text.split())
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."
