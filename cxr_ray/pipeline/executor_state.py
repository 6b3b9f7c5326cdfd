"""What Ray Data's executor is doing, in words: for the error of a run that makes no progress.

Ray offers this to its own log files only. So this module looks where the executor keeps it, which is private to
Ray (2.60, as pinned) and may move: whatever is not found is left out of the words, and a test notices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback

_STAGES = {"read_stage": "read", "ScoreStage": "score", "publish_stage": "publish"}


class RememberExecutor(ExecutionCallback):
    """Keeps the executor of the graph that runs in this process. Named to Ray as a class, because the settings
    that carry it also travel to the workers."""

    running: ClassVar[Any] = None

    def before_execution_starts(self, executor: Any) -> None:
        RememberExecutor.running = executor

    def after_execution_succeeds(self, executor: Any) -> None:
        RememberExecutor.running = None

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        RememberExecutor.running = None


@dataclass(frozen=True, kw_only=True)
class OperatorState:
    """One stage of a running graph.

    Attributes:
        tasks: running or submitted.
        queued: units (blocks) that wait to be its input.
        outputs: blocks that it has handed on so far.
        alive, pending, restarting, dead: its actors; all zero for tasks.
        held_by: Ray's name for what keeps it from starting more, if anything does.
        shape: resources that one of its tasks or actors takes.
    """

    stage: str
    tasks: int
    queued: int
    outputs: int
    completed: bool = False
    alive: int = 0
    pending: int = 0
    restarting: int = 0
    dead: int = 0
    held_by: str = ""
    shape: str = ""

    @property
    def all_dead(self) -> bool:
        """Whether work is left and none of its actors is, or will be, there to do it."""
        return bool(self.dead) and not (self.completed or self.alive or self.pending or self.restarting)

    @property
    def waits_for(self) -> str:
        """What would have to happen next."""
        if self.completed:
            return "done"
        if self.all_dead:
            return "nobody: every actor died too often"
        if self.alive == 0 and (self.pending or self.restarting):
            return f"its actors to start ({self.shape} each)"
        if self.tasks:
            return "its running tasks"
        if not self.queued:
            return "input"
        return f"room ({self.held_by})" if self.held_by else f"free resources ({self.shape} a task)"

    def __str__(self) -> str:
        actors = ""
        if self.alive or self.pending or self.restarting or self.dead:
            actors = f"actors {self.alive} alive, {self.pending} pending, {self.restarting} restarting, "
            actors += f"{self.dead} dead, "
        return (
            f"{self.stage}: {actors}{self.tasks} tasks active, {self.queued} blocks queued, {self.outputs} done, "
            f"waits for {self.waits_for}"
        )


def operator_states() -> list[OperatorState]:
    """The stages of the running graph in order; empty where none runs."""
    executor = RememberExecutor.running
    topology = getattr(executor, "_topology", None) or {}
    return [
        _state(operator, state) for operator, state in list(topology.items())[1:]
    ]  # the first is the input


def describe() -> str:
    """The state of the running graph and the free resources, in one line."""
    stages = "; ".join(str(state) for state in operator_states()) or "the graph's state is not known"
    free = ray.available_resources()
    return f"{stages}; free: {free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU"


def stop() -> None:
    """End the running graph without waiting for its tasks."""
    executor = RememberExecutor.running
    if executor is not None:
        executor.shutdown(force=True)


def _state(operator: Any, state: Any) -> OperatorState:
    name = str(operator.name)
    pool = getattr(operator, "_actor_pool", None)
    dead = pending = restarting = running = 0
    if pool is not None:
        info = operator.get_actor_info()
        dead = sum(_is_dead(actor) for actor in list(getattr(pool, "_running_actors", ())))
        running, pending, restarting = info.running, info.pending, info.restarting
    held = getattr(operator, "_in_task_submission_backpressure", False)
    arguments = getattr(operator, "_ray_remote_args", None) or {}
    shape = [f"{arguments.get('num_cpus') or 0:g} CPU"]
    shape += [f"{arguments['num_gpus']:g} GPU"] if arguments.get("num_gpus") else []
    return OperatorState(
        stage=next((stage for key, stage in _STAGES.items() if key in name), name),
        tasks=operator.num_active_tasks(),
        queued=state.total_enqueued_input_blocks(),
        outputs=operator.metrics.num_outputs_taken,
        completed=operator.has_completed(),
        alive=running - restarting - dead,
        pending=pending,
        restarting=restarting,
        dead=dead,
        held_by=str(getattr(operator, "_task_submission_backpressure_policy", "") or "") if held else "",
        shape=" and ".join(shape),
    )


def _is_dead(actor: Any) -> bool:
    from ray.core.generated import gcs_pb2

    return actor._get_local_state() == gcs_pb2.ActorTableData.ActorState.DEAD
