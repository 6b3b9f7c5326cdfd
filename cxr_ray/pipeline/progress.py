"""Progress lines: images done, images/s, quarantined, time left, every few seconds.

Workers send counts to the run's board; the driver's thread asks it and prints. Counts are for the eyes
only: a unit whose worker died is counted again, and the summary is taken from the parts instead.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any, TextIO

import ray

from cxr_ray.pipeline.decode_unit import DECODED, Report, no_report
from cxr_ray.pipeline.failures import READ, SCORE
from cxr_ray.pipeline.plan import counted_units
from cxr_ray.pipeline.score_unit import DONE
from cxr_ray.shards import QUARANTINED

if TYPE_CHECKING:
    from cxr_ray.pipeline.metrics import RunMetrics

#: Units that a worker tries again, as the board counts them.
RETRIED = "retried"

_METRIC_STAGES = {DECODED: READ, DONE: SCORE}


def reporter(board: Any, metrics: RunMetrics | None = None) -> Report:
    """A ``Report`` that sends to the board and to the metrics without waiting; a no-op without both."""
    if board is None and metrics is None:
        return no_report

    def report(stage: str, images: int) -> None:
        if board is not None and images:
            board.add.remote(stage, images)
        if metrics is not None and images > 0 and stage in _METRIC_STAGES:
            metrics.images(_METRIC_STAGES[stage], images)

    return report


def progress_line(*, done: int, total: int, quarantined: int, seconds: float, before: int = 0) -> str:
    """One line. ``before``: images that earlier runs finished, not part of the rate."""
    rate = done / seconds if seconds > 0 else 0.0
    left = "--:--:--" if rate <= 0 else _clock((total - before - done) / rate)
    return (
        f"{before + done:,} of {total:,} images | {rate:,.1f} images/s | "
        f"{quarantined:,} quarantined | {left} left"
    )


def _clock(seconds: float) -> str:
    whole = max(0, round(seconds))
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class ProgressPrinter:
    """Prints a line every ``every`` seconds until closed.

    Args:
        total: planned images of the table.
        before: of these, published by earlier runs.
        done_stage: the stage whose count is "done" (``done`` when scoring, ``decoded`` for ingest).
    """

    def __init__(
        self,
        board: Any,
        *,
        total: int,
        before: int,
        scoring: bool,
        every: float,
        stream: TextIO | None = None,
    ) -> None:
        self._board = board
        self._total = total
        self._before = before
        self._stage = DONE if scoring else DECODED
        self._every = every
        self._stream = stream or sys.stdout
        self._start = time.monotonic()
        self._retried = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> ProgressPrinter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            try:
                counts = ray.get(self._board.read.remote(), timeout=self._every)
            except (ray.exceptions.RayError, TimeoutError):
                continue  # the board is restarting or busy; the next line will tell
            self._say_retried(counts.get(RETRIED, 0))
            done = min(counts.get(self._stage, 0), self._total - self._before)
            line = progress_line(
                done=done,
                total=self._total,
                before=self._before,
                quarantined=counts.get(QUARANTINED, 0),
                seconds=time.monotonic() - self._start,
            )
            print(line, file=self._stream, flush=True)

    def _say_retried(self, retried: int) -> None:
        new = retried - self._retried
        if new > 0:
            print(
                f"tried again: {counted_units(new)}, after failures that may pass",
                file=self._stream,
                flush=True,
            )
        self._retried = retried
