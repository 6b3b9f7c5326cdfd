"""Assignments: which open units one read task handles, and how it turns them into unit tables.

A unit is a task of its own, except in a tar.gz, which has no random access: there one task streams the
container once and yields its still-open units in order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from cxr_ray.pipeline.decode_unit import DECODED, InputSettings, Report, decode_rows, decode_unit, no_report
from cxr_ray.pipeline.plan import SHARD_KIND, PlannedImage, Unit, read_unit
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.pipeline.shard_source import read_shard_unit
from cxr_ray.shards import table_of

SEQUENTIAL_KINDS = frozenset({"tar.gz"})


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Open units that one read task yields, in container order."""

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
    rows = decode_rows(images, settings)
    for unit in assignment.units:
        table = table_of(list(itertools.islice(rows, unit.images)))
        report(DECODED, table.num_rows)
        yield unit, table
