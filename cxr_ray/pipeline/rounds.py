"""Rounds over the graph until every open unit has its part, or trying again has not helped.

A failing unit never ends the graph: the others go on, and those that failed are tried again in another round.
What still fails is listed and left unpublished for the next run of the same command.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from cxr_ray.errors import PublishConflict, RunFailed
from cxr_ray.pipeline import executor_state
from cxr_ray.pipeline.assignments import Assignment, make_assignments
from cxr_ray.pipeline.failures import READ, WORKER_DIED, UnitFailure, pause_before, reason_of
from cxr_ray.pipeline.plan import Unit, counted_units
from cxr_ray.pipeline.resources import Resources
from cxr_ray.pipeline.stages import Outcome, Published, Stages
from cxr_ray.pipeline.stream import make_graph, run_graph
from cxr_ray.pipeline.timings import Timings
from cxr_ray.pipeline.watchdog import Watchdog, WorkersLost

#: Failures of single units that are printed as they come; the rest is counted at the end of the round.
_SHOWN = 5

_LOST = "its worker died again and again (killed, out of memory, or its node is gone)"

#: Outcomes that wait for the driver; it only counts, so they hardly ever do.
_QUEUE = 256


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a run keeps trying.

    Attributes:
        rounds: passes over what is open, at least one.
        no_progress_seconds: see ``Watchdog``.
    """

    rounds: int = 2
    no_progress_seconds: float = 600.0


def publish_units(
    units: Iterable[Unit],
    stages: Stages,
    resources: Resources,
    patience: Patience,
    *,
    say: Callable[[str], None],
    timings: Timings,
    board: Any = None,
    wait: Callable[[float], None] = time.sleep,
) -> list[UnitFailure]:
    """Publish every unit; returns what failed in the last round, in plan order.

    Raises:
        PublishConflict: OUTPUT holds a part of another identity.
        RunFailed: a fault that trying again cannot mend, or no progress for too long.
    """
    left = {unit.unit_id: unit for unit in units}
    failures: dict[str, UnitFailure] = {}
    for number in range(1, patience.rounds + 1):
        if number > 1:
            pause = 10 * pause_before(1)
            say(
                f"round {number} of {patience.rounds}: trying {counted_units(len(left))} again in {pause:.0f} s"
            )
            wait(pause)
        one = Round(left, stages, resources, patience, say=say, timings=timings, board=board)
        failures = one.run()
        if not left:
            break
    return [failures[unit_id] for unit_id in left]


class Round:
    """One pass of the graph over ``left``, from which published units are taken out."""

    def __init__(
        self,
        left: dict[str, Unit],
        stages: Stages,
        resources: Resources,
        patience: Patience,
        *,
        say: Callable[[str], None],
        timings: Timings,
        board: Any = None,
    ) -> None:
        self._left = left
        self._stages, self._resources, self._patience = stages, resources, patience
        self._say, self._timings, self._board = say, timings, board
        self._failures: dict[str, UnitFailure] = {}
        self._in_a_row = 0
        # When so many units fail one after another, the storage itself is away: trying the other thousands, each
        # with all its retries, would take hours and prove nothing new.
        self._most_in_a_row = max(32, 4 * (resources.decode_tasks + resources.actors))

    def run(self) -> dict[str, UnitFailure]:
        """Failures by unit id, one for every unit that is left."""
        rest = _LOST
        watchdog = Watchdog(
            self._patience.no_progress_seconds,
            images=sum(unit.images for unit in self._left.values()),
            board=self._board,
        )
        assignments = make_assignments(list(self._left.values()))
        try:
            with _outcomes(assignments, self._stages, self._resources, self._board) as outcomes:
                for outcome in outcomes(watchdog.check):
                    watchdog.saw_record()
                    self._take(outcome)
                    if self._in_a_row >= self._most_in_a_row:
                        rest = self._broken_off(f"{self._in_a_row} units failed in a row")
                        break
        except WorkersLost as error:
            rest = self._broken_off(str(error))
        except Exception as error:
            if not _is_accident(error):
                raise
            rest = self._broken_off(reason_of(_root_cause(error)))
        for unit_id in self._left:
            if unit_id not in self._failures:
                failure = UnitFailure(unit_id=unit_id, stage=READ, code=WORKER_DIED, reason=rest)
                self._note(failure)
        hidden = len(self._failures) - _SHOWN
        if hidden > 0:
            self._say(f"{hidden:,} more units were not published in this round")
        return self._failures

    def _broken_off(self, why: str) -> str:
        self._say(f"the round is broken off: {why}")
        return f"not reached, since the round was broken off: {why}"

    def _take(self, outcome: Outcome) -> None:
        if isinstance(outcome, Published):
            self._in_a_row = 0
            # A unit that was lost on the way to us, and done again, may come twice.
            if self._left.pop(outcome.record.unit_id, None) is not None:
                self._timings.add(outcome.record, outcome.journey)
            self._failures.pop(outcome.record.unit_id, None)
        elif outcome.fatal:
            _raise_fatal(outcome)
        else:
            self._in_a_row += 1
            self._note(outcome)

    def _note(self, failure: UnitFailure) -> None:
        self._failures[failure.unit_id] = failure
        if len(self._failures) <= _SHOWN:
            self._say(f"unit {failure.unit_id} was not published: {failure.reason}; the others go on")


@contextmanager
def _outcomes(
    assignments: Sequence[Assignment], stages: Stages, resources: Resources, board: Any
) -> Iterator[Callable[[Callable[[], None]], Iterator[Outcome]]]:
    """Run the graph in a thread of its own, so that a graph that hangs cannot hang its watcher."""
    found: queue.Queue[Outcome | BaseException | None] = queue.Queue(_QUEUE)
    stopped = threading.Event()

    def put(item: Outcome | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return found.put(item, timeout=1.0)
            except queue.Full:
                continue

    def consume() -> None:
        try:
            for outcome in run_graph(graph):
                put(outcome)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # raised again by whoever waits for outcomes
            put(error)

    def outcomes(check: Callable[[], None]) -> Iterator[Outcome]:
        while True:
            try:
                item = found.get(timeout=1.0)
            except queue.Empty:
                check()
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    graph = make_graph(assignments, stages, resources, board)
    thread = threading.Thread(target=consume, name="graph", daemon=True)
    thread.start()
    try:
        yield outcomes
    finally:
        stopped.set()
        if thread.is_alive():
            executor_state.stop()
            thread.join(timeout=10)


def _raise_fatal(failure: UnitFailure) -> None:
    sentence = f"the run stopped: {failure.reason}; nothing is lost, run the same command again"
    if failure.code == PublishConflict.code:
        raise PublishConflict(failure.reason)
    if failure.code == "internal":
        sentence = f"the run stopped: a worker failed ({failure.reason}); nothing is lost, run the same command again"
    raise RunFailed(sentence)


def _is_accident(error: BaseException) -> bool:
    """Whether Ray ended the graph because of dead workers and the like, not because of an error of our code."""
    cause = _root_cause(error)
    return isinstance(cause, ray.exceptions.RayError) and not isinstance(cause, ray.exceptions.RayTaskError)


def _root_cause(error: BaseException) -> BaseException:
    """The innermost cause; Ray wraps a worker's exception in several layers, one of them of its own class."""
    seen = error
    while True:
        inner = getattr(seen, "cause", None) or seen.__cause__
        if not isinstance(inner, BaseException) or inner is seen:
            return seen
        seen = inner
