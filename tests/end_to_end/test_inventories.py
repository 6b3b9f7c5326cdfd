"""A run from an inventory: what it says is planned unseen, and found gone or changed when it is read."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

from end_to_end.commands import read_table, score_cheaply, write_films


def test_gone_and_changed_files_of_an_inventory_are_rows_of_their_own(tmp_path: Path) -> None:
    films = tmp_path / "films"
    films.mkdir()
    write_films(films, 5)
    with zipfile.ZipFile(films / "box.zip", "w") as box:
        box.write(films / "film-004.png", "inside.png")
    lines = ["uri,size,mtime,label\n"]
    for path in sorted(films.iterdir()):
        status = os.stat(path)
        lines.append(f"{path.name},{status.st_size},{status.st_mtime_ns},of {path.stem}\n")
    inventory = films / "inventory.csv"
    inventory.write_text("".join([*lines, lines[3]]))  # one row stands there twice
    (films / "film-001.png").unlink()
    shutil.copy(films / "film-000.png", films / "film-002.png")
    output = tmp_path / "out"
    done = score_cheaply(inventory, output)
    assert done.summary["planned"] == 6
    rows = read_table(output / "scores").to_pylist()
    assert {(Path(row["uri"]).name, row["member"]): (row["reason"], row["label"]) for row in rows} == {
        ("box.zip", "inside.png"): (None, "of box"),
        ("film-000.png", None): (None, "of film-000"),
        ("film-001.png", None): ("missing", "of film-001"),
        ("film-002.png", None): ("changed", "of film-002"),
        ("film-003.png", None): (None, "of film-003"),
        ("film-004.png", None): (None, "of film-004"),
    }
    again = score_cheaply(inventory, output)
    assert again.summary["planned"] == 6
