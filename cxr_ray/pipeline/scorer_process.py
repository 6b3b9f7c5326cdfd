"""Processes that score: the environment they need, and how fast several of them are side by side on this machine."""

from __future__ import annotations

import multiprocessing
import os
import queue
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cxr_ray.errors import MeasurementFailed
from cxr_ray.preprocess import COLUMNS, ROWS

#: glibc returns every large block to the kernel on each call; keeping them makes Module 1 several times faster on CPU
#: (REFERENCE_SPEC section 15). One BLAS thread per worker: the scorer sets its own number.
WORKER_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
}

SECONDS = 2.0

#: A process imports torch and builds its network within this; many start at once.
_START_SECONDS = 300.0

_SEED = 0


class _Scores(Protocol):
    @property
    def compute_batch(self) -> int: ...

    def score(self, pixels_BHW: np.ndarray) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class BundleScorer:
    """Picklable factory of a ``Scorer`` as jobs use it: ``weights`` as for ``load_bundle``, and its torch device."""

    weights: str
    device: str = "cpu"

    def __call__(self) -> Any:
        from cxr_ray.scorer import Scorer
        from cxr_ray.weights import load_bundle

        return Scorer(load_bundle(self.weights), device=self.device, full_maps=False)


def scoring_rate(factory: Callable[[], _Scores], processes: int = 1, seconds: float = SECONDS) -> float:
    """Images per second of ``processes`` scorers together, each in a process of its own, scoring noise.

    What an image shows makes no difference to the time. The start of the processes is not counted.

    Args:
        factory: picklable; makes the scorer inside a process.

    Raises:
        MeasurementFailed: a process ended, or was not ready in time.
    """
    context = multiprocessing.get_context("spawn")
    ready, answers = context.Queue(), context.Queue()
    begin = context.Event()
    arguments = (factory, seconds, ready, begin, answers)
    team = [context.Process(target=_score_for, args=arguments, daemon=True) for _ in range(processes)]
    try:
        with environment(WORKER_ENVIRONMENT):
            for process in team:
                process.start()
        for _ in team:
            _wait_for(ready, team, _START_SECONDS)
        begin.set()
        return float(sum(_wait_for(answers, team, 60 + 20 * seconds) for _ in team))
    finally:
        for process in team:
            process.terminate()
        for process in team:
            process.join()


def _score_for(factory: Callable[[], _Scores], seconds: float, ready: Any, begin: Any, answers: Any) -> None:
    scorer = factory()
    noise = np.random.default_rng(_SEED).integers(0, 256, (scorer.compute_batch, ROWS, COLUMNS), np.uint8)
    scorer.score(noise)
    ready.put(True)
    begin.wait()
    start, done = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        scorer.score(noise)
        done += len(noise)
    answers.put(done / (time.monotonic() - start))


def _wait_for(answers: Any, team: list[Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            return answers.get(timeout=0.5)
        except queue.Empty:
            if any(process.exitcode for process in team):
                raise MeasurementFailed(
                    "a scorer that was to be measured ended; what it said is above"
                ) from None
    raise MeasurementFailed(f"a scorer that was to be measured did not answer within {seconds:.0f} s")


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """``values`` in the environment, for what is started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
