"""Workers that hang or die again and again: the run ends with one sentence, and the other units are published."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
from s3_server import S3Server

from end_to_end.commands import (
    CHEAP_SCORE,
    ROOT,
    Finished,
    job_environment,
    kill_tree,
    run_command,
    score_cheaply,
    write_films,
)

FAULTY_SCORE = "tests/end_to_end/faulty_score.py"


def write_victim(path: Path) -> None:
    """A nearly white film, which ``faulty_score.py`` chokes on."""
    white = np.full((400, 340), 255, np.uint8)
    white[:20] = np.arange(340) % 255
    cv2.imwrite(str(path), white)


def score_with(fault: str, archive: Path, output: Path, *options: str) -> Finished:
    return run_command(
        FAULTY_SCORE, fault, f"archive={archive}", f"output={output}", "unit_size=1", "actors=1", *options
    )


def test_a_scorer_that_hangs_ends_the_run_with_the_state_of_the_stages(
    tmp_path: Path,
) -> None:
    write_films(tmp_path / "films", 3)
    write_victim(tmp_path / "films" / "film-victim.png")  # the last one
    # Long enough for a busy machine to start an actor.
    done = score_with("hang", tmp_path / "films", tmp_path / "out", "no_progress_seconds=45")
    assert done.code == 1
    assert "no progress for" in done.err
    assert "score: actors 1 alive" in done.err
    assert "waits for its running tasks" in done.err
    published = {path.name for path in (tmp_path / "out" / "scores").iterdir()}
    assert "part-g00000-u000003.parquet" not in published
    assert published  # what came out of the scorer before it hung; the rest waits behind it


def test_a_unit_that_kills_its_scorer_stops_no_other_and_is_listed(
    tmp_path: Path,
) -> None:
    films, output = tmp_path / "films", tmp_path / "out"
    write_films(films, 6)
    write_victim(films / "film-000-victim.png")  # the first unit: others are in the actor when it dies
    done = score_with("die", films, output, "rounds=1")
    assert done.code == 1
    assert "1 unit was not published (g00000-u000000), because its worker died again and again" in done.err
    assert len(list((output / "scores").iterdir())) == 6
    assert score_cheaply(films, output).summary["scored"] == 7


def kill_readers(driver: psutil.Process) -> int:
    """SIGKILL every process below ``driver`` that reads a unit just now; returns how many."""
    killed = 0
    for process in driver.children(recursive=True):
        try:
            if "read_stage" in " ".join(process.cmdline()):
                process.kill()
                killed += 1
        except psutil.NoSuchProcess:
            continue
    return killed


def test_readers_that_are_killed_again_and_again_end_the_run(s3_server: S3Server, tmp_path: Path) -> None:
    write_films(tmp_path / "films", 1)
    bucket = s3_server.make_bucket()
    fs = s3_server.filesystem()
    fs.pipe_file(f"{bucket}/films/film.png", (tmp_path / "films" / "film-000.png").read_bytes())
    options = [f"archive_options.{name}={value}" for name, value in s3_server.storage_options.items()]
    job = [CHEAP_SCORE, f"archive=s3://{bucket}/films", f"output={tmp_path / 'out'}", *options, "rounds=1"]
    s3_server.set_faults(1.0, kinds=("slow",), match="films/film.png")  # there is time to kill who reads it
    process = subprocess.Popen(
        [sys.executable, *job], cwd=ROOT, env=job_environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    killed = 0
    try:
        driver = psutil.Process(process.pid)
        deadline = time.monotonic() + 400
        while process.poll() is None and time.monotonic() < deadline:
            if (tmp_path / "out" / "plan").exists():  # before that nobody reads
                killed += kill_readers(driver)
            time.sleep(0.2)
        assert process.poll() == 1
        assert process.stderr is not None
        assert "because its worker died again and again" in process.stderr.read()
        assert killed == 4  # the first try and three more
    finally:
        s3_server.clear_faults()
        kill_tree(process)
    done = run_command(*job)
    assert done.code == 0, done.err[-2000:]
    assert done.summary["scored"] == 1
