"""The Ray Data graph: read and decode on tasks, score on actors, publish on tasks.

``target_max_block_size = 1`` makes every unit a block of its own, handed on as soon as it is ready (a tar.gz
yields many units from one task). Blocks pass in the order in which they become ready, so that a straggler
holds nothing but itself.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, ExecutionResources, TaskPoolStrategy
from ray.util.annotations import RayDeprecationWarning

from cxr_ray.pipeline.assignments import Assignment, make_tasks
from cxr_ray.pipeline.executor_state import RememberExecutor
from cxr_ray.pipeline.resources import Resources, bytes_in_flight
from cxr_ray.pipeline.stages import (
    UNITS_AT_A_TIME,
    Outcome,
    ScoreStage,
    Stages,
    outcomes_of,
    publish_stage,
    read_stage,
)

#: A worker that dies is replaced, and its units are tried again, this often (Ray's own default is for ever,
#: with which a unit that kills its worker never ends). Then the unit counts as failed.
MAX_RESTARTS = 10
MAX_TASK_RETRIES = 3

#: Units lost with their workers that one pass of the graph bears; more of them are no accident of single units.
MOST_LOST = 100

#: Share of the assignments that a read task takes, see ``make_tasks``.
TASK_WIDTH = 1000


def make_graph(
    assignments: Sequence[Assignment], stages: Stages, resources: Resources, board: Any
) -> Dataset:
    """The graph over open units, not yet running; its rows are those of ``outcome_row``."""
    count = sum(len(assignment.units) for assignment in assignments)
    largest = max(unit.images for assignment in assignments for unit in assignment.units)
    # Our own lines replace its progress, and one sentence replaces its tracebacks (both stay in Ray's log files).
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1
    # Ray sees blocks only, and a unit may take minutes to be one: the watchdog also counts images.
    context.execution_no_progress_timeout_s = -1
    context.max_errored_blocks = MOST_LOST
    context.custom_execution_callback_classes = [RememberExecutor]
    context.execution_options.preserve_order = False
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=float(bytes_in_flight(largest, resources))
    )
    arguments = {"stages": stages, "board": board}
    items = [
        {"assignments": json.dumps([[asdict(unit) for unit in one.units] for one in task])}
        for task in make_tasks(assignments, TASK_WIDTH)
    ]
    # Ray 2.60 has no other way to bound retries and restarts than the keyword arguments that it announces to
    # remove.
    warnings.simplefilter("ignore", RayDeprecationWarning)
    # Said where units were lost with their workers; which ones is in our own list.
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks", category=UserWarning)
    units = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        read_stage,
        fn_kwargs=arguments,
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=resources.decode_cpus,
        compute=TaskPoolStrategy(size=min(resources.decode_tasks, len(items))),
        max_retries=MAX_TASK_RETRIES,
    )
    if stages.scorer is not None:
        units = units.map_batches(
            ScoreStage,
            fn_constructor_kwargs=arguments,
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=actor_pool(resources, count),
            num_cpus=resources.actor_cpus,
            num_gpus=resources.actor_gpus or None,
            max_concurrency=UNITS_AT_A_TIME,
            max_restarts=MAX_RESTARTS,
            max_task_retries=MAX_TASK_RETRIES,
        )
    return units.map_batches(
        publish_stage,
        fn_kwargs=arguments,
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=resources.publish_cpus,
        compute=TaskPoolStrategy(size=min(resources.publish_tasks, count)),
        max_retries=MAX_TASK_RETRIES,
    )


def actor_pool(resources: Resources, units: int) -> ActorPoolStrategy:
    """A fixed pool of ``actors``, or one that grows from ``min_actors`` to it; never more than there are units."""
    most = min(resources.actors, units)
    if resources.min_actors is None or resources.min_actors >= most:
        return ActorPoolStrategy(size=most, max_tasks_in_flight_per_actor=UNITS_AT_A_TIME)
    # It grows where more units wait at the actors than they work at, so here some may.
    return ActorPoolStrategy(
        min_size=resources.min_actors, max_size=most, max_tasks_in_flight_per_actor=2 * UNITS_AT_A_TIME
    )


def run_graph(graph: Dataset) -> Iterator[Outcome]:
    """Run the graph; yields an outcome per unit as they come. Units whose workers died are missing."""
    for batch in graph.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from outcomes_of(batch)
