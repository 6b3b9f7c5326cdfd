"""Credentials, however they are given, appear in nothing that a job says or leaves: searched for in all of it."""

from __future__ import annotations

import secrets as random_text
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import S3Server

from end_to_end.commands import Finished, job_environment, run_command, started, wait_until, write_films
from end_to_end.leaks import found_in_bytes, found_in_files, found_in_folder
from end_to_end.places import Place

pytestmark = pytest.mark.timeout(1200)

FILMS = 6
KINDS = (
    "option_key",
    "option_secret",
    "option_token",
    "interpolated",
    "aws_id",
    "aws_secret",
    "aws_token",
    "hmac",
)
"""Ways by which a secret comes to a job: storage options, ``${oc.env:...}`` in one, AWS variables, CXR_RAY_KEY."""


@pytest.fixture
def secret() -> dict[str, str]:
    """A text of its own for every way."""
    return {kind: f"{kind[:4]}Z{random_text.token_hex(20)}" for kind in KINDS}


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Ray's temporary folder of this test alone, so that all its logs can be searched."""
    # Not tmp_path: the paths of Ray's sockets may have 107 bytes.
    folder = Path(f"/tmp/r{random_text.token_hex(4)}")
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    bucket = s3_server.make_bucket()
    for path in write_films(tmp_path_factory.mktemp("films"), FILMS):
        s3_server.filesystem().pipe_file(f"{bucket}/films/{path.name}", path.read_bytes())
    return bucket


def environment(secret: dict[str, str], ray_folder: Path) -> dict[str, str]:
    return job_environment(
        RAY_TMPDIR=str(ray_folder),
        ARCHIVE_SECRET=secret["interpolated"],
        AWS_ACCESS_KEY_ID=secret["aws_id"],
        AWS_SECRET_ACCESS_KEY=secret["aws_secret"],
        AWS_SESSION_TOKEN=secret["aws_token"],
        CXR_RAY_KEY=secret["hmac"],
        CHEAP_SCORE_SECONDS="0.2",
    )


def command(place: Place, bucket: str, server: S3Server, secret: dict[str, str]) -> list[str]:
    """Archive: secret through ``${oc.env:...}``, id and token from AWS variables. OUTPUT: all three as options."""
    archive = [f"archive=s3://{bucket}/films", f"archive_options.endpoint_url={server.endpoint_url}"]
    archive += [
        "archive_options.secret=${oc.env:ARCHIVE_SECRET}",
        f"archive_options.key={secret['option_key']}",
    ]
    archive += [f"output={place.url}", f"weights_options.token={secret['option_token']}"]
    return ["tests/end_to_end/cheap_score.py", *archive, *place.job_options(), "unit_size=2", "actors=1"]


def on_s3(bucket: str, name: str, server: S3Server, secret: dict[str, str]) -> Place:
    options = {"endpoint_url": server.endpoint_url, "key": secret["option_key"]}
    return Place(
        f"s3://{bucket}/{name}",
        options | {"secret": secret["option_secret"], "token": secret["option_token"]},
    )


def assert_kept(secret: dict[str, str], done: Finished, place: Place | None, ray_folder: Path) -> None:
    """None of the secrets was said, written into OUTPUT, or logged by Ray."""
    found = [*found_in_bytes("stdout", done.out.encode(), secret)]
    found += found_in_bytes("stderr", done.err.encode(), secret)
    if place is not None:
        files = place.look().files()
        assert files, "nothing was written, so nothing was searched"
        found += found_in_files(files, secret)
    found += found_in_folder(ray_folder, secret)
    assert not found, "\n".join(found)


def test_the_search_finds_what_is_hidden(tmp_path: Path) -> None:
    hidden = {"value": "in-a-compressed-column", "footer": "in-the-footer", "name": "in-a-name"}
    table = pa.table({"a": [hidden["value"]] * 100}).replace_schema_metadata({"note": hidden["footer"]})
    pq.write_table(table, tmp_path / "in-a-name.parquet", compression="zstd")
    found = found_in_folder(tmp_path, hidden)
    assert {line.split()[0] for line in found} == set(hidden)
    assert not found_in_folder(tmp_path, {"other": "not there"})


def test_a_run_that_succeeds(
    bucket: str, s3_server: S3Server, secret: dict[str, str], ray_folder: Path
) -> None:
    place = on_s3(bucket, "good", s3_server, secret)
    done = run_command(*command(place, bucket, s3_server, secret), env=environment(secret, ray_folder))
    assert done.code == 0, done.err[-2000:]
    assert place.look().table().num_rows == FILMS
    assert list(ray_folder.rglob("logs/*")), "Ray kept its logs elsewhere"
    assert_kept(secret, done, place, ray_folder)
    proof = run_command(
        "-m", "cxr_ray.cli", "verify", place.url, *place.cli_options(), env=environment(secret, ray_folder)
    )
    assert proof.code == 0
    assert_kept(secret, proof, None, ray_folder)


@pytest.mark.parametrize("match", ["/films/film-003", "/scores/part-"])
def test_a_run_that_is_refused_access(
    match: str, bucket: str, s3_server: S3Server, secret: dict[str, str], ray_folder: Path
) -> None:
    place = on_s3(bucket, f"refused{match.count('p')}", s3_server, secret)
    s3_server.set_faults(1.0, kinds=("403",), match=match)
    try:
        job = [*command(place, bucket, s3_server, secret), "unit_retries=0", "rounds=1"]
        done = run_command(*job, env=environment(secret, ray_folder))
    finally:
        assert s3_server.clear_faults() > 0
    assert done.code == 1
    assert_kept(secret, done, place, ray_folder)


def test_a_run_that_is_killed(
    bucket: str, s3_server: S3Server, secret: dict[str, str], ray_folder: Path, tmp_path: Path
) -> None:
    place = on_s3(bucket, "killed", s3_server, secret)
    look = place.look()
    log = tmp_path / "log.txt"
    job = command(place, bucket, s3_server, secret)
    with started(job, env=environment(secret, ray_folder), log=log) as process:
        wait_until(lambda: len(look.parts()) > 0, process)
    assert list(ray_folder.rglob("logs/*")), "Ray kept its logs elsewhere"
    assert_kept(secret, Finished(-9, log.read_text(), ""), place, ray_folder)


@pytest.mark.parametrize(
    "bad",
    [
        "archive_options.sekret={option_secret}",  # an option that the storage does not know
        "archive_options={option_secret}",  # a mapping was wanted
        "archive_options.secret=[{option_secret}",  # cannot be read
        "archive_options.config_kwargs={option_secret}",  # the client refuses it
        "output_options.secret=${{oc.env:NOT_SET}},{option_secret}",
        "limit={option_secret}",
        "colour={option_secret}",
        "archive=s3://{option_key}:{option_secret}@bucket/films",
    ],
)
def test_a_bad_option(
    bad: str, bucket: str, s3_server: S3Server, secret: dict[str, str], ray_folder: Path, tmp_path: Path
) -> None:
    options = [f"archive=s3://{bucket}/films", f"archive_options.endpoint_url={s3_server.endpoint_url}"]
    options += [f"output={tmp_path}/out", "weights=seeded", "archive_options.secret=${oc.env:ARCHIVE_SECRET}"]
    options.append(bad.format(**secret))
    done = run_command("jobs/score.py", *options, env=environment(secret, ray_folder))
    assert done.code == 2, done.err
    assert_kept(secret, done, None, ray_folder)
    assert not (tmp_path / "out").exists()
