"""Rounds: failed units are tried again after the others, what is fatal ends the run, lost units are told of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import ray

from cxr_ray.errors import PublishConflict, RunFailed
from cxr_ray.pipeline import rounds
from cxr_ray.pipeline.failures import UnitFailure
from cxr_ray.pipeline.parts import PartRecord
from cxr_ray.pipeline.plan import Unit
from cxr_ray.pipeline.resources import share
from cxr_ray.pipeline.rounds import Patience, publish_units
from cxr_ray.pipeline.stages import Published
from cxr_ray.pipeline.summary import failure_sentence
from cxr_ray.pipeline.timings import Timings
from cxr_ray.pipeline.unit_rows import Journey
from cxr_ray.pipeline.watchdog import WorkersLost

RESOURCES = share(cpus=2, gpus=0, local=True, scoring=True, actors=None, decode_tasks=None)


def unit(name: str) -> Unit:
    return Unit(unit_id=name, generation=0, images=2, file="f", row_group=0, uri=None, kind="file")


def part(name: str) -> Published:
    record = PartRecord(unit_id=name, images=2, kept=2, quarantined=0, reasons={}, bytes=9, won=True)
    return Published(record=record, journey=Journey(seconds={"read": 1.0}))


def failed(name: str, **changes: Any) -> UnitFailure:
    values = {"unit_id": name, "stage": "read", "code": "storage", "reason": f"{name} has no storage"}
    return UnitFailure(**values | changes)


@dataclass
class Script:
    """Graphs that yield, or raise, what is written for each round."""

    passes: list[list[Any]]
    given: list[list[str]] = field(default_factory=list)

    @contextlib.contextmanager
    def __call__(self, assignments: Any, stages: Any, resources: Any, board: Any) -> Iterator[Any]:
        self.given.append([unit.unit_id for one in assignments for unit in one.units])
        script = self.passes.pop(0)

        def outcomes(check: Any) -> Iterator[Any]:
            for item in script:
                if isinstance(item, Exception):
                    raise item
                yield item

        yield outcomes


@dataclass
class Told:
    """What a run said, and how long it waited."""

    lines: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    timings: Timings = field(default_factory=Timings)


def publish(monkeypatch: pytest.MonkeyPatch, script: Script, names: str, count: int = 2) -> tuple[Any, Told]:
    told = Told()
    monkeypatch.setattr(rounds, "_outcomes", script)
    failures = publish_units(
        [unit(name) for name in names], None, RESOURCES, Patience(rounds=count),  # type: ignore[arg-type]
        say=told.lines.append, timings=told.timings, wait=told.waits.append,
    )  # fmt: skip
    return failures, told


def test_failed_units_are_tried_again_after_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([[part("a"), failed("b"), part("c")], [part("b")]])
    failures, told = publish(monkeypatch, script, "abc")
    assert failures == []
    assert script.given == [["a", "b", "c"], ["b"]]
    assert told.timings.units == 3
    assert len(told.waits) == 1
    assert 5 <= told.waits[0] <= 15
    assert "unit b was not published: b has no storage; the others go on" in told.lines
    assert any(line.startswith("round 2 of 2: trying 1 unit again") for line in told.lines)


def test_what_keeps_failing_is_returned_in_plan_order(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([[failed("c"), part("b"), failed("a")], [failed("c"), failed("a", reason="no luck")]])
    failures, _ = publish(monkeypatch, script, "abc")
    assert [(failure.unit_id, failure.reason) for failure in failures] == [
        ("a", "no luck"),
        ("c", "c has no storage"),
    ]
    sentence = failure_sentence(failures, "attempt-1")
    assert "2 units were not published (a, c), because no luck; c has no storage" in sentence
    assert "runs/attempt-1.json" in sentence


def test_a_unit_whose_worker_died_is_no_silent_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    failures, told = publish(monkeypatch, Script([[part("a")], []]), "ab")
    assert [(failure.unit_id, failure.code) for failure in failures] == [("b", "worker_died")]
    assert any("its worker died again and again" in line for line in told.lines)


def test_dead_actors_and_raylets_end_the_round_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    died = ray.exceptions.ActorDiedError()
    script = Script([[part("a"), died], [part("b"), WorkersLost("every worker died")], [part("c")]])
    failures, told = publish(monkeypatch, script, "abc", count=3)
    assert failures == []
    assert script.given == [["a", "b", "c"], ["b", "c"], ["c"]]
    assert sum("the round is broken off" in line for line in told.lines) == 2


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"code": "internal", "reason": "KeyError: 'x'"}, RunFailed, r"a worker failed \(KeyError: 'x'\)"),
        ({"code": "publish_conflict", "reason": "taken"}, PublishConflict, "taken"),
        ({"code": "usage", "reason": "torch sees no GPU"}, RunFailed, "the run stopped: torch sees no GPU"),
    ],
)
def test_what_is_fatal_ends_the_run_at_once(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], kind: type[Exception], words: str
) -> None:
    script = Script([[part("a"), failed("b", fatal=True, **changes), part("c")], []])
    with pytest.raises(kind, match=words):
        publish(monkeypatch, script, "abc")
    assert len(script.given) == 1


def test_an_error_of_our_own_code_is_not_taken_for_an_accident(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = ray.exceptions.RayTaskError("read", "trace", ValueError("ours"))
    for error in (wrapped, ZeroDivisionError("ours")):
        with pytest.raises(type(error)):
            publish(monkeypatch, Script([[error], []]), "ab")


def test_when_everything_fails_the_round_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"u{n:03d}" for n in range(200)]
    told = Told()
    monkeypatch.setattr(rounds, "_outcomes", Script([[failed(name) for name in names]]))
    failures = publish_units(
        [unit(name) for name in names], None, RESOURCES, Patience(rounds=1),  # type: ignore[arg-type]
        say=told.lines.append, timings=told.timings, wait=told.waits.append,
    )  # fmt: skip
    assert len(failures) == 200
    tried = [failure for failure in failures if failure.code == "storage"]
    assert len(tried) == max(32, 4 * (RESOURCES.decode_tasks + RESOURCES.actors))
    assert len(told.lines) < 12
    assert any("failed in a row" in line for line in told.lines)


def test_timings_name_the_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    timings = Timings()
    for number in range(100):
        record = part(f"u{number:03d}").record
        seconds = {"read": 1.0, "score": 50.0 if number == 7 else 2.0}
        timings.add(
            record, Journey(seconds=seconds, node="a" if number % 2 else "b", micro_batch=64, retries=1)
        )
    found = timings.summary()
    assert (found["units"], found["images"], found["retries"], found["micro_batches"]) == (
        100,
        200,
        100,
        [64],
    )
    assert found["stages"]["read"] == {"median": 1.0, "p95": 1.0, "total": 100.0}
    assert found["stages"]["score"]["median"] == 2.0
    assert found["slowest_units"][0]["unit_id"] == "u007"
    assert len(found["slowest_units"]) == 10
    assert found["nodes"]["a"] == {"units": 50, "images": 100, "seconds": 198.0}
