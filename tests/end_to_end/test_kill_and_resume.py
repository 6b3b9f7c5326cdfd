"""SIGKILL the driver and everything under it, run the same command again: the same table.

With the real network, so that it takes its time and belongs to the nightly form; ``test_random_kills.py`` kills
more, and every day, with a scorer that costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server

from cxr_ray.archives.storage import open_storage
from end_to_end.chaos import nightly
from end_to_end.commands import by_content, read_table, run_until, score, write_films

pytestmark = pytest.mark.skipif(not nightly(), reason="part of the nightly form: CXR_RAY_NIGHTLY=1")

FILMS = 40


@pytest.fixture(scope="module")
def many_films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "films"
    write_films(folder, FILMS, seed=1)
    return folder


@pytest.fixture(scope="module")
def undisturbed(many_films: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    score(many_films, output)
    return by_content(read_table(output / "scores"))


def kill_after_first_part(
    archive: str, output: str, parts: Callable[[], dict[str, Any]], *options: str
) -> None:
    command = ["jobs/score.py", f"archive={archive}", f"output={output}", "weights=seeded", *options]
    run_until(command, reached=lambda: len(parts()) >= 1)


def test_local(many_films: Path, undisturbed: list[dict[str, Any]], tmp_path: Path) -> None:
    output = tmp_path / "out"

    def parts() -> dict[str, Any]:
        return {path.name: path.stat().st_mtime_ns for path in output.glob("scores/*")}

    kill_after_first_part(str(many_films), str(output), parts)
    published = parts()
    assert 1 <= len(published) < 3
    score(many_films, output)
    assert {name: parts()[name] for name in published} == published
    table = read_table(output / "scores")
    assert table.num_rows == len(set(table.column("image_id").to_pylist())) == FILMS
    assert by_content(table) == undisturbed
    assert sorted(path.name for path in (output / "scores").iterdir()) == sorted(parts())


def test_s3(many_films: Path, undisturbed: list[dict[str, Any]], s3_server: S3Server) -> None:
    bucket = s3_server.make_bucket()
    fs = s3_server.filesystem()
    for path in many_films.iterdir():
        fs.pipe_file(f"{bucket}/films/{path.name}", path.read_bytes())
    settings = ", ".join(f"{key}: '{value}'" for key, value in s3_server.storage_options.items())
    options = (f"archive_options={{{settings}}}", f"output_options={{{settings}}}")
    archive, output = f"s3://{bucket}/films", f"s3://{bucket}/out"

    def parts() -> dict[str, Any]:
        fs.invalidate_cache()
        try:
            return {entry["name"]: entry["ETag"] for entry in fs.ls(f"{bucket}/out/scores", detail=True)}
        except FileNotFoundError:
            return {}

    kill_after_first_part(archive, output, parts, *options)
    published = parts()
    assert 1 <= len(published) < 3
    score(archive, output, *options)
    assert {name: parts()[name] for name in published} == published
    storage = open_storage(output, s3_server.storage_options)
    table = read_table(f"{bucket}/out/scores", filesystem=storage.fs)
    assert table.num_rows == len(set(table.column("image_id").to_pylist())) == FILMS
    assert by_content(table) == undisturbed
    everything = "".join(fs.cat_file(name).decode("latin-1") for name in fs.find(f"{bucket}/out"))
    assert s3_server.storage_options["secret"] not in everything
