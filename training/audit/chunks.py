"""Run a function over chunks of frames, in this process or in several single-threaded ones."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Work = Callable[[NDArray[np.uint8]], Arrays]
Progress = Callable[[int, int], None]
"""Called with (pictures done, pictures in all)."""

CHUNK = 8

_work: Work | None = None


def map_chunks(
    make: Callable[..., Work],
    arguments: tuple[Any, ...],
    pixels_NHW: NDArray[np.uint8],
    *,
    chunk: int = CHUNK,
    processes: int = 1,
    progress: Progress | None = None,
) -> Arrays:
    """``make(*arguments)`` gives a function from frames to named arrays; apply it to all frames, keeping their order.

    Args:
        make: a module-level function; with several processes each of them calls it once, so ``arguments`` must be
            plain values (a bundle travels as bytes).
        pixels_NHW: uint8 frames; none of them is seen by more than one call.
        chunk: frames a call.
        processes: at most so many; a script that asks for more than one needs ``if __name__ == "__main__"``.

    Returns:
        name -> the arrays of all calls, joined along their first axis.
    """
    parts = [pixels_NHW[start : start + chunk] for start in range(0, len(pixels_NHW), chunk)] or [pixels_NHW]
    results = []
    for part in _results(make, arguments, parts, min(processes, len(parts))):
        results.append(part)
        if progress is not None:
            progress(min(len(results) * chunk, len(pixels_NHW)), len(pixels_NHW))
    return {name: np.concatenate([part[name] for part in results]) for name in results[0]}


def _results(
    make: Callable[..., Work], arguments: tuple[Any, ...], parts: list[NDArray[np.uint8]], processes: int
) -> Iterator[Arrays]:
    if processes <= 1:
        work = make(*arguments)
        yield from (work(part) for part in parts)
        return
    # Spawned, not forked: torch's threads do not survive a fork.
    with ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), _start, (make, arguments)
    ) as pool:
        yield from pool.map(_do, parts)


def _start(make: Callable[..., Work], arguments: tuple[Any, ...]) -> None:
    global _work
    # A pool's processes do not notice that the one that waits for them was killed, and would work on for nobody.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _work = make(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(part: NDArray[np.uint8]) -> Arrays:
    assert _work is not None  # _start ran first
    return _work(part)
