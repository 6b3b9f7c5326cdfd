"""Two drivers started on one OUTPUT at the same time: one table, as of an undisturbed run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server

from cxr_ray.archives.storage import Storage, open_storage
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.pipeline.publishing.lease import LEASE_FILE
from cxr_ray.results import verify_output
from end_to_end.commands import (
    CHEAP_SCORE,
    Finished,
    by_content,
    job_environment,
    read_table,
    run_command,
    run_side_by_side,
    started,
    wait_until,
)

#: The runs last long enough to meet.
SLOW = {"CHEAP_SCORE_SECONDS": "0.3"}


@pytest.fixture(scope="module")
def undisturbed(cheaply_scored_films: Path) -> list[dict[str, Any]]:
    return by_content(read_table(cheaply_scored_films / "scores"))


def check(
    finished: list[Finished], output: Storage, options: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    for done in finished:
        assert done.code == 0, done.err[-2000:]
        assert done.summary["planned"] == len(rows)
    found = verify_output(output.url, storage_options=options)
    assert found.complete, found.problems
    assert found.generations == 1
    table = read_table(f"{output.path}/scores", filesystem=output.fs)
    assert table.num_rows == len(set(table.column("image_id").to_pylist())) == len(rows)
    assert by_content(table) == rows
    publisher = Publisher(output)
    assert publisher.names("staging") == []
    runs = publisher.names("runs")
    assert len([name for name in runs if name.endswith(".started.json")]) == 2, "both took part"
    assert json.loads(publisher.read("run.json") or b"{}")["complete"]


def test_local(films: Path, undisturbed: list[dict[str, Any]], tmp_path: Path) -> None:
    command = [CHEAP_SCORE, f"archive={films}", f"output={tmp_path}/out", "unit_size=2", "actors=1"]
    finished = run_side_by_side(command, command, env=job_environment(**SLOW))
    check(finished, open_storage(str(tmp_path / "out")), {}, undisturbed)


def test_s3(films: Path, undisturbed: list[dict[str, Any]], s3_server: S3Server) -> None:
    url = f"s3://{s3_server.make_bucket()}/out"
    options = s3_server.storage_options
    settings = [f"output_options.{name}={value}" for name, value in options.items()]
    command = [CHEAP_SCORE, f"archive={films}", f"output={url}", "unit_size=2", "actors=1", *settings]
    finished = run_side_by_side(command, command, env=job_environment(**SLOW))
    check(finished, open_storage(url, options), options, undisturbed)


def test_a_store_without_preconditions_is_refused(films: Path, s3_server: S3Server) -> None:
    url = f"s3://{s3_server.make_bucket()}/out"
    settings = [f"output_options.{name}={value}" for name, value in s3_server.storage_options.items()]
    s3_server.ignore_preconditions()
    try:
        done = run_command(CHEAP_SCORE, f"archive={films}", f"output={url}", *settings)
    finally:
        s3_server.ignore_preconditions(False)
    assert done.code == 2
    assert "does not keep the promise that a name is created only once" in done.err
    assert "fencing=single_writer" in done.err
    assert len(done.err.strip().splitlines()) == 1, done.err
    storage = open_storage(url, s3_server.storage_options)
    assert not storage.fs.exists(storage.path)


def test_a_second_single_writer_is_refused_and_a_later_one_takes_over(films: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [CHEAP_SCORE, f"archive={films}", f"output={output}", "fencing=single_writer", "actors=1"]
    with started(command, env=job_environment(CHEAP_SCORE_SECONDS="30")) as first:
        wait_until(lambda: (output / LEASE_FILE).exists(), first)
        second = run_command(*command)
        assert second.code == 2, second.err[-2000:]
        assert "fencing=single_writer allows one at a time" in second.err
        assert first.poll() is None
    # The first has been killed without a word; who comes next finds out by watching.
    third = run_command(*command)
    assert third.code == 0, third.err[-2000:]
    assert "has not signed off" in third.out
    assert verify_output(output).complete
    assert not (output / LEASE_FILE).exists()
