"""An S3 that throttles, cuts bodies, dawdles, and is gone for 20 seconds: exit 0, or 1 and a rerun; no wrong row."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pyarrow as pa
import pytest
from s3_server import S3Server

from end_to_end.chaos import PATIENCE
from end_to_end.commands import (
    CHEAP_SCORE,
    job_environment,
    run_command,
    score_cheaply,
    started,
    write_films,
)
from end_to_end.places import Place

pytestmark = pytest.mark.timeout(1800)

FILMS = 90
UNIT = 6
BAD_WEATHER = {"503": 0.3, "truncate": 0.1, "slow": 0.05}
OUTAGE_SECONDS = 20.0
MOST_STARTS = 3
JOB = (f"unit_size={UNIT}", "actors=2", "progress_seconds=1")


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bucket with phantoms under ``films``, one of them broken."""
    folder = tmp_path_factory.mktemp("films")
    drawn = write_films(folder, 6)
    bucket = s3_server.make_bucket()
    fs = s3_server.filesystem()
    for number in range(FILMS):
        data = drawn[number % len(drawn)].read_bytes()
        # A PNG may be followed by anything; so every object has bytes of its own.
        fs.pipe_file(f"{bucket}/films/film-{number:03d}.png", data + number.to_bytes(4, "big"))
    fs.pipe_file(f"{bucket}/films/broken.png", drawn[0].read_bytes()[:3000])
    return bucket


def job(place: Place, bucket: str) -> list[str]:
    """The command line behind ``python``."""
    archive = f"archive=s3://{bucket}/films"
    return [
        CHEAP_SCORE,
        archive,
        f"output={place.url}",
        *place.job_options(),
        *place.job_options("archive"),
        *JOB,
    ]


@pytest.fixture(scope="module")
def undisturbed(bucket: str, s3_server: S3Server) -> pa.Table:
    """The table made in fair weather."""
    place = Place(f"s3://{bucket}/fair", s3_server.storage_options)
    score_cheaply(f"s3://{bucket}/films", place.url, *job(place, bucket)[3:])
    table = place.look().table()
    assert table.num_rows == FILMS + 1
    return table


def assert_no_wrong_row(table: pa.Table, undisturbed: pa.Table) -> None:
    """Every row there is equals the one of the undisturbed run, and there is one at most of each."""
    expected = {row["image_id"]: row for row in undisturbed.to_pylist()}
    rows = table.to_pylist()
    assert len({row["image_id"] for row in rows}) == len(rows)
    wrong = [row for row in rows if row != expected[row["image_id"]]]
    assert not wrong, [(row["uri"], row["status"], row["reason"], row["detail"]) for row in wrong[:5]]


def run_through_an_outage(
    command: list[str], server: S3Server, place: Place, log: Path
) -> tuple[int, dict[str, int]]:
    """Start the command in bad weather; after the first parts the store is gone for ``OUTAGE_SECONDS``.

    Returns its exit code and the faults that were made.
    """
    made: dict[str, int] = {}

    def change(shares: dict[str, float]) -> None:
        for kind, count in server.faults().items():
            made[kind] = made.get(kind, 0) + count
        server.set_fault_mix(shares, match=place.url.split("/")[2], seed=1, slow_seconds=1)

    def published() -> int:
        """Parts by the server's own log, since looking would meet the faults, too."""
        puts = server.requests("PUT")
        return sum(
            e["status"] == 200 and f"{place.url.split('/', 3)[3]}/scores/part-" in e["path"] for e in puts
        )

    server.set_fault_mix(BAD_WEATHER, match=place.url.split("/")[2], seed=0, slow_seconds=1)
    try:
        for _ in range(MOST_STARTS):
            wanted, begun = published() + 3, time.monotonic()
            with started(command, env=job_environment(CHEAP_SCORE_SECONDS="0.1"), log=log) as process:
                while process.poll() is None and published() < wanted:
                    assert time.monotonic() - begun < PATIENCE, log.read_text()[-2000:]
                    time.sleep(0.3)
                if (
                    process.poll() is not None
                ):  # the bad weather alone was too much; it may say so, and is run again
                    assert process.returncode == 1, log.read_text()[-2000:]
                    continue
                change({"503": 1.0})
                time.sleep(OUTAGE_SECONDS)
                assert server.faults()["503"] > 0, "nothing asked for the store during the outage"
                change(BAD_WEATHER)
                code = process.wait(timeout=PATIENCE)
                change({})
                return code, made
        raise AssertionError(f"the run never got as far as the outage: {log.read_text()[-2000:]}")
    finally:
        server.clear_faults()


def test_bad_weather_and_an_outage_change_no_row(
    bucket: str, undisturbed: pa.Table, s3_server: S3Server, tmp_path: Path
) -> None:
    place = Place(f"s3://{bucket}/foul", s3_server.storage_options)
    log = tmp_path / "log.txt"
    code, made = run_through_an_outage(job(place, bucket), s3_server, place, log)
    said = log.read_text()
    print(f"faults made: {made}; exit code {code}")
    assert all(made.get(kind, 0) >= 5 for kind in BAD_WEATHER), made
    assert code in (0, 1), said[-3000:]
    if code:  # the units that did not make it are named, and there is one sentence
        assert re.search(r"^error: .*g\d{5}-u\d{6}.*run the same command again", said, re.MULTILINE), said[
            -3000:
        ]
    look = place.look()
    before = look.parts()
    assert_no_wrong_row(look.table(), undisturbed)
    if code:
        done = run_command(*job(place, bucket))
        assert done.code == 0, done.err[-2000:]
    after = look.parts()
    assert {name: after[name] for name in before} == before
    assert look.table().equals(undisturbed)
    proof = run_command("-m", "cxr_ray.cli", "verify", place.url, *place.cli_options())
    assert proof.code == 0, proof.out + proof.err
