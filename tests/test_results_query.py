"""open_scores and SQL: local and on S3, while a run goes on, duplicates, formats, errors."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import duckdb
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from made_calibration import MADE
from made_output import IDENTITY, make_output
from s3_server import S3Server

from cxr_ray import open_scores
from cxr_ray.errors import OutputError, UsageError
from cxr_ray.phantoms import write_sample_archive
from cxr_ray.pipeline.identity import KIND_SHARDS, Identity
from cxr_ray.pipeline.score_table import SCORE_SCHEMA
from cxr_ray.results import run_query
from cxr_ray.results.formatting import format_result
from cxr_ray.results.query import VIEWS


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six phantoms, the last broken, plus two copies of the first under other names."""
    folder = tmp_path_factory.mktemp("archive")
    files = write_sample_archive(folder, count=6)
    for name in ("copy-a.png", "copy-b.png"):
        shutil.copy(files[0], folder / name)
    return folder


@pytest.fixture(scope="module")
def output(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_output(archive, tmp_path_factory.mktemp("runs") / "out", unit_size=3))


def rows(output: object, sql: str, **options: object) -> list[tuple]:
    return list(run_query(str(output), sql, storage_options=options).rows)


def test_open_scores_is_the_table(output: Path) -> None:
    dataset = open_scores(output)
    table = dataset.to_table()
    assert dataset.schema.equals(SCORE_SCHEMA)
    assert table.num_rows == 8
    assert table.column("status").to_pylist().count("quarantined") == 1
    assert dataset.to_table(columns=["p_covid"], filter=ds.field("p_covid") > 2).shape == (0, 1)


def test_open_scores_while_a_run_is_going_on(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no table"):
        open_scores(tmp_path / "nowhere")
    make_output(archive, tmp_path / "out", unit_size=3, units=0)
    with pytest.raises(OutputError, match="no published part yet"):
        open_scores(tmp_path / "out")
    (tmp_path / "second").mkdir()
    make_output(archive, tmp_path / "second" / "out", unit_size=3, units=1)
    (tmp_path / "second" / "out" / "scores" / ".part-half.parquet.tmp").write_bytes(b"not whole")
    assert open_scores(tmp_path / "second" / "out").count_rows() == 3


def test_shards_and_foreign_folders_are_refused_in_one_sentence(archive: Path, tmp_path: Path) -> None:
    shards = Identity(kind=KIND_SHARDS, document=IDENTITY.document)
    make_output(archive, tmp_path / "shards", identity=shards)
    with pytest.raises(OutputError, match="holds shards"):
        open_scores(tmp_path / "shards")
    with pytest.raises(OutputError, match="not of a cxr_ray run"):
        open_scores(archive)


def test_sql_local_and_on_s3_give_the_same(archive: Path, output: Path, s3_server: S3Server) -> None:
    remote = f"s3://{s3_server.make_bucket()}/out"
    options = s3_server.storage_options
    make_output(archive, remote, output_options=options, unit_size=3, calibration=MADE)
    sql = "SELECT image_id, status, reason, p_covid, path_logits, flags FROM scores ORDER BY image_id"
    assert rows(remote, sql, **options) == rows(output, sql)
    assert open_scores(remote, **options).count_rows() == 8
    assert rows(remote, "SELECT count(*) FROM duplicates", **options) == [(3,)]
    decided = "SELECT decision, count(*) FROM scores GROUP BY ALL ORDER BY decision"
    there = run_query(remote, decided, storage_options=options, threshold=0.15)
    assert list(there.rows) == list(run_query(output, decided, threshold=0.15).rows)
    recalibrated = open_scores(remote, prevalence=0.01, **options)
    assert recalibrated.count_rows(ds.field("p_calibrated") < 0.1) == 7
    nobody = {
        **options,
        "endpoint_url": "http://127.0.0.1:1",
        "config_kwargs": {"retries": {"max_attempts": 1}},
    }
    with pytest.raises(OutputError, match="cannot be read"):
        run_query("s3://bucket/out", "SELECT 1", storage_options=nobody)


def test_duplicates_and_unique(output: Path) -> None:
    copies = rows(output, "SELECT image_id, content_sha256 FROM duplicates")
    assert len(copies) == 3
    assert len({content for _, content in copies}) == 1
    unique = {row[0] for row in rows(output, "SELECT image_id FROM scores_unique")}
    assert len(unique) == 6
    assert unique & {image_id for image_id, _ in copies} == {min(image_id for image_id, _ in copies)}


def test_rows_without_content_stay_in_the_unique_view() -> None:
    connection = duckdb.connect()
    connection.execute("CREATE TABLE scores (image_id VARCHAR, content_sha256 VARCHAR)")
    connection.execute("INSERT INTO scores VALUES ('a', NULL), ('b', NULL), ('d', 'x'), ('c', 'x')")
    connection.execute(VIEWS)
    unique = connection.execute("SELECT image_id FROM scores_unique ORDER BY 1").fetchall()
    assert unique == [("a",), ("b",), ("c",)]
    assert connection.execute("SELECT image_id FROM duplicates ORDER BY 1").fetchall() == [("c",), ("d",)]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT nothing FROM scores", '"nothing" not found'),
        ("SELEC 1", "syntax error"),
        ("SELECT * FROM elsewhere", "elsewhere does not exist"),
        ("SELECT CAST(status AS INTEGER) FROM scores", "Could not convert"),
    ],
)
def test_wrong_sql_is_one_sentence(output: Path, sql: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        list(run_query(output, sql).rows)
    assert "\n" not in str(caught.value)


def test_csv_and_json_read_back(output: Path) -> None:
    sql = "SELECT image_id, p_covid, reason, flags, heat_map, schema_version FROM scores ORDER BY image_id"
    expected = rows(output, sql)
    as_csv = list(csv.DictReader(io.StringIO("\n".join(format_result(run_query(output, sql), "csv")))))
    as_json = json.loads("\n".join(format_result(run_query(output, sql), "json")))
    assert (
        [row["image_id"] for row in as_csv]
        == [row["image_id"] for row in as_json]
        == [row[0] for row in expected]
    )
    for plain, text, row in zip(as_json, as_csv, expected, strict=True):
        assert plain["p_covid"] == row[1]
        assert text["p_covid"] == ("" if row[1] is None else str(row[1]))
        assert plain["flags"] == json.loads(text["flags"]) == row[3]
        assert plain["heat_map"] == (None if row[4] is None else f"<{len(row[4])} bytes>")


def test_tables_are_aligned_and_cut(output: Path) -> None:
    sql = "SELECT image_id, p_covid, heat_map FROM scores WHERE p_covid IS NOT NULL"
    lines = list(format_result(run_query(output, sql), "table", 3))
    assert len(lines) == 2 + 3 + 1
    assert lines[0].split() == ["image_id", "p_covid", "heat_map"]
    assert set(lines[1]) == {"-", " "}
    assert lines[-1].startswith("... more rows; 3 shown")
    assert all("bytes>" in line for line in lines[2:5])
    assert not any(line.startswith("...") for line in format_result(run_query(output, sql), "table", 7))
    assert list(format_result(run_query(output, "SELECT 'a' AS x WHERE false"), "json")) == ["[", "]"]


def test_statements_without_a_result_and_exports_work(output: Path, tmp_path: Path) -> None:
    target = tmp_path / "export.parquet"
    run_query(output, f"COPY (SELECT image_id FROM scores) TO '{target}' (FORMAT parquet)")
    assert pq.read_table(target).num_rows == 8
