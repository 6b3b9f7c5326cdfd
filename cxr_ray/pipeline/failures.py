"""Units that fail: which failures may pass by themselves, how long to wait, and what is told about one.

A storage that does not answer, or a worker that was killed, says nothing about the images. Such a unit is
tried again, first by the worker, then in another round; what still fails stays open for the next run.
Anything else is a fault of the program or of the command, and ends the run at once.
"""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from cxr_ray.archives.storage import explain, is_storage_error
from cxr_ray.errors import CxrRayError

READ, SCORE, PUBLISH = "read", "score", "publish"
"""The stages of the graph, as they stand in metrics, timings and failures."""

#: Codes of errors that belong to the moment, not to the input, the command or the program.
PASSING_CODES = frozenset({"storage", "storage_write", "worker_killed"})

#: Of a unit that Ray gave up: nobody was left to say more.
WORKER_DIED = "worker_died"

_LONGEST_PAUSE = 60.0

Wait = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class UnitFailure:
    """Why a unit has no part yet.

    Attributes:
        stage: where it failed.
        code: of the error; ``internal`` for what was not raised on purpose.
        reason: one sentence without paths, addresses or values.
        retries: how often the worker had tried again.
        fatal: trying again cannot help; the run ends.
    """

    unit_id: str
    stage: str
    code: str
    reason: str
    retries: int = 0
    fatal: bool = False


def may_pass(error: BaseException) -> bool:
    """Whether the same work may succeed later."""
    if isinstance(error, CxrRayError):
        return error.code in PASSING_CODES
    return is_storage_error(error)


def reason_of(error: BaseException) -> str:
    """The error in one sentence without its full stop; of a storage error nothing but its kind."""
    if isinstance(error, CxrRayError):
        return (str(error).splitlines() or [error.code])[0].rstrip(".")
    if is_storage_error(error):
        return f"the storage failed ({explain(error)})"
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}".rstrip(": ")


def failure_of(unit_id: str, stage: str, error: BaseException, retries: int) -> UnitFailure:
    """The record of a failed unit. A fatal error's trace goes to the worker's log, where Ray keeps it."""
    fatal = not may_pass(error)
    if fatal:
        traceback.print_exception(error)
    code = error.code if isinstance(error, CxrRayError) else "storage" if not fatal else "internal"
    return UnitFailure(
        unit_id=unit_id, stage=stage, code=code, reason=reason_of(error), retries=retries, fatal=fatal
    )


def pause_before(retry: int) -> float:
    """Seconds to wait before the ``retry``-th new try (from 1): about 1, 4, 16, 60, 60 ..., spread by half
    to either side, so that workers which failed together do not come back together."""
    return min(_LONGEST_PAUSE, 4.0 ** (retry - 1)) * random.uniform(0.5, 1.5)


@dataclass
class Tries:
    """The tries of one piece of work: at most ``retries`` new ones after the first."""

    retries: int
    wait: Wait = time.sleep
    on_retry: Callable[[], None] = lambda: None
    done: int = field(default=0, init=False)

    def again(self, error: BaseException) -> bool:
        """After ``error``: wait and say True where the work is to be done again, else False."""
        if not may_pass(error) or self.done >= self.retries:
            return False
        self.done += 1
        self.on_retry()
        self.wait(pause_before(self.done))
        return True
