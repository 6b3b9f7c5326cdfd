"""One trustworthy row per image, on a local directory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import polars
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from made_calibration import MADE

from cxr_ray import load_bundle, open_scores
from cxr_ray.pipeline.score_table import NUMBER_FIELDS, PICTURE_FIELDS, RANGE_FIELDS, SCORE_SCHEMA
from cxr_ray.results.recalibrate import MixedCalibration
from cxr_ray.weights import save_bundle
from end_to_end.commands import read_table, run_job, score_cheaply, write_films


def part_times(output: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (output / "scores").iterdir()}


def test_every_input_is_a_row(scored_films: Path) -> None:
    table = read_table(scored_films / "scores")
    assert table.num_rows == 15
    assert len(set(table.column("image_id").to_pylist())) == 15
    rows = {Path(row["uri"]).name: row for row in table.to_pylist()}
    scores = [field.name for field in (*NUMBER_FIELDS, *RANGE_FIELDS, *PICTURE_FIELDS)]
    for name, reason in {
        "broken.png": "truncated",
        "blank.png": "constant_pixels",
        "page.png": "no_lungs",
    }.items():
        bad = rows.pop(name)
        assert (bad["status"], bad["reason"]) == ("quarantined", reason)
        assert bad["detail"]
        kept = {score for score in scores if bad[score] is not None}
        assert kept == ({"lung_fraction"} if reason == "no_lungs" else set())
    for row in rows.values():
        assert row["status"] == "scored"
        assert row["reason"] is None
        assert 0 <= row["p_covid"] <= 1
        assert len(row["path_logits"]) == 6
        assert row["heat_map"].startswith(b"\x89PNG")


def test_schema_is_the_contract(scored_films: Path) -> None:
    for path in (scored_films / "scores").iterdir():
        schema = pq.read_schema(path)
        assert schema.remove_metadata().equals(SCORE_SCHEMA)
        assert pq.ParquetFile(path).num_row_groups == 1


def test_other_readers_agree(scored_films: Path) -> None:
    import duckdb

    parts = f"{scored_films}/scores/*.parquet"
    sql = f"select count(*), count(p_covid), round(sum(p_covid), 4) from '{parts}'"
    (duck,) = duckdb.sql(sql).fetchall()
    frame = polars.read_parquet(parts)
    assert duck[:2] == (frame.height, frame["p_covid"].count()) == (15, 12)
    assert duck[2] == pytest.approx(frame["p_covid"].sum(), abs=1e-3)


def test_summary_says_it_in_numbers(scored_films: Path) -> None:
    run = json.loads((scored_films / "run.json").read_text())
    assert (run["planned"], run["scored"], run["quarantined"]) == (15, 12, 3)
    assert run["reasons"] == {"constant_pixels": 1, "no_lungs": 1, "truncated": 1}
    assert run["complete"]


def test_running_again_changes_nothing_and_exit_3_is_the_users_choice(
    films: Path, scored_films: Path
) -> None:
    before = part_times(scored_films)
    again = run_job(
        "score", f"archive={films}", f"output={scored_films}", "weights=seeded", "max_quarantined=0.01"
    )
    assert again.code == 3
    assert again.summary["exit_code"] == 3
    assert again.summary["quarantined"] == 3
    assert part_times(scored_films) == before
    assert "Traceback" not in again.err


def test_limit_then_extend_appends_only_what_is_new(tmp_path: Path) -> None:
    archive, output = tmp_path / "films", tmp_path / "out"
    write_films(archive, 4)
    first = score_cheaply(archive, output, "limit=3")
    assert first.summary["planned"] == 3
    before = part_times(output)
    write_films(archive, 6)
    unchanged = score_cheaply(archive, output, "extend=false")
    assert unchanged.summary["planned"] == 3
    # The same networks with a calibration are the same identity; the rows of before stay as they are.
    seeded = load_bundle("seeded")
    meta = dataclasses.replace(seeded.meta, **MADE.record())
    save_bundle(dataclasses.replace(seeded, meta=meta), tmp_path / "bundle")
    second = score_cheaply(archive, output, f"weights={tmp_path / 'bundle'}")
    assert "calibrated in another way" in second.out
    assert second.summary["planned"] == 6
    after = part_times(output)
    assert {name: after[name] for name in before} == before
    table = read_table(output / "scores")
    assert table.num_rows == len(set(table.column("image_id").to_pylist())) == 6
    assert sorted(set(table.column("generation").to_pylist())) == [0, 1]
    for row in table.to_pylist():
        assert (row["decision"] is None) == (row["p_calibrated"] is None) == (row["generation"] == 0)
    ids = {
        json.loads(pq.read_schema(part).metadata[b"cxr_ray"])["calibration_id"]
        for part in (output / "scores").iterdir()
    }
    assert ids == {None, MADE.id}
    with pytest.warns(MixedCalibration):
        assert open_scores(output).count_rows(ds.field("threshold_name") == "youden") == 6


def test_a_film_gone_or_changed_since_planning_is_a_row(tmp_path: Path) -> None:
    from cxr_ray.archives.storage import open_storage
    from cxr_ray.pipeline.plan import open_plan
    from cxr_ray.pipeline.publish import Publisher

    archive, output = tmp_path / "films", tmp_path / "out"
    paths = write_films(archive, 3)
    score_cheaply(archive, output)
    # Take the published part away, as if the run had been killed before: the plan stays.
    for part in (output / "scores").iterdir():
        part.unlink()
    paths[0].unlink()
    paths[1].write_bytes(paths[2].read_bytes() + b"more")
    assert open_plan(Publisher(open_storage(str(output)))).images == 3
    score_cheaply(archive, output)
    reasons = {Path(row["uri"]).name: row["reason"] for row in read_table(output / "scores").to_pylist()}
    assert reasons == {"film-000.png": "missing", "film-001.png": "changed", "film-002.png": None}


def test_dry_run_counts_and_writes_nothing(films: Path, tmp_path: Path) -> None:
    done = score_cheaply(films, tmp_path / "out", "dry_run=true")
    assert done.summary["new_images"] == done.summary["images"] == 15
    assert done.summary["sampled_images"] > 0
    assert done.summary["images_per_second"] > 0
    assert done.summary["hours"] > 0
    assert done.summary["output_bytes"] > 1000
    assert not (tmp_path / "out").exists()
