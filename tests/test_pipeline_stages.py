"""The stages as plain functions: failures travel as records, parts say how their unit went, metrics count."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from end_to_end.commands import write_films
from made_output import IDENTITY, MadeScorer, make_output

from cxr_ray.archives.storage import open_storage
from cxr_ray.pipeline import failures, metrics
from cxr_ray.pipeline import stages as stages_module
from cxr_ray.pipeline.decode_unit import InputSettings
from cxr_ray.pipeline.metrics import RunMetrics
from cxr_ray.pipeline.parts import PartFooter
from cxr_ray.pipeline.plan import open_plan
from cxr_ray.pipeline.publish import Publisher, footer_identity
from cxr_ray.pipeline.stages import (
    Outcome,
    Published,
    ScoreStage,
    Stages,
    outcomes_of,
    publish_stage,
    read_stage,
)
from cxr_ray.pipeline.unit_rows import from_rows

FOOTER = PartFooter(
    identity=IDENTITY.hash, unit_id="", generation=0, attempt="test", code_version="test", device="cpu",
    compute_batch=64, threads=1, dtype="float32", weights="made", calibration_id=None, decode_policy="corrected",
    fencing="create_only",
)  # fmt: skip


class Shelf(Publisher):
    """An OUTPUT whose storage fails ``failures`` times."""

    failures = 0

    def publish(self, name: str, data: bytes) -> bool:
        if self.failures:
            self.failures -= 1
            raise TimeoutError("no answer")
        return super().publish(name, data)


class ShortScorer(MadeScorer):
    """Says that a GPU's memory ran out once."""

    compute_batch = 64
    micro_batch, halvings = 64, 0

    def score(self, pixels_BHW: np.ndarray) -> Any:
        self.micro_batch, self.halvings = 32, 1
        return super().score(pixels_BHW)


class Recorded:
    """Stands in for a metric: keeps what it was told."""

    def __init__(self, name: str, *_: Any, tag_keys: tuple[str, ...], **__: Any) -> None:
        self.tags, self.keys, self.values = {"attempt": ""}, set(tag_keys), []
        METRICS[name] = self

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self.tags = tags

    def inc(self, value: float, tags: dict[str, str] | None = None) -> None:
        assert {*self.tags, *(tags or {})} == self.keys
        self.values.append((*(tags or {}).values(), value))

    observe = inc


METRICS: dict[str, Recorded] = {}


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Recorded]]:
    METRICS.clear()
    monkeypatch.setattr(metrics, "Counter", Recorded)
    monkeypatch.setattr(metrics, "Histogram", Recorded)
    metrics.run_metrics.cache_clear()
    yield METRICS
    metrics.run_metrics.cache_clear()


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: Any) -> Stages:
    """Four films and an empty file, planned in one unit or two; nobody waits."""
    monkeypatch.setattr(failures, "pause_before", lambda retry: 0.0)
    write_films(tmp_path / "films", 4)
    (tmp_path / "films" / "empty.png").write_bytes(b"")
    make_output(tmp_path / "films", tmp_path / "out", unit_size=10, units=0)
    place = Shelf(open_storage(str(tmp_path / "out")))
    return Stages(
        plan=place, output=place, settings=InputSettings(), kind="scores", footer=FOOTER, device="cpu",
        scorer=ShortScorer, unit_retries=2,
    )  # fmt: skip


def assignments(stages: Stages) -> pa.Table:
    units = open_plan(stages.plan).units()
    return pa.table({"assignments": [json.dumps([[asdict(unit)] for unit in units])]})


def run(stages: Stages) -> list[Outcome]:
    """The graph without Ray."""
    scorer = ScoreStage(stages=stages, board=None)
    outcomes: list[Outcome] = []
    for row in read_stage(assignments(stages), stages=stages, board=None):
        for scored in scorer(row):
            for result in publish_stage(scored, stages=stages, board=None):
                outcomes += outcomes_of(result)
    return outcomes


def test_a_part_tells_how_its_unit_went(stages: Stages, recorded: dict[str, Recorded]) -> None:
    outcomes = run(stages)
    assert sum(outcome.record.images for outcome in outcomes if isinstance(outcome, Published)) == 5
    for outcome in outcomes:
        assert isinstance(outcome, Published)
        assert set(outcome.journey.seconds) == {"read", "score", "publish"}
        name = stages.output.path(f"scores/part-{outcome.record.unit_id}.parquet")
        footer = footer_identity(pq.read_metadata(name).metadata)
        assert footer["micro_batch"] == 32
        assert (footer["compute_batch"], footer["halvings"], footer["retries"]) == (64, 1, 0)
        assert set(footer["seconds"]) == {"read", "score"}
        assert min(footer["seconds"].values()) >= 0
    total = {name: sum(entry[-1] for entry in metric.values) for name, metric in recorded.items()}
    assert total["cxr_ray_published_images"] == 5
    assert total["cxr_ray_units_published"] == len(outcomes)
    assert recorded["cxr_ray_quarantined"].values == [("empty_file", 1)]
    assert {entry[0] for entry in recorded["cxr_ray_stage_seconds"].values} == {"read", "score", "publish"}
    assert sum(n for stage, n in recorded["cxr_ray_images"].values if stage == "read") == 5
    assert sum(n for stage, n in recorded["cxr_ray_images"].values if stage == "score") == 5
    assert {entry[0] for entry in recorded["cxr_ray_compute_batch"].values} == {32}
    assert total["cxr_ray_batch_halvings"] == 1
    assert {metric.tags["attempt"] for metric in recorded.values()} == {"test"}


def test_the_documented_query_finds_the_timings(stages: Stages) -> None:
    outcomes = run(stages)
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "watch-a-run.md").read_text(encoding="utf-8")
    query = re.findall(r"^```duckdb\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[0]
    rows = duckdb.sql(query.replace("OUTPUT", stages.output.storage.path)).fetchall()
    assert len(rows) == len(outcomes)
    assert {row[-1] for row in rows} == {32}
    assert min(row[3] + row[4] for row in rows) > 0


def test_a_refused_write_is_tried_again_and_counted(stages: Stages, recorded: dict[str, Recorded]) -> None:
    assert isinstance(stages.output, Shelf)
    stages.output.failures = 2
    first = run(stages)[0]
    assert isinstance(first, Published)
    assert first.journey.retries == 2
    assert recorded["cxr_ray_retries"].values == [("publish", 1)] * 2


def test_an_output_that_stays_away_is_a_record_not_an_error(
    stages: Stages, recorded: dict[str, Recorded]
) -> None:
    assert isinstance(stages.output, Shelf)
    stages.output.failures = 10**6
    outcomes = run(stages)
    for outcome in outcomes:
        assert isinstance(outcome, failures.UnitFailure)
        assert (outcome.stage, outcome.code, outcome.fatal) == ("publish", "storage_write", False)
        assert outcome.reason == "OUTPUT cannot be written (no answer from the storage server (TimeoutError))"
    assert recorded["cxr_ray_units_failed"].values == [("publish", "storage_write", 1)] * len(outcomes)


def test_a_part_of_another_identity_is_fatal(stages: Stages) -> None:
    run(stages)
    other = replace(stages, footer=replace(FOOTER, identity="other"))
    first = run(other)[0]
    assert isinstance(first, failures.UnitFailure)
    assert (first.code, first.fatal) == ("publish_conflict", True)
    again = run(stages)[0]  # the same identity is success, told as not won
    assert isinstance(again, Published)
    assert not again.record.won


def test_a_name_taken_by_rubbish_is_fatal(stages: Stages) -> None:
    unit = open_plan(stages.plan).units()[0]
    stages.output.publish(f"scores/part-{unit.unit_id}.parquet", b"rubbish")
    first = run(stages)[0]
    assert isinstance(first, failures.UnitFailure)
    assert (first.code, first.fatal) == ("publish_conflict", True)
    assert "no readable part" in first.reason


def broken_scorer() -> Any:
    raise RuntimeError("no such device")


class Bug(MadeScorer):
    """A scorer with a programming error."""

    def score(self, pixels_BHW: np.ndarray) -> Any:
        raise KeyError("p_covid")


@pytest.mark.parametrize(
    ("scorer", "reason"), [(broken_scorer, "RuntimeError: no such device"), (Bug, "KeyError: 'p_covid'")]
)
def test_a_scorer_with_a_fault_is_fatal_in_one_sentence(stages: Stages, scorer: Any, reason: str) -> None:
    first = run(replace(stages, scorer=scorer))[0]
    assert isinstance(first, failures.UnitFailure)
    assert (first.stage, first.reason, first.fatal) == ("score", reason, True)


class GuardedScorer(MadeScorer):
    """Holds its first caller until told to go on, and notices a second one at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.go_on, self.alone = threading.Event(), threading.Event(), threading.Lock()

    def score(self, pixels_BHW: np.ndarray) -> Any:
        assert self.alone.acquire(blocking=False), "two units at the scorer at once"
        try:
            self.entered.set()
            assert self.go_on.wait(20)
            return super().score(pixels_BHW)
        finally:
            self.alone.release()


def test_an_actor_prepares_a_unit_while_another_is_scored(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[int] = []

    class Watched(stages_module.UnitInScoring):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            prepared.append(len(self.rows))

    monkeypatch.setattr(stages_module, "UnitInScoring", Watched)
    actor = ScoreStage(stages=replace(stages, scorer=GuardedScorer), board=None)
    scorer = actor.scorer
    assert isinstance(scorer, GuardedScorer)
    row = next(iter(read_stage(assignments(stages), stages=stages, board=None)))
    with ThreadPoolExecutor(2) as calls:
        units = [calls.submit(lambda: list(actor(row))) for _ in range(2)]
        try:
            assert scorer.entered.wait(20)
            start = time.monotonic()
            while len(prepared) < 2:
                assert time.monotonic() - start < 20, "the second unit waits for the first"
                time.sleep(0.01)
            time.sleep(0.5)
        finally:
            scorer.go_on.set()
        passages = [next(from_rows(found)) for unit in units for found in unit.result(20)]
    assert [passage.failure for passage in passages] == [None, None]
    # One held the scorer for half a second; the other one's wait for it is no time that scoring took.
    assert [passage.journey.seconds["score"] > 0.4 for passage in passages].count(True) == 1


def test_a_unit_that_could_not_be_read_passes_through(stages: Stages, tmp_path: Path) -> None:
    lost = replace(stages, plan=Publisher(open_storage(str(tmp_path / "elsewhere"))), unit_retries=0)
    rows = list(read_stage(assignments(stages), stages=lost, board=None))
    assert [passage.table for row in rows for passage in from_rows(row)] == [None] * len(rows)
    outcomes = [
        outcome
        for row in rows
        for scored in ScoreStage(stages=stages, board=None)(row)
        for result in publish_stage(scored, stages=stages, board=None)
        for outcome in outcomes_of(result)
    ]
    assert {outcome.code for outcome in outcomes if isinstance(outcome, failures.UnitFailure)} == {"storage"}
    assert len(outcomes) == len(rows)


def test_the_real_metrics_take_what_the_stages_give() -> None:
    real = RunMetrics("test")
    real.images("read", 3)
    real.stage("read", 0.5)
    real.retry("read")
    real.batch(32, 1)
    real.failed(failures.UnitFailure(unit_id="u", stage="read", code="storage", reason="r"))
