"""Where workers on other machines leave what the driver should know; one per run, as a Ray actor."""

from __future__ import annotations

from typing import Any


class Noticeboard:
    """Rows of progress, tracebacks of failures, and refusals: errors that no new try can mend."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, dict[str, Any]]] = []
        self.notes: list[tuple[str, str]] = []
        self.refusals: dict[str, tuple[str, str]] = {}

    def add(self, name: str, row: dict[str, Any]) -> None:
        self.rows.append((name, row))

    def note(self, name: str, text: str) -> None:
        self.notes.append((name, text))

    def refuse(self, name: str, code: str, message: str) -> None:
        self.refusals.setdefault(name, (code, message))

    def refusal(self, name: str) -> tuple[str, str] | None:
        return self.refusals.get(name)

    def take(self) -> tuple[list[tuple[str, dict[str, Any]]], list[tuple[str, str]]]:
        """Rows and notes since the last call."""
        taken = (self.rows, self.notes)
        self.rows, self.notes = [], []
        return taken
