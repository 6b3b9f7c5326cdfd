"""Ends a run that makes no progress, with the state of its operators, instead of letting it hang.

Ray's own guard looks at blocks only: a unit of 1,000 images may be one for many minutes on a slow CPU, and an
actor that restarts for ever is no block either. This one looks at blocks *and* images. Images are counted up to
what is planned, so that a unit which is read again and again and never done does not look like progress.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from cxr_ray.errors import RunFailed
from cxr_ray.pipeline import executor_state
from cxr_ray.pipeline.decode_unit import DECODE_AGAIN, DECODED
from cxr_ray.pipeline.progress import RETRIED
from cxr_ray.pipeline.score_unit import DONE

_COUNTED = (DECODED, DONE)


class WorkersLost(RunFailed):
    """Every actor of a stage died too often: this pass of the graph cannot go on, another with new ones can."""


class Watchdog:
    """Call ``check`` every second or so.

    Args:
        seconds: how long nothing may change.
        images: planned images that this run works on.
        board: counts of the workers, asked without waiting.
    """

    def __init__(
        self,
        seconds: float,
        *,
        images: int,
        board: Any = None,
        blocks: Callable[[], list[Any]] = executor_state.operator_states,
        describe: Callable[[], str] = executor_state.describe,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._images = images
        self._board = board
        self._blocks, self._describe, self._clock = blocks, describe, clock
        self._answer: Any = None
        self._counts: dict[str, int] = {}
        self._records = 0
        self._last: object = None
        self._since = clock()

    def saw_record(self) -> None:
        """A unit came out of the graph."""
        self._records += 1

    def check(self) -> None:
        """Raises RunFailed when nothing has changed for too long, WorkersLost when nothing can change any more."""
        states = self._blocks()
        for state in states:
            if state.all_dead:
                raise WorkersLost(
                    f"every worker of the stage {state.stage} died too often ({self._describe()})"
                )
        now = self._clock()
        current = (
            self._records,
            [(state.outputs, state.queued) for state in states],
            self._image_counts(),
        )
        if current != self._last:
            self._last, self._since = current, now
        elif now - self._since >= self._seconds:
            raise RunFailed(
                f"no progress for {now - self._since:.0f} s, so the run ends ({self._describe()}); nothing is lost: "
                "see docs/how-to/watch-a-run.md for what to look at, then run the same command again"
            )

    def _image_counts(self) -> dict[str, int]:
        """Images by stage as last heard of; asks again without waiting for the answer."""
        if self._board is None:
            return {}
        if self._answer is None:
            self._answer = self._board.read.remote()
        ready, _ = ray.wait([self._answer], timeout=0)
        if ready:
            try:
                counts = ray.get(self._answer)
                self._counts = {name: min(counts.get(name, 0), self._images) for name in _COUNTED}
                self._counts |= {name: counts.get(name, 0) for name in (RETRIED, DECODE_AGAIN)}
            except ray.exceptions.RayError:
                pass  # the board is restarting: keep what it said last
            self._answer = None
        return self._counts
