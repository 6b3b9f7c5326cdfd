"""Run requests in threads, in order, with a bound on their number and on the bytes they hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_IN_FLIGHT_BYTES = 128 << 20

T = TypeVar("T")


def in_order(jobs: Iterable[tuple[int, Callable[[], T]]], in_flight: int) -> Iterator[T]:
    """Yield the result of each (bytes, job) pair in order, while the next ones already run.

    At most ``in_flight`` jobs run or wait to be yielded, and together they hold about 128 MiB unless one
    alone holds more. ``jobs`` is consumed no faster than that. What a job raises is raised in its turn.
    """
    waiting: deque[tuple[int, Future[T]]] = deque()
    held = 0
    with ThreadPoolExecutor(in_flight, "archive") as pool:
        try:
            for size, job in jobs:
                while waiting and (len(waiting) >= in_flight or held + size > _IN_FLIGHT_BYTES):
                    done_size, future = waiting.popleft()
                    yield future.result()
                    held -= done_size
                waiting.append((size, pool.submit(job)))
                held += size
            while waiting:
                yield waiting.popleft()[1].result()
        finally:
            for _, future in waiting:
                future.cancel()
