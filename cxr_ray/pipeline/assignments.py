"""Assignments: open units that are read together, and how they become unit tables, or failures.

A unit is an assignment of its own, except in a tar.gz, which has no random access: there one assignment
streams the container once and yields its still-open units in order.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from cxr_ray.pipeline.decode_unit import DECODED, InputSettings, Report, decode_rows, decode_unit, no_report
from cxr_ray.pipeline.failures import READ, Tries, failure_of
from cxr_ray.pipeline.plan import SHARD_KIND, PlannedImage, Unit, read_unit
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.pipeline.shard_source import read_shard_unit
from cxr_ray.pipeline.unit_rows import Journey, Passage
from cxr_ray.shards import table_of

SEQUENTIAL_KINDS = frozenset({"tar.gz"})


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Open units that are read in one go, in container order."""

    units: tuple[Unit, ...]


def make_assignments(units: Iterable[Unit]) -> list[Assignment]:
    """Group open units into read tasks, keeping plan order."""
    assignments: list[Assignment] = []
    for key, group in itertools.groupby(units, key=_group_key):
        members = tuple(group)
        if key is None:
            assignments += [Assignment(units=(unit,)) for unit in members]
        else:
            assignments.append(Assignment(units=members))
    return assignments


def _group_key(unit: Unit) -> tuple[int, str | None] | None:
    return (unit.generation, unit.uri) if unit.kind in SEQUENTIAL_KINDS else None


def make_tasks(assignments: Sequence[Assignment], width: int) -> list[list[Assignment]]:
    """Share assignments out to read tasks, in order: long tasks first, single assignments at the end.

    Every task costs the driver about 1 ms and 4 kB before anything starts (measured: 15 s and 43 MiB for
    10,000), so that a task of its own for every assignment would hold up a large run. Taking a ``width``-th of
    what is left each time makes few tasks of many and keeps all readers busy to the end.
    """
    tasks, start = [], 0
    while start < len(assignments):
        size = -(-(len(assignments) - start) // width)
        tasks.append(list(assignments[start : start + size]))
        start += size
    return tasks


def read_assignment(
    assignment: Assignment, plan: Publisher, settings: InputSettings, tries: Tries, report: Report = no_report
) -> Iterator[Passage]:
    """One passage per unit, in order: its table as soon as it is complete, or why there is none.

    A failure that may pass is tried again as ``tries`` says, for each unit anew. Of a tar.gz, units that were
    yielded stay, and the stream begins again before the next one; when that is given up, so are the units behind
    it. After a fatal failure nothing more is yielded: the run ends.
    """
    left = list(assignment.units)
    tables: Iterator[tuple[Unit, pa.Table]] | None = None
    spent = 0.0
    tally = Tally(report)
    while left:
        start = time.perf_counter()
        try:
            tables = tables or unit_tables(Assignment(units=tuple(left)), plan, settings, tally)
            unit, table = next(tables)
        except Exception as error:  # judged by failure_of: only some failures may pass
            tables = None
            tally.undo()
            if not tries.again(error):
                failure = failure_of(left[0].unit_id, READ, error, tries.done)
                for unit in left[:1] if failure.fatal else left:
                    yield Passage(unit=unit, failure=replace(failure, unit_id=unit.unit_id))
                return
            spent += time.perf_counter() - start
            continue
        seconds = spent + time.perf_counter() - start
        yield Passage(unit=unit, table=table, journey=Journey(seconds={READ: seconds}, retries=tries.done))
        del table  # else the next one is read beside it
        left.pop(0)
        spent, tries.done = 0.0, 0
        tally.keep()


class Tally:
    """A ``Report`` that can take back what it reported of a unit that failed."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._counts: dict[str, int] = {}

    def __call__(self, stage: str, images: int) -> None:
        self._counts[stage] = self._counts.get(stage, 0) + images
        self._report(stage, images)

    def keep(self) -> None:
        """What was reported so far stands."""
        self._counts.clear()

    def undo(self) -> None:
        """Report the opposite of everything since ``keep``."""
        for stage, images in self._counts.items():
            self._report(stage, -images)
        self._counts.clear()


def unit_tables(
    assignment: Assignment, plan: Publisher, settings: InputSettings, report: Report = no_report
) -> Iterator[tuple[Unit, pa.Table]]:
    """Unit tables of an assignment, each as soon as it is complete."""
    if assignment.units[0].kind in SEQUENTIAL_KINDS:
        yield from _stream_units(assignment, plan, settings, report)
        return
    for unit in assignment.units:
        images = read_unit(plan, unit)
        if unit.kind == SHARD_KIND:
            table = read_shard_unit(images, settings.archive_options)
            report(DECODED, table.num_rows)
        else:
            table = decode_unit(images, settings, report)
        yield unit, table


def _stream_units(
    assignment: Assignment, plan: Publisher, settings: InputSettings, report: Report
) -> Iterator[tuple[Unit, pa.Table]]:
    images: list[PlannedImage] = []
    for unit in assignment.units:
        images += read_unit(plan, unit)
    rows = decode_rows(images, settings, report)
    for unit in assignment.units:
        table = table_of(list(itertools.islice(rows, unit.images)))
        report(DECODED, table.num_rows)
        yield unit, table
