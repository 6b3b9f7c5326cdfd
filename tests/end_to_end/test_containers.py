"""The same films in every container, through ingest or directly: equal rows, bit for bit."""

from __future__ import annotations

import csv
import tarfile
import zipfile
from pathlib import Path

import pytest

from end_to_end.commands import by_content, read_table, run_job, score, score_cheaply


def pack(kind: str, films: Path, target: Path) -> Path:
    """``films`` as one archive of the given kind."""
    members = sorted(films.iterdir())
    if kind == "zip":
        path = target / "films.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member in members:
                archive.write(member, member.name)
    elif kind == "manifest":
        path = target / "films.csv"
        with open(path, "w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["uri", "patient", "label", "ward"])
            writer.writerows([str(member), f"P{i % 4}", "covid", "7b"] for i, member in enumerate(members))
    else:
        path = target / f"films.{kind}"
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
            for member in members:
                archive.add(member, member.name)
    return path


def test_zip_gives_the_same_scores(films: Path, scored_films: Path, tmp_path: Path) -> None:
    # Another number of scorers and of read tasks must not matter either.
    score(pack("zip", films, tmp_path), tmp_path / "out", "actors=1", "decode_tasks=1", "unit_size=5")
    table = read_table(tmp_path / "out" / "scores")
    assert by_content(table) == by_content(read_table(scored_films / "scores"))
    assert set(table.column("member").to_pylist()) == {path.name for path in films.iterdir()}


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "manifest"])
def test_container_gives_the_same_rows(
    kind: str, films: Path, cheaply_scored_films: Path, tmp_path: Path
) -> None:
    options = ["carry=[ward]"] if kind == "manifest" else []
    score_cheaply(pack(kind, films, tmp_path), tmp_path / "out", "unit_size=5", *options)
    table = read_table(tmp_path / "out" / "scores")
    assert by_content(table) == by_content(read_table(cheaply_scored_films / "scores"))
    if kind == "manifest":
        assert set(table.column("label").to_pylist()) == {"covid"}
        assert table.column("carry").to_pylist()[0] == [("ward", "7b")]
        # No key was given, so the raw patient of the manifest must not appear anywhere.
        assert table.column("patient_key").null_count == table.num_rows
    else:
        assert set(table.column("member").to_pylist()) == {path.name for path in films.iterdir()}


def test_shards_give_the_same_rows(films: Path, scored_films: Path, tmp_path: Path) -> None:
    done = run_job("ingest", f"archive={films}", f"output={tmp_path}/shards")
    assert done.code == 0, done.err[-2000:]
    assert (done.summary["ready"], done.summary["quarantined"]) == (13, 2)
    shard = read_table(tmp_path / "shards" / "shards")
    assert {len(pixels) for pixels in shard.column("pixels").to_pylist() if pixels} == {300 * 340}
    score(tmp_path / "shards", tmp_path / "out")
    ours, direct = (read_table(folder / "scores") for folder in (tmp_path / "out", scored_films))
    assert by_content(ours) == by_content(direct)
    for name in ("image_id", "uri", "member"):
        assert ours.column(name).to_pylist() == direct.column(name).to_pylist()


def test_a_broken_container_keeps_what_came_before(films: Path, tmp_path: Path) -> None:
    whole = pack("tar.gz", films, tmp_path).read_bytes()
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "archive" / "noise.tar").write_bytes(b"no tar at all" * 100)
    score_cheaply(tmp_path / "archive", tmp_path / "out")
    rows = read_table(tmp_path / "out" / "scores").to_pylist()
    reasons = [row["reason"] for row in rows if row["member"] is None]
    assert sorted(reasons) == ["container_truncated", "container_unreadable"]
    assert sum(row["status"] == "scored" for row in rows) >= 3
