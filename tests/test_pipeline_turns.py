"""Turns at the scorer: what killed an actor goes after what was lost beside it."""

from __future__ import annotations

import threading
import time
from unittest.mock import MagicMock

import pytest
import ray

from cxr_ray.pipeline.turns import Casualties, Turns


def test_a_scorer_that_starts_again_died_over_the_unit_it_was_at() -> None:
    record = Casualties()
    assert record.arrive("a") == {}
    record.enter("a", "u0")
    record.leave("a", "u0")
    assert record.arrive("a") == {}
    record.enter("a", "u1")
    assert record.arrive("b") == {}  # another actor, and "a" may be well
    assert record.arrive("a") == {"u1": 1}
    record.enter("b", "u1")
    assert record.arrive("b") == {"u1": 2}
    assert record.arrive("c") == {"u1": 2}  # one of a later round


def test_a_late_farewell_is_not_that_of_the_next_unit() -> None:
    record = Casualties()
    record.enter("a", "u0")
    record.enter("a", "u1")
    record.leave("a", "u0")
    assert record.arrive("a") == {"u1": 1}


def test_a_suspect_waits_for_those_less_suspect_and_for_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(pause=0.2)
    monkeypatch.setattr(turns, "_deaths", {"killer": 2, "once": 1})
    order: list[str] = []

    def pass_through(unit_id: str, after: float, prepare: float = 0.0) -> None:
        time.sleep(after)
        with turns.presence(unit_id):
            time.sleep(prepare)
            with turns.turn(unit_id):
                order.append(unit_id)

    calls = [("killer", 0.0, 0.0), ("once", 0.05, 0.0), ("innocent", 0.1, 0.3), ("late", 1.2, 0.0)]
    threads = [threading.Thread(target=pass_through, args=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert order == ["innocent", "once", "killer", "late"]


def test_a_record_that_is_away_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def no_answer(call: object, timeout: float) -> None:
        asked.append(call)
        raise ray.exceptions.GetTimeoutError

    board = MagicMock()
    monkeypatch.setattr(ray, "get", no_answer)
    monkeypatch.setattr(ray, "get_runtime_context", MagicMock())
    turns = Turns(board)
    for unit_id in ("u0", "u1"):
        with turns.presence(unit_id), turns.turn(unit_id):
            pass
    assert len(asked) == 1
