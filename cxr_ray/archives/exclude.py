"""Which names are left out of a listing, and the count of what was."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

# Clearly no images, whatever the bytes say. Case does not matter; a pattern without "/" is for the file name,
# one with "/" for the end of the path, whose "*" crosses folders.
DEFAULT_EXCLUDE: tuple[str, ...] = (
    ".*",
    ".*/*",
    "__MACOSX/*",
    "Thumbs.db",
    "desktop.ini",
    "*.csv",
    "*.tsv",
    "*.txt",
    "*.json",
    "*.jsonl",
    "*.md",
    "*.rst",
    "*.xml",
    "*.yaml",
    "*.yml",
    "*.html",
    "*.htm",
    "*.css",
    "*.js",
    "*.pdf",
    "*.doc",
    "*.docx",
    "*.xls",
    "*.xlsx",
    "*.parquet",
    "*.py",
    "*.sh",
    "*.log",
    "*.md5",
    "*.sha1",
    "*.sha256",
    "*.sha512",
)


@dataclass(slots=True, kw_only=True)
class ListingReport:
    """Counts of one listing, filled in while it is consumed: nothing is left out without being counted."""

    listed: int = 0
    """Inputs yielded, failure rows included."""
    excluded: int = 0
    """Files and members whose name matched an exclude pattern."""
    not_regular: int = 0
    """Links, devices, pipes and sparse entries: no plain bytes to read."""
    containers: int = 0
    """Containers opened (readable or not)."""
    repeated_rows: int = 0
    """Manifest rows that name an input another row named before; the first one counts."""
    rows_without_uri: int = 0
    """Manifest rows whose uri is empty."""


class Exclusion:
    """Says whether a relative path is to be left out."""

    def __init__(self, patterns: Sequence[str]) -> None:
        names = [pattern for pattern in patterns if "/" not in pattern]
        paths = [pattern for pattern in patterns if "/" in pattern]
        paths += ["*/" + pattern for pattern in paths]
        self._name = _any_of(names)
        self._path = _any_of(paths)

    def __call__(self, relative: str) -> bool:
        """Whether a file of this path, relative to the archive's root or container, is left out."""
        # "./a.png" is how many tar files spell a.png; its dot is not that of a hidden file.
        parts = [part for part in relative.lower().split("/") if part not in ("", ".", "..")]
        if not parts:
            return False
        return bool(self._name.match(parts[-1]) or self._path.match("/".join(parts)))


def _any_of(patterns: Sequence[str]) -> re.Pattern[str]:
    """One expression for all shell patterns; it matches nothing when there are none."""
    return re.compile("|".join(fnmatch.translate(pattern.lower()) for pattern in patterns) or r"(?!)")
