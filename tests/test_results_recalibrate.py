"""Calibrated columns read anew: prevalence, threshold, another bundle, mixed OUTPUTs; SQL and Arrow agree."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
from made_calibration import MADE, PLATT
from made_output import IDENTITY, make_output

from cxr_ray import open_scores
from cxr_ray.calibration import Calibration
from cxr_ray.cli import main
from cxr_ray.errors import BundleError, OutputError, UsageError
from cxr_ray.phantoms import write_sample_archive
from cxr_ray.pipeline.score_table import SCORE_SCHEMA
from cxr_ray.results import run_query
from cxr_ray.results.recalibrate import MixedCalibration
from cxr_ray.results.recomputed import RecomputedScores, recompute, replacement_sql

COLUMNS = ["image_id", "logit", "p_covid", "p_calibrated", "decision", "threshold_name"]
SQL = f"SELECT {', '.join(COLUMNS)} FROM scores ORDER BY image_id"
HASHES = {"segmenter.safetensors": "a" * 64, "paths.safetensors": "b" * 64}
SCORED_WITH = {"weights": {"tensors": HASHES, "mask_style": "v7"}, "score": {"variant": None}}
LATER = dataclasses.replace(MADE, calibration=PLATT | {"intercept": 2.0}, default_threshold="sens95")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_sample_archive(folder, count=5)
    return folder


@pytest.fixture(scope="module")
def output(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scored with ``MADE``: four phantoms and a broken file."""
    identity = dataclasses.replace(IDENTITY, document=IDENTITY.document | SCORED_WITH)
    target = tmp_path_factory.mktemp("runs") / "out"
    return Path(make_output(films, target, unit_size=2, identity=identity, calibration=MADE))


@pytest.fixture(scope="module")
def mixed(films: Path, output: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, extended by two more films with another calibration."""
    folder = tmp_path_factory.mktemp("mixed")
    shutil.copytree(output, folder / "out")
    more = folder / "films"
    write_sample_archive(more, count=3, seed=5)
    identity = dataclasses.replace(IDENTITY, document=IDENTITY.document | SCORED_WITH)
    return Path(make_output(more, folder / "out", unit_size=2, identity=identity, calibration=LATER))


def rows(output: Path, sql: str = SQL, **options: Any) -> list[tuple]:
    return list(run_query(output, sql, **options).rows)


def check(found: list[tuple], *, slope: float, intercept: float, cut: float, name: str) -> None:
    """Every row is what the formula says, and the quarantined one is empty."""
    assert sum(row[1] is None for row in found) >= 1
    assert {row[4] for row in found} >= {None}
    for _, logit, p_covid, p_calibrated, decision, threshold_name in found:
        if logit is None:
            assert (p_calibrated, decision, threshold_name) == (None, None, None)
        else:
            by_hand = 1 / (1 + math.exp(-(slope * logit + intercept)))
            assert p_calibrated == pytest.approx(by_hand, rel=1e-6)
            assert (decision, threshold_name) == ("positive" if p_covid >= cut else "negative", name)


def test_scoring_stored_the_columns_and_nothing_is_recomputed(output: Path) -> None:
    assert isinstance(open_scores(output), ds.Dataset)
    check(rows(output), slope=0.5, intercept=-1, cut=0.5, name="youden")


def test_prevalence_and_threshold(output: Path) -> None:
    shift = math.log(0.05 / 0.95) - math.log(0.25 / 0.75)
    median = sorted(row[2] for row in rows(output) if row[2] is not None)[2]
    found = rows(output, prevalence=0.05, threshold=str(median))
    check(found, slope=0.5, intercept=-1 + shift, cut=median, name=str(median))
    assert {row[4] for row in found} == {"positive", "negative", None}
    check(rows(output, threshold="sens95"), slope=0.5, intercept=-1, cut=0.2, name="sens95")


def test_arrow_gives_what_sql_gives(output: Path) -> None:
    options = {"prevalence": 0.05, "threshold": "sens95"}
    scores = open_scores(output, **options)
    assert isinstance(scores, RecomputedScores)
    assert scores.schema.equals(SCORE_SCHEMA)
    by_sql = rows(output, **options)
    table = scores.to_table(columns=COLUMNS).sort_by("image_id")
    for ours, theirs in zip(table.to_pylist(), by_sql, strict=True):
        values = list(ours.values())
        assert values[:3] + values[4:] == [*theirs[:3], *theirs[4:]]
        assert values[3] == (theirs[3] and pytest.approx(theirs[3], rel=1e-6))
    # The rest of the row, pictures included, is as stored.
    whole, stored = scores.to_table(), open_scores(output).to_table()
    derived = ["p_calibrated", "decision", "threshold_name"]
    assert whole.drop_columns(derived).equals(stored.drop_columns(derived))
    assert not whole.equals(stored)


def test_arrow_filters_columns_counts_and_expressions(output: Path) -> None:
    scores = open_scores(output, prevalence=0.05)
    values = [value for value in scores.to_table(["p_calibrated"])["p_calibrated"].to_pylist() if value]
    middle = sorted(values)[1]
    above = ds.field("p_calibrated") > middle
    assert scores.count_rows(above) == sum(value > middle for value in values) == len(values) - 2
    assert scores.to_table(["image_id"], filter=above & (ds.field("logit") < 99)).column_names == ["image_id"]
    assert scores.count_rows(ds.field("status") == "quarantined") == 1
    assert scores.count_rows() == 5
    percent = scores.to_table({"percent": ds.field("p_calibrated") * 100}, filter=ds.field("logit") > -99)
    assert sorted(percent["percent"].to_pylist()) == pytest.approx([100 * value for value in sorted(values)])
    assert scores.head(2, ["decision"]).num_rows == 2
    assert sum(batch.num_rows for batch in scores.to_batches(["decision"])) == 5
    connection = duckdb.connect()
    connection.register("handed_on", scores.scanner(COLUMNS).to_reader())
    assert connection.sql("SELECT count(p_calibrated) FROM handed_on").fetchall() == [(len(values),)]


def test_small_lungs_get_no_decision_in_sql_and_arrow() -> None:
    fields = {"p_covid": [0.9, 0.9, None, 0.1], "logit": [2.2, 2.2, None, -2.2]}
    flags = [["colour", "lungs_small"], [], ["lungs_small"], None]
    columns = {
        "p_covid": pa.array(fields["p_covid"], pa.float32()),
        "logit": pa.array(fields["logit"], pa.float32()),
    }
    columns["flags"] = pa.array(flags, pa.list_(pa.string()))
    derived = [SCORE_SCHEMA.field(name) for name in ("p_calibrated", "decision", "threshold_name")]
    table = pa.table(columns)
    for field in derived:
        table = table.append_column(field, pa.nulls(4, field.type))
    readout = MADE.readout()
    batch = table.to_batches()[0]
    arrow = recompute(batch, readout, table.schema).select(["decision", "threshold_name"]).to_pylist()
    assert [row["decision"] for row in arrow] == [None, "positive", None, "negative"]
    assert [row["threshold_name"] for row in arrow] == [None, "youden", None, "youden"]
    sql = f"SELECT decision, threshold_name FROM (SELECT * REPLACE ({replacement_sql(readout)}) FROM 'table')"
    connection = duckdb.connect()
    connection.register("table", table)
    assert connection.sql(sql.replace("'table'", '"table"')).fetchall() == [
        tuple(row.values()) for row in arrow
    ]
    whole = recompute(batch.slice(1, 1), readout, table.schema)  # a slice: its list offsets do not begin at 0
    assert whole["decision"].to_pylist() == ["positive"]
    assert pc.all(pc.is_valid(whole["p_calibrated"])).as_py()


def test_mixed_calibrations_are_said_and_read_alike(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = duckdb.sql(
        f"SELECT DISTINCT threshold_name FROM '{mixed}/scores/*.parquet' ORDER BY 1"
    ).fetchall()
    assert stored == [("sens95",), ("youden",), (None,)]
    with pytest.warns(MixedCalibration, match="2 calibrations"):
        found = rows(mixed)
    check(found, slope=0.5, intercept=2.0, cut=0.2, name="sens95")
    with pytest.warns(MixedCalibration):
        assert isinstance(open_scores(mixed), RecomputedScores)
    assert main(["query", str(mixed), "SELECT 1 AS one"]) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == ["one", "---", "1"]
    assert printed.err.startswith("cxr-ray: note: ")
    assert printed.err.count("\n") == 1
    # Given a calibration, there is nothing to say.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(rows(mixed, calibration=MADE), slope=0.5, intercept=-1, cut=0.5, name="youden")


def write_bundle_json(folder: Path, **changes: Any) -> Path:
    tables = {name: {"sha256": digest, "tensors": {}} for name, digest in HASHES.items()}
    folder.mkdir(exist_ok=True)
    (folder / "bundle.json").write_text(
        json.dumps({"mask_style": "v7", "tensors": tables, **LATER.record(), **changes})
    )
    return folder


def test_another_bundle_recalibrates_without_rescoring(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_bundle_json(tmp_path / "bundle")
    check(rows(output, calibration=bundle), slope=0.5, intercept=2.0, cut=0.2, name="sens95")
    table = open_scores(output, calibration=bundle).to_table(columns=COLUMNS)
    check(
        [tuple(row.values()) for row in table.to_pylist()], slope=0.5, intercept=2.0, cut=0.2, name="sens95"
    )
    command = [
        "query",
        str(output),
        SQL,
        "--weights",
        str(bundle),
        "--prevalence",
        "0.25",
        "--threshold",
        "youden",
    ]
    assert main([*command, "--format", "json"]) == 0
    printed = [tuple(row.values()) for row in json.loads(capsys.readouterr().out)]
    check(printed, slope=0.5, intercept=2.0, cut=0.5, name="youden")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"tensors": {"paths.safetensors": {"sha256": "c" * 64}}}, UsageError, "other networks"),
        ({"mask_style": "jms"}, UsageError, "mask_style=jms"),
        ({"calibration": {"method": "x"}}, BundleError, "platt"),
        ({"tensors": None}, BundleError, "damaged"),
    ],
)
def test_a_bundle_that_does_not_speak_of_these_scores(
    output: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        open_scores(output, calibration=write_bundle_json(tmp_path / "bundle", **changes))


def test_other_refusals_are_one_sentence(output: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no weights bundle"):
        rows(output, calibration=tmp_path)
    with pytest.raises(UsageError, match="youden"):
        rows(output, threshold="best")
    shutil.copytree(output, tmp_path / "out")
    record = next((tmp_path / "out" / "calibrations").iterdir())
    record.write_text(record.read_text().replace("0.25", "0.35"))
    with pytest.raises(OutputError, match="damaged"):
        rows(tmp_path / "out")


def test_an_output_without_calibration(films: Path, tmp_path: Path) -> None:
    plain = Path(make_output(films, tmp_path / "out", calibration=Calibration()))
    assert isinstance(open_scores(plain), ds.Dataset)
    assert {row[3:] for row in rows(plain)} == {(None, None, None)}
    with pytest.raises(UsageError, match="no calibration"):
        rows(plain, prevalence=0.1)
    decided = rows(plain, threshold=0.4)
    assert {row[3] for row in decided} == {None}
    assert {row[5] for row in decided} == {None, "0.4"}
    check(rows(plain, calibration=MADE), slope=0.5, intercept=-1, cut=0.5, name="youden")
