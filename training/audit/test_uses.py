"""The log of every scoring of the test split: one line each, written before the scoring begins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import training
from cxr_ray.archives.storage import Storage, open_storage
from cxr_ray.weights.bundle import PATHS_FILE, SEGMENTER_FILE, Bundle

NAME = "test_uses.md"
HASH_DIGITS = 12
HEADER = """# Uses of the test split

`jobs/audit.py` writes a line before it scores the test split. Nothing may be chosen by what is read there.

| date (UTC) | bundle | tensors | task | pictures | command |
| --- | --- | --- | --- | ---: | --- |
"""


def log_place(test_log: str | None, output: Storage) -> Storage:
    """The log: ``test_log``, or that of the checkout where there is one, or one below the output."""
    if test_log:
        return open_storage(test_log, output.options)
    checkout = Path(training.__file__).parent / NAME
    return open_storage(str(checkout)) if checkout.is_file() else output.at(f"{output.url}/audit/{NAME}")


def log_test_use(
    place: Storage, bundles: Sequence[Bundle], *, task: str, pictures: int, arguments: Sequence[str]
) -> None:
    """Append one line per bundle; makes the file where there is none.

    Args:
        place: of ``log_place``.
        bundles: all that will be scored.
        task: classification or segmentation.
        pictures: number of pictures.
        arguments: of the command line; storage options are left out, and of local paths only the last name is kept.
    """
    try:
        text = place.fs.cat_file(place.path).decode()
    except FileNotFoundError:
        text = HEADER
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    command = public_command(arguments)
    tensors = SEGMENTER_FILE if task == "segmentation" else PATHS_FILE
    lines = [
        f"| {now} | {_cell(bundle.meta.name)} | {bundle.tensor_sha256[tensors][:HASH_DIGITS]} | {task} | {pictures} "
        f"| `{_cell(command)}` |\n"
        for bundle in bundles
    ]
    place.fs.makedirs(place.path.rpartition("/")[0], exist_ok=True)
    place.fs.pipe_file(place.path, (text.rstrip("\n") + "\n" + "".join(lines)).encode())


def public_command(arguments: Sequence[str]) -> str:
    """The command without credentials and without the folders of this machine."""
    kept = [one for one in arguments if not re.match(r"[+~]*[\w.]*(options|key_env|key_file)\b[.=]", one)]
    return " ".join(["python jobs/audit.py", *(_short(one) for one in kept)])


def _short(argument: str) -> str:
    name, equals, value = argument.partition("=")
    value = re.sub(r"(://)[^/@]*@", r"\1", value)  # user and password
    value = re.sub(r"^(file://)?[/~].*?([^/]+)/*$", r".../\2", value)
    return name + equals + value


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("`", "'").replace("\n", " ")
