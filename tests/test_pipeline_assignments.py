"""Reading units: what was yielded stays, what failed is tried again or told; few tasks for many units."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest
from end_to_end.commands import write_films
from made_output import make_output

from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import StorageReadError
from cxr_ray.pipeline import assignments
from cxr_ray.pipeline.assignments import Assignment, make_assignments, make_tasks, read_assignment
from cxr_ray.pipeline.decode_unit import InputSettings
from cxr_ray.pipeline.failures import Tries
from cxr_ray.pipeline.plan import Unit, open_plan
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.pipeline.unit_rows import Passage


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Publisher]:
    """Plans of six films in units of two: as files, and as members of a tar.gz."""
    folder = tmp_path_factory.mktemp("assignments")
    paths = write_films(folder / "films", 6)
    with tarfile.open(folder / "films.tar.gz", "w:gz") as tar:
        for path in paths:
            member = tarfile.TarInfo(path.name)
            member.size = path.stat().st_size
            tar.addfile(member, io.BytesIO(path.read_bytes()))
    for name, archive in (("files", folder / "films"), ("targz", folder / "films.tar.gz")):
        make_output(archive, folder / name, unit_size=2, units=0)
    return {name: Publisher(open_storage(str(folder / name))) for name in ("files", "targz")}


class Storm:
    """Rows of the real reader, and ``failures`` storage failures before the row of a certain number."""

    def __init__(self, failures: int, before: int, error: Exception | None = None) -> None:
        self.failures, self.before = failures, before
        self.error = error or StorageReadError("The archive cannot be read: timed out.")
        self.passes: list[int] = []
        self.decode_rows = assignments.decode_rows

    def __call__(self, images: Any, settings: InputSettings, report: Any) -> Iterator[dict[str, Any]]:
        self.passes.append(len(images))
        for number, row in enumerate(self.decode_rows(images, settings, report)):
            if self.failures and 6 - len(images) + number == self.before:
                self.failures -= 1
                raise self.error
            yield row


def read(publisher: Publisher, tries: Tries) -> tuple[list[Passage], dict[str, int]]:
    counts: dict[str, int] = {}

    def report(stage: str, images: int) -> None:
        counts[stage] = counts.get(stage, 0) + images

    passages = []
    for assignment in make_assignments(open_plan(publisher).units()):
        passages += read_assignment(assignment, publisher, InputSettings(), tries, report)
    return passages, counts


def no_wait(seconds: float) -> None:
    """Tests do not wait."""


def test_a_stream_that_fails_midway_goes_on_where_it_was(
    places: dict[str, Publisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, _ = read(places["targz"], Tries(0))
    storm = Storm(failures=2, before=3)
    monkeypatch.setattr(assignments, "decode_rows", storm)
    passages, counts = read(places["targz"], Tries(2, wait=no_wait))
    assert storm.passes == [6, 4, 4]  # the first unit is not read again
    assert [passage.journey.retries for passage in passages] == [0, 2, 0]
    for passage, calm in zip(passages, undisturbed, strict=True):
        assert passage.unit == calm.unit
        assert passage.table is not None
        assert passage.table.equals(calm.table)
    assert counts == {"decoded": 6}


def test_a_stream_that_keeps_failing_tells_of_the_rest(
    places: dict[str, Publisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assignments, "decode_rows", Storm(failures=99, before=2))
    passages, counts = read(places["targz"], Tries(1, wait=no_wait))
    assert [passage.failure is None for passage in passages] == [True, False, False]
    for passage in passages[1:]:
        assert passage.table is None
        assert passage.failure is not None
        assert passage.failure.unit_id == passage.unit.unit_id
        assert (passage.failure.code, passage.failure.retries, passage.failure.fatal) == ("storage", 1, False)
    assert counts == {"decoded": 2}


def test_a_program_error_ends_the_reading_at_once(
    places: dict[str, Publisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    storm = Storm(failures=99, before=2, error=ZeroDivisionError("division by zero"))
    monkeypatch.setattr(assignments, "decode_rows", storm)
    passages, _ = read(places["targz"], Tries(5, wait=no_wait))
    assert storm.passes == [6]
    assert [passage.failure is not None and passage.failure.fatal for passage in passages] == [False, True]


def test_single_files_fail_one_by_one(places: dict[str, Publisher], monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = assignments.decode_unit, []

    def flaky(images: Any, settings: Any, report: Any) -> Any:
        calls.append(len(images))
        report("decoded", 1)
        if len(calls) in (2, 3):
            raise TimeoutError("no answer")
        report("decoded", -1)
        return real(images, settings, report)

    monkeypatch.setattr(assignments, "decode_unit", flaky)
    passages, counts = read(places["files"], Tries(1, wait=no_wait))
    sizes = [passage.unit.images for passage in passages]
    assert [passage.failure is None for passage in passages] == [True, False, *[True] * (len(sizes) - 2)]
    assert counts == {"decoded": sum(sizes) - sizes[1]}  # what a failed unit reported is taken back


def test_few_tasks_for_many_units_and_single_ones_at_the_end() -> None:
    units = [
        Unit(unit_id=f"{n}", generation=0, images=1, file="f", row_group=n, uri=None, kind="file")
        for n in range(100_000)
    ]
    made = make_assignments(units)
    tasks = make_tasks(made, 1000)
    assert [assignment for task in tasks for assignment in task] == made
    assert len(tasks) < 6_000
    assert max(len(task) for task in tasks) == len(tasks[0]) == 100
    assert {len(task) for task in tasks[-900:]} == {1}
    assert [len(task) for task in make_tasks(made[:1000], 1000)] == [1] * 1000
    assert make_tasks([], 1000) == []


def test_a_targz_is_one_assignment() -> None:
    units = [
        Unit(unit_id=str(n), generation=0, images=1, file="f", row_group=n, uri=uri, kind=kind)
        for n, (uri, kind) in enumerate([("a", "file"), ("t", "tar.gz"), ("t", "tar.gz"), ("u", "tar.gz")])
    ]
    assert make_assignments(units) == [
        Assignment(units=(units[0],)), Assignment(units=tuple(units[1:3])), Assignment(units=(units[3],))
    ]  # fmt: skip
