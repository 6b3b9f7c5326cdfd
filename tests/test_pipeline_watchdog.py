"""The watchdog: blocks and images are progress, reading the same again is none; what it says names the stages."""

from __future__ import annotations

import re
from typing import Any

import pytest

from cxr_ray.errors import RunFailed
from cxr_ray.pipeline.executor_state import OperatorState
from cxr_ray.pipeline.watchdog import Watchdog, WorkersLost


class Run:
    """A made run: a clock, one stage, and counts of images."""

    def __init__(self, seconds: float = 100.0) -> None:
        self.now = 0.0
        self.state: dict[str, Any] = {"stage": "score", "tasks": 1, "queued": 0, "outputs": 0, "alive": 1}
        self.counts: dict[str, int] = {}
        self.dog = Watchdog(
            seconds,
            images=10,
            blocks=lambda: [OperatorState(**self.state)],
            describe=lambda: str(OperatorState(**self.state)),
            clock=lambda: self.now,
        )
        self.dog._image_counts = self._image_counts  # type: ignore[method-assign]

    def _image_counts(self) -> dict[str, int]:
        return {name: min(count, 10) for name, count in self.counts.items()}

    def after(self, seconds: float) -> None:
        self.now += seconds
        self.dog.check()


def test_nothing_for_too_long_ends_the_run_with_the_state() -> None:
    run = Run()
    run.after(0)
    run.after(99)
    with pytest.raises(
        RunFailed, match=r"no progress for 101 s.*score: actors 1 alive.*waits for its running"
    ):
        run.after(2)


def test_images_within_a_unit_are_progress_but_reading_again_for_ever_is_none() -> None:
    run = Run()
    for count in range(1, 11):
        run.counts["decoded"] = count
        run.after(90)
    run.counts["decoded"] = 50
    run.after(90)
    with pytest.raises(RunFailed, match="no progress"):
        run.after(90)


def test_blocks_and_published_units_are_progress() -> None:
    run = Run()
    for number in range(1, 6):
        if number % 2:
            run.state["outputs"] = number
        else:
            run.dog.saw_record()
        run.after(90)


def test_a_stage_without_any_actor_left_ends_the_round_at_once() -> None:
    run = Run()
    run.state |= {"alive": 0, "dead": 2, "tasks": 0, "queued": 3}
    with pytest.raises(WorkersLost, match="every worker of the stage score died too often"):
        run.after(1)
    run.state["completed"] = True
    run.after(1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"alive": 0, "pending": 2, "tasks": 0, "shape": "1 CPU and 1 GPU"},
            r"its actors to start \(1 CPU and 1 GPU",
        ),
        ({"alive": 0, "restarting": 1, "shape": "1 CPU"}, "its actors to start"),
        ({"tasks": 0}, "input"),
        ({"tasks": 0, "queued": 4, "shape": "0.5 CPU"}, r"free resources \(0.5 CPU a task\)"),
        ({"tasks": 0, "queued": 4, "held_by": "ResourceBudget"}, r"room \(ResourceBudget\)"),
        ({"alive": 0, "dead": 1, "tasks": 0}, "every actor died too often"),
        ({"completed": True}, "done"),
    ],
)
def test_the_state_says_what_a_stage_waits_for(changes: dict[str, Any], words: str) -> None:
    state = {"stage": "score", "tasks": 1, "queued": 0, "outputs": 0, "alive": 1} | changes
    assert re.search(f"waits for .*{words}", str(OperatorState(**state)))
