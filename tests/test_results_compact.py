"""The light copy: the same rows in few sorted files, used when it is current, never half, never for pictures."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from made_calibration import MADE
from made_output import IDENTITY, make_output
from s3_server import S3Server

from cxr_ray import open_scores
from cxr_ray.archives.storage import open_storage
from cxr_ray.cli import main
from cxr_ray.errors import OutputError, UsageError
from cxr_ray.phantoms import write_sample_archive
from cxr_ray.pipeline.identity import KIND_SHARDS, Identity
from cxr_ray.pipeline.publishing.sweep import UPLOAD_SECONDS
from cxr_ray.pipeline.score_table import SCORE_SCHEMA
from cxr_ray.results import compact, run_query, verify_output
from cxr_ray.results.compact import ROW_GROUP_ROWS, ROWS_PER_FILE, compact_output
from cxr_ray.results.light import LIGHT_SCHEMA, PICTURES, ScoreDataset, needs_pictures
from cxr_ray.results.query import _without_pictures


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_sample_archive(folder, count=8)
    return folder


@pytest.fixture(scope="module")
def whole(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_output(archive, tmp_path_factory.mktemp("runs") / "out", unit_size=3, calibration=MADE))


@pytest.fixture
def output(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


def light_files(output: Path) -> list[Path]:
    return sorted((output / "light").glob("*.parquet"))


def spoil(output: Path) -> None:
    """Make the light copy's values recognisable: every p_std becomes 7."""
    for path in light_files(output):
        table = pq.read_table(path)
        values = pa.array([7.0] * table.num_rows, pa.float32())
        pq.write_table(table.set_column(table.schema.get_field_index("p_std"), "p_std", values), path)


def p_stds(output: Path) -> set[float]:
    """``{7.0}`` where a spoilt light copy was read."""
    return {row[0] for row in run_query(str(output), "SELECT DISTINCT p_std FROM scores").rows}


def test_same_rows_sorted_without_the_pictures(output: Path) -> None:
    made = compact_output(output, rows_per_file=3)
    table = pa.concat_tables(pq.read_table(path) for path in light_files(output))
    assert table.schema.equals(LIGHT_SCHEMA)
    parts = ds.dataset(output / "scores", format="parquet").to_table(columns=LIGHT_SCHEMA.names)
    assert table.to_pylist() == parts.sort_by("image_id").to_pylist()
    assert [file.rows for file in made.marker.files] == [4, 4]
    assert [path.name for path in light_files(output)] == [file.name for file in made.marker.files]
    assert (made.marker.rows, made.marker.parts, made.marker.generations) == (8, 3, [0])
    assert (output / "staging").is_dir()
    assert list((output / "staging").iterdir()) == []


def test_files_have_plain_types_statistics_and_a_page_index(output: Path) -> None:
    compact_output(output)
    (path,) = light_files(output)
    metadata = pq.ParquetFile(path).metadata
    column = metadata.row_group(0).column(0)
    assert column.path_in_schema == "image_id"
    assert column.compression == "ZSTD"
    assert column.has_column_index
    assert column.has_offset_index
    assert column.statistics.min < column.statistics.max
    assert [entry.column_index for entry in metadata.row_group(0).sorting_columns] == [0]
    assert pl.read_parquet(path).get_column("image_id").to_list() == [
        row[0] for row in duckdb.sql(f"SELECT image_id FROM '{path}'").fetchall()
    ]
    kinds = duckdb.sql(f"SELECT image_id, carry, flags, path_logits, age_years FROM '{path}'").types
    assert [str(kind) for kind in kinds] == [
        "VARCHAR",
        "MAP(VARCHAR, VARCHAR)",
        "VARCHAR[]",
        "FLOAT[]",
        "SMALLINT",
    ]


@pytest.mark.parametrize(
    ("rows", "least", "sizes"),
    [(10, 3, [4, 3, 3]), (2, 3, [2]), (6, 3, [3, 3]), (5, 3, [5]), (0, 3, [0]), (4, 1, [1] * 4)],
)
def test_every_file_has_the_fewest_rows_or_more(rows: int, least: int, sizes: list[int]) -> None:
    assert compact._sizes(rows, least) == sizes


def test_rows_are_cut_and_grouped_as_planned(tmp_path: Path) -> None:
    ids = [f"{number:032x}" for number in range(ROW_GROUP_ROWS + 100)]
    whole = pa.table({"image_id": ids})
    pieces = (whole.slice(start, 1000) for start in range(0, len(ids), 1000))
    written = []
    for number, tables in enumerate(compact._cut(pieces, [len(ids) - 50, 50])):
        assert compact._write_file(tmp_path / str(number), whole.schema, tables)
        written.append(pq.ParquetFile(tmp_path / str(number)))
    assert written[0].metadata.row_group(0).num_rows == ROW_GROUP_ROWS
    assert [file.metadata.num_rows for file in written] == [len(ids) - 50, 50]
    assert pa.concat_tables(file.read() for file in written).column(0).to_pylist() == ids


def test_default_is_a_million_rows() -> None:
    assert ROWS_PER_FILE == 1_000_000


def test_queries_read_it_while_it_is_current(output: Path, archive: Path) -> None:
    before = p_stds(output)
    compact_output(output)
    assert p_stds(output) == before
    spoil(output)
    assert p_stds(output) == {7.0}
    assert set(open_scores(output).to_table(columns=["p_std"]).column(0).to_pylist()) == {7.0}
    with_threshold = run_query(str(output), "SELECT DISTINCT p_std, decision FROM scores", threshold=0.0)
    assert {row[0] for row in with_threshold.rows} == {7.0}
    # One more generation: the copy is stale until it is made again.
    later = output.parent / "later"
    later.mkdir()
    shutil.copy(archive / "synthetic-000.png", later)
    make_output(later, output, calibration=MADE)
    assert 7.0 not in p_stds(output)
    assert verify_output(output).light == "stale"
    assert compact_output(output).marker.generations == [0, 1]
    assert 7.0 not in p_stds(output)
    assert verify_output(output).light == "current"


PICTURE_QUERIES = [
    "SELECT * FROM scores",
    "FROM scores",
    "SELECT heat_map AS other FROM scores",
    "SELECT count(*) FROM scores WHERE lung_mask IS NULL",
    "SELECT image_id FROM scores ORDER BY octet_length(heat_map)",
    "SELECT scores FROM scores",
    "SELECT columns('heat.*') FROM scores",
    "SELECT * FROM duplicates",
    "SELECT s.lung_mask FROM (SELECT unnest(list(scores)) AS s FROM scores)",
    "WITH x AS (SELECT * FROM scores) SELECT max(heat_map) FROM x",
    "DESCRIBE scores",
    "SELECT column_name, count FROM (SUMMARIZE scores)",
    "CREATE TABLE t AS SELECT * FROM scores; SELECT heat_map FROM t",
]


@pytest.mark.parametrize("sql", PICTURE_QUERIES)
def test_pictures_come_from_the_parts(whole: Path, output: Path, sql: str) -> None:
    assert not _without_pictures(sql, (), None)
    compact_output(output)
    with_copy, without = (list(run_query(str(place), sql).rows) for place in (output, whole))
    assert sorted(with_copy, key=str) == sorted(without, key=str)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM scores",
        "SELECT image_id, p_covid FROM scores ORDER BY p_covid DESC LIMIT 2",
        "SELECT * EXCLUDE (heat_map, lung_mask) FROM scores",
        "SELECT p_covid FROM scores_unique",
        "WITH x AS (SELECT * FROM scores) SELECT image_id FROM x",
        "-- a note\nSELECT heat_lo FROM scores;",
    ],
)
def test_queries_without_pictures_need_no_parts(whole: Path, output: Path, sql: str) -> None:
    assert _without_pictures(sql, (), None)
    compact_output(output)
    for part in (output / "scores").iterdir():
        part.write_bytes(b"")
    rows = run_query(str(output), sql).rows
    assert sorted(rows, key=str) == sorted(run_query(str(whole), sql).rows, key=str)


def test_errors_of_a_statement_are_the_same(output: Path) -> None:
    compact_output(output)
    for sql in ("SELECT nothing FROM scores", "SELEC 1", "", "SELECT CAST(image_id AS INT) FROM scores"):
        with pytest.raises(UsageError):
            list(run_query(str(output), sql).rows)


def test_a_dataset_reads_pictures_from_the_parts(whole: Path, output: Path) -> None:
    compact_output(output)
    spoil(output)
    dataset = open_scores(output)
    assert isinstance(dataset, ScoreDataset)
    assert isinstance(dataset, ds.Dataset)
    assert dataset.schema.equals(SCORE_SCHEMA)
    assert dataset.to_table().sort_by("image_id").equals(open_scores(whole).to_table().sort_by("image_id"))
    assert dataset.to_table(columns=["p_std", "heat_map"]).column("p_std").to_pylist() != [7.0] * 8
    assert dataset.to_table(columns=["p_std"]).column("p_std").to_pylist() == [7.0] * 8
    assert dataset.count_rows() == dataset.count_rows(filter=ds.field("image_id") > "") == 8
    assert dataset.head(2, columns=["p_std"]).column(0).to_pylist() == [7.0, 7.0]
    assert dataset.take([0]).column("p_std").to_pylist() != [7.0]
    assert (
        pl.scan_pyarrow_dataset(dataset).select("p_std").collect().get_column("p_std").to_list() == [7.0] * 8
    )
    assert duckdb.sql("SELECT count(lung_mask) FROM dataset").fetchall() == [(7,)]


@pytest.mark.parametrize("name", PICTURES)
def test_expressions_that_need_pictures_are_seen(name: str) -> None:
    assert needs_pictures(None, None)
    assert needs_pictures([name], None)
    assert needs_pictures({"size": ds.field(name)}, None)
    assert needs_pictures(["p_covid"], ds.field(name).is_valid())
    assert needs_pictures({"first": ds.field(0)}, None), "a position may be anything"
    assert not needs_pictures(["p_covid"], ds.field("image_id") == "0" * 32)
    assert not needs_pictures([], None)


def test_nobody_reads_a_copy_that_is_not_whole(output: Path) -> None:
    compact_output(output, rows_per_file=3)
    before = p_stds(output)
    spoil(output)
    light_files(output)[1].unlink()
    assert verify_output(output).light == "damaged"
    assert p_stds(output) == before
    shutil.rmtree(output / "light")
    assert verify_output(output).light == "absent"
    (output / "light").mkdir()
    (output / "light" / "light.json").write_text("{")
    assert verify_output(output).light == "damaged"
    assert p_stds(output) == before


def test_a_damaged_copy_is_passed_over(output: Path) -> None:
    before = p_stds(output)
    compact_output(output)
    light_files(output)[0].write_bytes(b"no parquet")
    assert p_stds(output) == before


def test_the_old_copy_goes_after_the_new_one_stands(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compact_output(output)

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    # Killed before the marker: the old copy stays in force, beside files that nobody reads.
    with monkeypatch.context() as patch:
        patch.setattr(compact.Publisher, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            compact_output(output)
    assert len(light_files(output)) == 2
    assert verify_output(output).light == "current"
    (left_over,) = {path.name for path in light_files(output)} - {first.marker.files[0].name}
    second = compact_output(output)
    assert (output / "light" / left_over).exists(), "it may be of another that is still running"
    yesterday = time.time() - UPLOAD_SECONDS - 60
    os.utime(output / "light" / left_over, (yesterday, yesterday))
    second = compact_output(output)
    assert not (output / "light" / left_over).exists()
    assert [path.name for path in light_files(output)] == [second.marker.files[0].name]
    assert json.loads((output / "light" / "light.json").read_text())["rows"] == 8


def test_light_and_staging_do_not_disturb_the_proof(output: Path) -> None:
    compact_output(output)
    (output / "staging" / "left-over").write_bytes(b"half")
    found = verify_output(output)
    assert found.complete, found.problems


def test_s3(archive: Path, whole: Path, s3_server: S3Server) -> None:
    url = f"s3://{s3_server.make_bucket()}/out"
    options = s3_server.storage_options
    make_output(archive, url, output_options=options, unit_size=3, calibration=MADE)
    made = compact_output(url, rows_per_file=4, storage_options=options)
    assert len(made.marker.files) == 2
    s3_server.clear_log()
    sql = "SELECT count(*), max(p_covid) FROM scores"
    assert list(run_query(url, sql, storage_options=options).rows) == list(run_query(str(whole), sql).rows)
    assert not [entry for entry in s3_server.requests("GET") if "part-" in entry["path"]]
    pictures = "SELECT sum(octet_length(heat_map)) FROM scores"
    assert list(run_query(url, pictures, storage_options=options).rows) == list(
        run_query(str(whole), pictures).rows
    )
    assert open_scores(url, **options).to_table(columns=["image_id"]).num_rows == 8
    assert verify_output(url, storage_options=options).light == "current"
    compact_output(url, storage_options=options)
    storage = open_storage(url, options)
    assert len(storage.fs.ls(f"{storage.path}/light")) == 2


def test_what_cannot_be_compacted_is_refused(archive: Path, output: Path, tmp_path: Path) -> None:
    shards = Identity(kind=KIND_SHARDS, document=IDENTITY.document)
    make_output(archive, tmp_path / "shards", identity=shards)
    with pytest.raises(OutputError, match="holds shards"):
        compact_output(tmp_path / "shards")
    with pytest.raises(UsageError, match="at least 1, got 0"):
        compact_output(output, rows_per_file=0)
    sorted((output / "scores").iterdir())[0].write_bytes(b"no parquet")
    with pytest.raises(OutputError, match=r"cxr-ray verify"):
        compact_output(output)
    assert not (output / "light").exists()


def test_command_line(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compact", str(output), "--rows-per-file", "3"]) == 0
    assert "8 rows of 3 parts (generations 0) in 2 files" in capsys.readouterr().out
    assert main(["verify", str(output)]) == 0
    assert "light copy: current (8 rows of 3 parts in 2 files)" in capsys.readouterr().out
