"""The log of every scoring of the test split: one line each, written before the scoring begins.

A bundle is scored once: a second scoring of the same tensors on the same pictures is refused, wherever its results
are to go, unless it is asked for. The log is Markdown, for people, and it is read back to know what has been scored.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cxr_ray.archives.storage import Storage, open_storage
from cxr_ray.errors import OutputError
from cxr_ray.weights.bundle import PATHS_FILE, SEGMENTER_FILE, Bundle
from training.data.frames import Frames

NAME = "test_uses.md"
HASH_DIGITS = 12
HEADER = """# Uses of the test split

`jobs/audit.py` writes a line before it scores the test split. Nothing may be chosen by what is read there.

| time (UTC) | bundle | tensors | task | pictures | command |
| --- | --- | --- | --- | ---: | --- |
"""


@dataclass(frozen=True, kw_only=True)
class TestUse:
    """What is scored, apart from the bundle."""

    __test__ = False  # no test, whatever the name says to pytest

    task: str
    """classification or segmentation."""
    pictures: int
    """How many."""
    fingerprint: str
    """Names the very pictures."""

    @classmethod
    def of(cls, task: str, frames: Frames) -> TestUse:
        """The use of these pictures."""
        files = sorted(
            sha or image_id for sha, image_id in zip(frames.content_sha256, frames.image_id, strict=True)
        )
        fingerprint = hashlib.sha256("\n".join(files).encode()).hexdigest()[:HASH_DIGITS]
        return cls(task=task, pictures=len(files), fingerprint=fingerprint)

    def tensors(self, bundle: Bundle) -> str:
        """Name of the weights that the task is about."""
        name = SEGMENTER_FILE if self.task == "segmentation" else PATHS_FILE
        return bundle.tensor_sha256[name][:HASH_DIGITS]

    @property
    def cell(self) -> str:
        """The column ``pictures``."""
        return f"{self.pictures} ({self.fingerprint})"

    def is_of(self, cell: str) -> bool:
        """Whether a cell ``pictures`` means these; one without fingerprint (written by hand) by its number."""
        count, _, fingerprint = cell.partition(" ")
        return count == str(self.pictures) and fingerprint in ("", f"({self.fingerprint})")


def log_place(test_log: str | None, output: Storage) -> Storage:
    """The log: ``test_log``, or ``test_uses.md`` beside OUTPUT, which outputs of one folder share."""
    if test_log:
        place = open_storage(test_log)
        return open_storage(test_log, output.options) if place.protocol == output.protocol else place
    own = output.path.rstrip("/")
    beside = own.rpartition("/")[0] or own  # beside a bucket there is nothing
    return output.at(output.uri_of(f"{beside}/{NAME}"))


def earlier_use(place: Storage, bundle: Bundle, use: TestUse) -> str | None:
    """When the log says that these tensors were scored on these pictures; None where it does not."""
    for line in _read(place).splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) >= 6 and cells[2:4] == [use.tensors(bundle), use.task] and use.is_of(cells[4]):
            return cells[0]
    return None


def refuse_second_use(place: Storage, bundle: Bundle, use: TestUse) -> None:
    """Raise OutputError if the log holds this use already."""
    when = earlier_use(place, bundle, use)
    if when is not None:
        raise OutputError(
            f"the log {place.url} says that these weights were scored on these {use.pictures} pictures on {when}; a "
            "test split is used once per bundle, so read those results, or give again=true (if that run broke off, "
            "say), which is logged too"
        )


def log_test_use(place: Storage, bundles: Sequence[Bundle], use: TestUse, arguments: Sequence[str]) -> None:
    """Append one line per bundle; makes the file where there is none.

    Args:
        place: of ``log_place``.
        bundles: all that will be scored.
        arguments: of the command line; storage options are left out, and of local paths only the last name is kept.
    """
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    command = _cell(public_command(arguments))
    lines = "".join(
        f"| {now} | {_cell(bundle.meta.name)} | {use.tensors(bundle)} | {use.task} | {use.cell} | `{command}` |\n"
        for bundle in bundles
    )
    text = _read(place)
    if place.is_local:  # append: what stands in the log is never written anew
        path = Path(place.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write((HEADER if not text else "" if text.endswith("\n") else "\n") + lines)
        return
    place.fs.pipe_file(place.path, ((text.rstrip("\n") + "\n" if text else HEADER) + lines).encode())


def public_command(arguments: Sequence[str]) -> str:
    """The command without credentials and without the folders of this machine."""
    kept = [one for one in arguments if not re.match(r"[+~]*[\w.]*(options|key_env|key_file)\b[.=]", one)]
    return " ".join(["python jobs/audit.py", *(_short(one) for one in kept)])


def _read(place: Storage) -> str:
    try:
        return str(place.fs.cat_file(place.path).decode())
    except FileNotFoundError:
        return ""


def _short(argument: str) -> str:
    name, equals, value = argument.partition("=")
    value = re.sub(r"(://)[^/@]*@", r"\1", value)  # user and password
    value = re.sub(r"^(file://)?[/~].*?([^/]+)/*$", r".../\2", value)
    return name + equals + value


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("`", "'").replace("\n", " ")
