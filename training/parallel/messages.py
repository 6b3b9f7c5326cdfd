"""What a member's processes tell the driver: rows of progress, and errors that no new try can mend."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from cxr_ray.errors import CxrRayError, RunFailed, StorageReadError, StorageWriteError
from training.parallel.processes import Processes

Row = Mapping[str, Any]
"""One report of a member, as JSON can say it."""
Report = Callable[[dict[str, Any]], None]
"""What a member calls at the end of every epoch, on every rank."""
Listener = Callable[[str, Row], None]
"""Takes (member, row) in the driver, one after the other."""
RunMember = Callable[[dict[str, Any], Processes, Report], None]

RUN_MEMBER = "training.members:run_member"
"""``module:function`` of a ``RunMember``: named, because it has to be found again in another process."""


def find(entry: str) -> RunMember:
    """The function that ``module:function`` names."""
    module, _, name = entry.partition(":")
    found: RunMember = getattr(importlib.import_module(module), name)
    return found


def print_row(name: str, row: Row) -> None:
    """The default listener: one line on stderr."""
    numbers = " | ".join(f"{key} {_short(value)}" for key, value in row.items())
    print(f"{name} | {numbers}", file=sys.stderr, flush=True)


def _short(value: Any) -> str:
    return (
        f"{value:.4g}"
        if isinstance(value, float) and not value.is_integer()
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )


def is_final(error: BaseException) -> bool:
    """Whether a new try would end the same way: wrong options, bad data, a loss of NaN; storage may recover."""
    return isinstance(error, CxrRayError) and not isinstance(error, (StorageReadError, StorageWriteError))


def error_of(code: str, message: str) -> CxrRayError:
    """The coded error that another process met."""
    return _classes().get(code, RunFailed)(message)


def outcome(names: list[str], errors: Mapping[str, CxrRayError]) -> None:
    """Raise what went wrong with any member, once all have ended.

    Raises:
        CxrRayError: of the first member, in the order of ``names``, that met one which no new try can mend.
        RunFailed: members died too often.
    """
    failed = [name for name in names if name in errors]
    for name in failed:
        if not isinstance(errors[name], RunFailed):
            raise errors[name]
    if failed:
        raise RunFailed("; ".join(str(errors[name]) for name in failed))


def died(name: str, failures: int, why: str) -> RunFailed:
    """A member that was started again as often as allowed."""
    times = "once" if failures == 1 else f"{failures} times"
    return RunFailed(
        f"{name} failed {times} ({why}); its checkpoints are kept: run the same command again to go on"
    )


def _classes(base: type[CxrRayError] = CxrRayError) -> dict[str, type[CxrRayError]]:
    found = {base.code: base}
    for cls in base.__subclasses__():
        found |= _classes(cls)
    return found
