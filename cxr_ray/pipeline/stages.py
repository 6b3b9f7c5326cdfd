"""The stages of the graph as they run on workers: read and decode, score, publish.

A stage never raises for one unit: what failed travels on as a ``UnitFailure``, so that the graph and every
other unit go on. The driver decides what becomes of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import ray

from cxr_ray.calibration import Readout
from cxr_ray.pipeline.assignments import Assignment, read_assignment
from cxr_ray.pipeline.decode_unit import InputSettings
from cxr_ray.pipeline.failures import PUBLISH, READ, SCORE, Tries, UnitFailure, failure_of
from cxr_ray.pipeline.metrics import RunMetrics, run_metrics
from cxr_ray.pipeline.parts import PartFooter, PartRecord, encoded_part, put_part
from cxr_ray.pipeline.plan import Unit
from cxr_ray.pipeline.progress import RETRIED, reporter
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.pipeline.resources import device_model
from cxr_ray.pipeline.score_table import UNCALIBRATED
from cxr_ray.pipeline.score_unit import ScoresPixels, UnitInScoring
from cxr_ray.pipeline.turns import Turns
from cxr_ray.pipeline.unit_rows import Journey, Passage, from_rows, to_row
from cxr_ray.shards import QUARANTINED

ScorerFactory = Callable[[], ScoresPixels]

_NODE_DIGITS = 12

#: Units in an actor at the same time: one at the scorer, one before or behind it.
UNITS_AT_A_TIME = 2


@dataclass(frozen=True, kw_only=True)
class Stages:
    """What the stages need; sent to the workers.

    Attributes:
        plan, output: publishers of the plan's folder and of OUTPUT.
        kind: ``scores`` or ``shards``.
        footer: of every part; unit, generation and journey are filled in per unit.
        device: ``cpu`` or ``cuda``, of the scorers.
        scorer: makes a scorer inside an actor; None for ingest.
        min_lung_fraction: see ``ScoreOptions``.
        readout: how the scores are calibrated and decided.
        unit_retries: new tries of a unit by the same worker.
    """

    plan: Publisher
    output: Publisher
    settings: InputSettings
    kind: str
    footer: PartFooter
    device: str
    scorer: ScorerFactory | None
    min_lung_fraction: float = 0.0
    readout: Readout = UNCALIBRATED
    unit_retries: int = 3

    @property
    def metrics(self) -> RunMetrics:
        """This process's metrics of the attempt."""
        return run_metrics(self.footer.attempt)

    def tries(self, stage: str, board: Any) -> Tries:
        """The tries of one unit in one stage, counted on the board and in the metrics."""
        report = reporter(board)

        def on_retry() -> None:
            report(RETRIED, 1)
            self.metrics.retry(stage)

        return Tries(self.unit_retries, on_retry=on_retry)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A unit that has its part now."""

    record: PartRecord
    journey: Journey = field(default_factory=Journey)


Outcome = Published | UnitFailure


def read_stage(batch: pa.Table, *, stages: Stages, board: Any) -> Iterator[pa.Table]:
    """Read tasks -> one row per unit."""
    report, metrics, node = reporter(board, stages.metrics), stages.metrics, node_name()
    for text in batch.column("assignments").to_pylist():
        for records in json.loads(text):
            assignment = Assignment(units=tuple(Unit(**record) for record in records))
            tries = stages.tries(READ, board)
            for passage in read_assignment(assignment, stages.plan, stages.settings, tries, report):
                if passage.failure is not None:
                    metrics.failed(passage.failure)
                else:
                    metrics.stage(READ, passage.journey.seconds[READ])
                yield to_row(replace(passage, journey=replace(passage.journey, node=node)))


class ScoreStage:
    """Units -> scored units; one scorer per actor, built once.

    An actor is called for ``UNITS_AT_A_TIME`` units at once, from as many threads. They take turns at the scorer,
    which so never waits for a unit to be unpacked or packed.
    """

    def __init__(self, *, stages: Stages, board: Any) -> None:
        assert stages.scorer is not None
        self.metrics = stages.metrics
        self.report = reporter(board, self.metrics)
        self.node = node_name()
        self.settings: dict[str, Any] = {
            "min_lung_fraction": stages.min_lung_fraction,
            "readout": stages.readout,
        }
        self.turns = Turns(board)
        # An actor that cannot be built would be told of in Ray's words, many lines of them.
        self.broken: UnitFailure | None = None
        try:
            self.scorer = stages.scorer()
            self.device = device_model(stages.device, getattr(self.scorer, "engine", None))
        except Exception as error:  # goes to the driver with the first unit, which raises it
            self.broken = replace(failure_of("", SCORE, error, 0), fatal=True)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for passage in from_rows(batch):
            with self.turns.presence(passage.unit.unit_id):
                scored = self._scored(passage)
            yield to_row(scored)

    def _scored(self, passage: Passage) -> Passage:
        if passage.table is None:
            return passage
        if self.broken is not None:
            return replace(passage, table=None, failure=replace(self.broken, unit_id=passage.unit.unit_id))
        start = time.perf_counter()
        try:
            unit = UnitInScoring(passage.table, self.report)
            waiting = time.perf_counter()
            with self.turns.turn(passage.unit.unit_id):
                waited, before = time.perf_counter() - waiting, self._halvings()
                unit.score(self.scorer)
                halvings = self._halvings()
            scored = unit.packed(**self.settings)
        except Exception as error:  # judged by failure_of; the driver raises what is fatal
            failure = failure_of(passage.unit.unit_id, SCORE, error, 0)
            self.metrics.failed(failure)
            return replace(passage, table=None, failure=failure)
        seconds = time.perf_counter() - start - waited
        micro_batch = getattr(self.scorer, "micro_batch", self.scorer.compute_batch)
        self.metrics.stage(SCORE, seconds)
        self.metrics.batch(micro_batch, halvings - before)
        journey = replace(
            passage.journey,
            seconds=passage.journey.seconds | {SCORE: seconds},
            device=self.device,
            node=self.node,
            micro_batch=micro_batch,
            halvings=halvings,
        )
        return replace(passage, table=scored, journey=journey)

    def _halvings(self) -> int:
        return int(getattr(self.scorer, "halvings", 0))


def publish_stage(batch: pa.Table, *, stages: Stages, board: Any) -> Iterator[pa.Table]:
    """Finished units -> part files -> one outcome each."""
    report = reporter(board)
    for passage in from_rows(batch):
        outcome = passage.failure or _published(passage, stages, board)
        if isinstance(outcome, Published):
            stages.metrics.published(outcome.record, outcome.journey)
            if stages.scorer is None:  # otherwise the scorer has said so already
                report(QUARANTINED, outcome.record.quarantined)
        elif passage.failure is None:
            stages.metrics.failed(outcome)
        yield outcome_row(outcome)


def _published(passage: Passage, stages: Stages, board: Any) -> Outcome:
    assert passage.table is not None
    unit, journey = passage.unit, passage.journey
    footer = replace(
        stages.footer,
        unit_id=unit.unit_id,
        generation=unit.generation,
        device=journey.device or stages.footer.device,
        seconds={stage: round(seconds, 3) for stage, seconds in journey.seconds.items()},
        retries=journey.retries,
        node=journey.node,
        micro_batch=journey.micro_batch,
        halvings=journey.halvings,
    )
    tries = stages.tries(PUBLISH, board)
    start = time.perf_counter()
    try:
        part = encoded_part(passage.table, stages.kind, footer)
    except Exception as error:  # not the storage's: fatal
        return failure_of(unit.unit_id, PUBLISH, error, 0)
    while True:
        try:
            record = put_part(stages.output, part)
        except Exception as error:  # judged by failure_of
            if tries.again(error):
                continue
            return failure_of(unit.unit_id, PUBLISH, error, tries.done)
        seconds = journey.seconds | {PUBLISH: time.perf_counter() - start}
        journey = replace(journey, seconds=seconds, retries=journey.retries + tries.done)
        return Published(record=record, journey=journey)


def outcome_row(outcome: Outcome) -> pa.Table:
    """One-row table for the driver."""
    kind = "published" if isinstance(outcome, Published) else "failed"
    return pa.table({"kind": [kind], "outcome": [json.dumps(asdict(outcome))]})


def outcomes_of(batch: pa.Table) -> Iterator[Outcome]:
    """What the workers said, on the driver."""
    for kind, text in zip(batch.column("kind").to_pylist(), batch.column("outcome").to_pylist(), strict=True):
        values = json.loads(text)
        if kind == "failed":
            yield UnitFailure(**values)
        else:
            yield Published(record=PartRecord(**values["record"]), journey=Journey(**values["journey"]))


def node_name() -> str | None:
    """First digits of this node's id in Ray; None outside of Ray."""
    if not ray.is_initialized():
        return None
    return ray.get_runtime_context().get_node_id()[:_NODE_DIGITS]
