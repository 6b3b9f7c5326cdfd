"""Whose turn it is at the scorer of an actor, so that a unit that kills the actor takes no other with it.

An actor that dies loses every unit in it, and each loss costs a unit one of its few tries. So the unit that was at
the scorer is written down outside of the actor, and when it comes back it goes after those that were lost beside
it: once these are done, it can only harm itself and who came later, and each of these at most once.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

#: Seconds in which the units of an actor that died come back to it, and in which a finished one has left it.
PAUSE = 1.0

#: Seconds that the record may take to answer, and for which an actor goes on without it where it does not.
_PATIENCE = 5.0
_WITHOUT = 60.0


class Casualties:
    """Which unit is at which scorer, and how many scorers died over each; kept on the run's board."""

    def __init__(self) -> None:
        self._at_scorer: dict[str, str] = {}
        self._deaths: Counter[str] = Counter()

    def arrive(self, actor: str) -> dict[str, int]:
        """A scorer starts; if it lived before, it died over the unit it was at. Returns deaths by unit."""
        unit_id = self._at_scorer.pop(actor, None)
        if unit_id is not None:
            self._deaths[unit_id] += 1
        return dict(self._deaths)

    def enter(self, actor: str, unit_id: str) -> None:
        """A unit goes to the scorer."""
        self._at_scorer[actor] = unit_id

    def leave(self, actor: str, unit_id: str) -> None:
        """It has come away alive."""
        if self._at_scorer.get(actor) == unit_id:
            del self._at_scorer[actor]


class Turns:
    """The turns of one actor's units.

    Args:
        board: handle of the actor that keeps the ``Casualties``; None: nothing is written down.
    """

    def __init__(self, board: Any = None, *, pause: float = PAUSE) -> None:
        self._board, self._pause = board, pause
        self._without_until = 0.0
        self._actor = ray.get_runtime_context().get_actor_id() if board is not None else None
        self._deaths: Mapping[str, int] = self._ask("arrive") or {}
        self._scorer = threading.Lock()
        self._present: set[str] = set()
        self._left = threading.Condition()

    @contextmanager
    def presence(self, unit_id: str) -> Iterator[None]:
        """While a unit is in the actor; also while it is prepared and packed."""
        with self._left:
            self._present.add(unit_id)
        try:
            yield
        finally:
            with self._left:
                self._present.discard(unit_id)
                self._left.notify_all()

    @contextmanager
    def turn(self, unit_id: str) -> Iterator[None]:
        """While a unit has the scorer to itself."""
        if self._deaths.get(unit_id):
            self._let_others_go_first(unit_id)
        with self._scorer:
            self._ask("enter", unit_id)
            try:
                yield
            finally:  # an exception is no death either
                if self._board is not None:
                    self._board.leave.remote(self._actor, unit_id)

    def _let_others_go_first(self, unit_id: str) -> None:
        time.sleep(self._pause)
        with self._left:
            less_suspect = {
                other for other in self._present if self._deaths.get(other, 0) < self._deaths[unit_id]
            }
            self._left.wait_for(lambda: not less_suspect & self._present)
        time.sleep(self._pause)

    def _ask(self, method: str, *arguments: str) -> Any:
        """The record's answer: it must have the unit before the scorer has it."""
        if self._board is None or time.monotonic() < self._without_until:
            return None
        try:
            call = getattr(self._board, method).remote(self._actor, *arguments)
            return ray.get(call, timeout=_PATIENCE)
        except (ray.exceptions.RayError, TimeoutError):
            # The record is away or slow: meanwhile a death may cost a neighbour one of its tries.
            self._without_until = time.monotonic() + _WITHOUT
            return None
