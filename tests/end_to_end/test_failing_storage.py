"""A storage that fails midway: exit 1, a list, everything else published; the same command finishes the table."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from s3_server import S3Server

from cxr_ray.archives.storage import open_storage
from end_to_end.commands import CHEAP_SCORE, read_table, run_command, run_job, write_films


def one_line(text: str) -> str:
    """The only line of ``text`` that is not of Ray's native core, which writes past Python's logging."""
    lines = [line for line in text.strip().splitlines() if "core_worker.cc" not in line]
    assert len(lines) == 1, text
    return lines[0]


def test_what_fails_is_listed_and_everything_else_is_published(s3_server: S3Server, tmp_path: Path) -> None:
    write_films(tmp_path / "films", 4)
    bucket = s3_server.make_bucket()
    fs = s3_server.filesystem()
    for path in (tmp_path / "films").iterdir():
        fs.pipe_file(f"{bucket}/films/{path.name}", path.read_bytes())
    options = s3_server.storage_options.items()
    job = (
        f"archive=s3://{bucket}/films",
        f"output=s3://{bucket}/out",
        *(f"{place}_options.{name}={value}" for place in ("archive", "output") for name, value in options),
        "unit_size=1",
        "unit_retries=1",
    )

    def last_attempt() -> dict[str, Any]:
        names = [name for name in fs.ls(f"{bucket}/out/runs", detail=False) if "started" not in name]
        return json.loads(fs.cat_file(sorted(names)[-1]))

    try:
        # One object fails for the storage's reasons throughout: two tries in each of two rounds.
        s3_server.set_faults(1.0, kinds=("403",), match="films/film-001.png")
        done = run_command(CHEAP_SCORE, *job)
        assert done.code == 1
        sentence = one_line(done.err)
        assert "1 unit was not published (g00000-u000001)" in sentence
        assert "access denied" in sentence
        assert "round 2 of 2: trying 1 unit again" in done.out
        assert len(fs.ls(f"{bucket}/out/scores")) == 3
        record = last_attempt()
        assert [failure["unit_id"] for failure in record["failures"]] == ["g00000-u000001"]
        assert record["failures"][0]["retries"] == 1
        assert (record["complete"], record["planned"], record["scored"]) == (False, 4, 3)
        # OUTPUT refuses the missing part: nothing else is open, so nothing is published.
        s3_server.set_faults(1.0, kinds=("403",), match="scores/part-")
        done = run_command(CHEAP_SCORE, *job, "rounds=1", "unit_retries=0")
        assert done.code == 1
        assert "OUTPUT cannot be written (access denied)" in one_line(done.err)
    finally:
        s3_server.clear_faults()
    done = run_command(CHEAP_SCORE, *job)
    assert done.code == 0, done.err[-2000:]
    storage = open_storage(f"s3://{bucket}/out", s3_server.storage_options)
    assert read_table(f"{bucket}/out/scores", filesystem=storage.fs).num_rows == 4
    assert last_attempt()["timings"]["units"] == 1
    everything = "".join(fs.cat_file(name).decode("latin-1") for name in fs.find(f"{bucket}/out"))
    assert s3_server.storage_options["secret"] not in everything


def test_a_cluster_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    write_films(tmp_path / "films", 1)
    start = time.monotonic()
    done = run_job(
        "score",
        f"archive={tmp_path}/films",
        f"output={tmp_path}/out",
        "weights=seeded",
        "ray_address=127.0.0.1:1",
    )
    assert done.code == 2
    assert "no Ray cluster answers" in one_line(done.err)
    assert time.monotonic() - start < 60
    assert not (tmp_path / "out").exists()
