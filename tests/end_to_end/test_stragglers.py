"""One slow unit holds nothing back: the others are published while it is being read."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from s3_server import S3Server

from end_to_end.chaos import PATIENCE
from end_to_end.commands import CHEAP_SCORE, started, wait_until, write_films
from end_to_end.places import Place

pytestmark = pytest.mark.timeout(1800)

FILMS = 16
UNIT = 2
SLOW = "films/film-005.png"


def test_finished_units_are_published_while_a_slow_one_is_read(s3_server: S3Server, tmp_path: Path) -> None:
    bucket, fs = s3_server.make_bucket(), s3_server.filesystem()
    for path in write_films(tmp_path / "films", FILMS):
        fs.pipe_file(f"{bucket}/films/{path.name}", path.read_bytes())
    place = Place(str(tmp_path / "out"))
    source = [f"archive_options.{name}={value}" for name, value in s3_server.storage_options.items()]
    command = [CHEAP_SCORE, f"archive=s3://{bucket}/films", f"output={place.url}", *source]
    command += [f"unit_size={UNIT}", "actors=2", "decode_tasks=2"]
    # Late by ten minutes, or until the faults are cleared; the client itself asks again after one minute.
    s3_server.set_faults(1.0, kinds=("slow",), match=f"{bucket}/{SLOW}", slow_seconds=600)
    log = tmp_path / "log.txt"
    look = place.look()
    try:
        with started(command, log=log) as process:
            wait_until(lambda: len(look.parts()) == FILMS // UNIT - 1, process, PATIENCE)
            assert s3_server.faults()["slow"] >= 1
            time.sleep(1)
            assert process.poll() is None
            assert len(look.parts()) == FILMS // UNIT - 1
            s3_server.clear_faults()
            assert process.wait(timeout=PATIENCE) == 0, log.read_text()[-2000:]
    finally:
        s3_server.clear_faults()
    table = look.table()
    assert table.num_rows == FILMS
    assert set(table.column("status").to_pylist()) == {"scored"}
