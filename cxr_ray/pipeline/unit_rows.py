"""How units travel between the stages of the graph: one Ray row is one whole unit, or the news that it failed.

The unit's table is an Arrow IPC stream in a binary column. So Ray may merge or cut blocks as it likes: a unit
never comes apart, and the part that is published holds all of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import pyarrow as pa

from cxr_ray.pipeline.failures import UnitFailure
from cxr_ray.pipeline.plan import Unit


@dataclass(frozen=True, kw_only=True)
class Journey:
    """What is known of a unit's way so far; it ends in the part's footer.

    Attributes:
        seconds: wall time by stage, waiting between tries included.
        retries: new tries after failures, in all stages.
        device: model of the device that scored it.
        node: first digits of the Ray node id of the worker that scored it (for shards: that read it).
        micro_batch: images per network call, the smallest that was used; ``compute_batch`` unless the GPU's
            memory ran out.
        halvings: how often the scorer had halved it by then.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    retries: int = 0
    device: str | None = None
    node: str | None = None
    micro_batch: int | None = None
    halvings: int = 0


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A unit between two stages; ``table`` is None where ``failure`` says why."""

    unit: Unit
    table: pa.Table | None = None
    journey: Journey = field(default_factory=Journey)
    failure: UnitFailure | None = None


def to_row(passage: Passage) -> pa.Table:
    """One-row table of a passage."""
    return pa.table(
        {
            "unit": pa.array([json.dumps(asdict(passage.unit))]),
            "payload": _payload(passage.table),
            "journey": pa.array([json.dumps(asdict(passage.journey))]),
            "failure": pa.array([_optional(passage.failure)], pa.string()),
        }
    )


def from_rows(batch: pa.Table) -> Iterator[Passage]:
    """Passages of a batch, without copying a payload."""
    columns = [batch.column(name) for name in ("unit", "payload", "journey", "failure")]
    for record, payload, journey, failure in zip(*columns, strict=True):
        table = None
        if payload.is_valid:
            with pa.ipc.open_stream(payload.as_buffer()) as reader:
                table = reader.read_all()
        yield Passage(
            unit=Unit(**json.loads(record.as_py())),
            table=table,
            journey=Journey(**json.loads(journey.as_py())),
            failure=UnitFailure(**json.loads(failure.as_py())) if failure.is_valid else None,
        )


def _payload(table: pa.Table | None) -> pa.Array:
    if table is None:
        return pa.nulls(1, pa.large_binary())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    payload = sink.getvalue()
    offsets = pa.py_buffer(pa.array([0, payload.size], pa.int64()).buffers()[1])
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, payload])


def _optional(failure: UnitFailure | None) -> str | None:
    return None if failure is None else json.dumps(asdict(failure))
