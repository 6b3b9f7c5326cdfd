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
    loose_versions: int = 0
    """Inventory rows whose version cannot be compared in full when the file is read."""


class Exclusion:
    """Says whether a relative path is to be left out."""

    def __init__(self, patterns: Sequence[str]) -> None:
        names = [pattern.lower() for pattern in patterns if "/" not in pattern]
        paths = [pattern.lower() for pattern in patterns if "/" in pattern]
        # Most patterns are mere endings, and those of folders hold for all files of a folder: both are told
        # faster than by one large expression for every file.
        endings = [name for name in names if name[:1] == "*" and not _SPECIAL.intersection(name[1:])]
        folders = [path for path in paths if path.endswith("/*")]
        self._endings = tuple(name[1:] for name in endings)
        self._name = _any_of([name for name in names if name not in endings])
        self._folder = _any_of([beginning + path[:-1] + "*" for path in folders for beginning in ("", "*/")])
        others = [path for path in paths if path not in folders]
        self._path = _any_of(others + ["*/" + path for path in others])
        self._last_folder = ("", False)

    def __call__(self, relative: str) -> bool:
        """Whether a file of this path, relative to the archive's root or container, is left out."""
        path = relative.lower()
        if path[:1] in "./" or path[-1:] in "./" or "//" in path or "./" in path:
            # "./a.png" is how many tar files spell a.png; its dot is not that of a hidden file.
            path = "/".join(part for part in path.split("/") if part not in ("", ".", ".."))
        if not path:
            return False
        folder, slash, name = path.rpartition("/")
        if self._last_folder[0] != folder:
            self._last_folder = folder, bool(self._folder.match(folder + slash))
        return (
            self._last_folder[1]
            or name.endswith(self._endings)
            or bool(self._name.match(name))
            or bool(self._path.match(path))
        )


_SPECIAL = frozenset("*?[")


def _any_of(patterns: Sequence[str]) -> re.Pattern[str]:
    """One expression for all shell patterns; it matches nothing when there are none."""
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns) or r"(?!)")
