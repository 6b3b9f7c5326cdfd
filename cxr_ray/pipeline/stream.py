"""The Ray Data graph: read and decode on tasks, score on actors, publish on tasks.

One Ray row is one whole unit, carried as an Arrow IPC stream in a binary column. So Ray may merge or cut
blocks as it likes: a unit never comes apart, and the part that is published holds all of it.
``target_max_block_size = 1`` makes every unit a block of its own, handed on as soon as it is ready (a
tar.gz yields many units from one task).
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.util.annotations import RayDeprecationWarning

from cxr_ray.calibration import Readout
from cxr_ray.pipeline.assignments import Assignment, unit_tables
from cxr_ray.pipeline.decode_unit import InputSettings
from cxr_ray.pipeline.parts import PartFooter, PartRecord, publish_part
from cxr_ray.pipeline.plan import Unit
from cxr_ray.pipeline.progress import reporter
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.pipeline.resources import Resources, device_model
from cxr_ray.pipeline.score_table import UNCALIBRATED
from cxr_ray.pipeline.score_unit import ScoresPixels, score_unit
from cxr_ray.shards import QUARANTINED

#: A worker that dies is replaced, and its unit tried again, this often; then the run ends (exit 1).
MAX_RESTARTS = 10
MAX_TASK_RETRIES = 3

ScorerFactory = Callable[[], ScoresPixels]


@dataclass(frozen=True, kw_only=True)
class Stages:
    """What the stages need; sent to the workers.

    Attributes:
        plan, output: publishers of the plan's folder and of OUTPUT.
        kind: ``scores`` or ``shards``.
        footer: of every part; unit, generation and device model are filled in per unit.
        device: ``cpu`` or ``cuda``, of the scorers.
        scorer: makes a scorer inside an actor; None for ingest.
        min_lung_fraction: see ``ScoreOptions``.
        readout: how the scores are calibrated and decided.
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


def to_row(unit: Unit, table: pa.Table, device: str | None = None) -> pa.Table:
    """One-row table: the unit's record, its table as an IPC stream, and the device that scored it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    payload = sink.getvalue()
    offsets = pa.py_buffer(pa.array([0, payload.size], pa.int64()).buffers()[1])
    column = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, payload])
    record = pa.array([json.dumps(asdict(unit))])
    return pa.table({"unit": record, "payload": column, "device": pa.array([device], pa.string())})


def from_rows(batch: pa.Table) -> Iterator[tuple[Unit, pa.Table]]:
    """Units and their tables, without copying the payload."""
    for record, payload in zip(batch.column("unit"), batch.column("payload"), strict=True):
        with pa.ipc.open_stream(payload.as_buffer()) as reader:
            yield Unit(**json.loads(record.as_py())), reader.read_all()


def read_stage(batch: pa.Table, *, stages: Stages, board: Any) -> Iterator[pa.Table]:
    """Assignments -> unit tables."""
    report = reporter(board)
    for text in batch.column("assignment").to_pylist():
        assignment = Assignment(units=tuple(Unit(**record) for record in json.loads(text)))
        for unit, table in unit_tables(assignment, stages.plan, stages.settings, report):
            yield to_row(unit, table)


class ScoreStage:
    """Unit tables -> scored units; one scorer per actor, built once."""

    def __init__(self, *, stages: Stages, board: Any) -> None:
        assert stages.scorer is not None
        self.scorer = stages.scorer()
        self.device = device_model(stages.device)
        self.settings: dict[str, Any] = {
            "min_lung_fraction": stages.min_lung_fraction,
            "readout": stages.readout,
        }
        self.report = reporter(board)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for unit, table in from_rows(batch):
            scored = score_unit(table, self.scorer, **self.settings, report=self.report)
            yield to_row(unit, scored, self.device)


def publish_stage(batch: pa.Table, *, stages: Stages, board: Any) -> Iterator[pa.Table]:
    """Finished units -> part files -> one record each."""
    report = reporter(board)
    devices = batch.column("device").to_pylist()
    for (unit, table), device in zip(from_rows(batch), devices, strict=True):
        footer = replace(
            stages.footer,
            unit_id=unit.unit_id,
            generation=unit.generation,
            device=device or stages.footer.device,
        )
        record = publish_part(stages.output, table, stages.kind, footer)
        if stages.scorer is None:  # otherwise the scorer has said so already
            report(QUARANTINED, record.quarantined)
        yield pa.table({"record": pa.array([json.dumps(asdict(record))])})


def run_assignments(
    assignments: Sequence[Assignment],
    stages: Stages,
    resources: Resources,
    *,
    board: Any = None,
    no_progress_seconds: float = 1800.0,
) -> Iterator[PartRecord]:
    """Run the graph over open units; yields a record per published part, as they are published."""
    # Our own lines replace its progress, and one sentence replaces its tracebacks (both stay in Ray's log files).
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1
    context.execution_no_progress_timeout_s = int(no_progress_seconds)
    arguments = {"stages": stages, "board": board}
    items = [
        {"assignment": json.dumps([asdict(unit) for unit in assignment.units])} for assignment in assignments
    ]
    units = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        read_stage,
        fn_kwargs=arguments,
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=resources.decode_cpus,
        compute=TaskPoolStrategy(size=min(resources.decode_tasks, len(items))),
    )
    if stages.scorer is not None:
        scorers = min(resources.actors, sum(len(assignment.units) for assignment in assignments))
        # Ray 2.60 has no other way to bound restarts (its default is to restart for ever) than the
        # keyword arguments that it announces to remove.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        units = units.map_batches(
            ScoreStage,
            fn_constructor_kwargs=arguments,
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ActorPoolStrategy(size=scorers),
            num_cpus=resources.actor_cpus,
            num_gpus=resources.actor_gpus or None,
            max_restarts=MAX_RESTARTS,
            max_task_retries=MAX_TASK_RETRIES,
        )
    records = units.map_batches(
        publish_stage,
        fn_kwargs=arguments,
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=resources.publish_cpus,
    )
    for batch in records.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for text in batch.column("record").to_pylist():
            yield PartRecord(**json.loads(text))
