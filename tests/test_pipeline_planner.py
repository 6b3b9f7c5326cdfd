"""Planning: what is new, in units of one container, committed once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cxr_ray.archives.inputs import ArchiveInput, image_id_of
from cxr_ray.archives.storage import Storage, open_storage
from cxr_ray.pipeline.plan import Plan, id_array, open_plan, read_unit
from cxr_ray.pipeline.planner import (
    Listing,
    PlannedSource,
    commit_generation,
    cut_units,
    select_new,
    spool_listing,
    unit_size,
)
from cxr_ray.pipeline.privacy import Privacy
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.pipeline.spool import age_in_years, plan_table


def files(*numbers: int) -> list[PlannedSource]:
    sources = [ArchiveInput(uri=f"file:///films/{number}.png", size=10, version="v") for number in numbers]
    return [planned(source) for source in sources]


def members(container: str, count: int, kind: str = "tar") -> list[PlannedSource]:
    sources = [
        ArchiveInput(uri=container, member=f"{n}.png", kind=kind, ordinal=n, offset=512 * n, size=9)  # type: ignore[arg-type]
        for n in range(count)
    ]
    return [planned(source) for source in sources]


def planned(source: ArchiveInput) -> PlannedSource:
    return PlannedSource(source=source, image_id=image_id_of(source), uri=source.uri, member=source.member)


def listing_of(
    inputs: list[PlannedSource], known: np.ndarray | None = None, limit: int | None = None
) -> Listing:
    listing = spool_listing(inputs, Privacy())
    select_new(listing, np.empty(0, "S16") if known is None else known, limit)
    return listing


@pytest.fixture(params=["local", "s3"])
def publisher(request: pytest.FixtureRequest, tmp_path: Path) -> Publisher:
    storage: Storage
    if request.param == "local":
        storage = open_storage(str(tmp_path / "out"))
    else:
        server = request.getfixturevalue("s3_server")
        storage = open_storage(f"s3://{server.make_bucket()}/out", server.storage_options)
    return Publisher(storage)


def commit(
    publisher: Publisher, plan: Plan, listing: Listing, attempt: str = "a", largest: int = 1000
) -> bool:
    try:
        return commit_generation(publisher, plan, listing, attempt=attempt, identity="id", largest=largest)
    finally:
        listing.close()


def test_first_generation_reads_back_whole(publisher: Publisher) -> None:
    inputs = files(*range(40)) + members("file:///a.tar", 5) + members("file:///b.zip", 3, "zip")
    assert commit(publisher, open_plan(publisher), listing_of(inputs))
    plan = open_plan(publisher)
    assert plan.images == 48
    back = [image for unit in plan.units() for image in read_unit(publisher, unit)]
    assert [image.source for image in back] == [one.source for one in inputs]
    assert [bytes.fromhex(image.image_id) for image in back] == [one.image_id for one in inputs]
    for unit in plan.units():
        containers = {image.source.uri for image in read_unit(publisher, unit)}
        assert unit.kind == "file" or len(containers) == 1


def test_second_generation_holds_only_what_is_new(publisher: Publisher) -> None:
    commit(publisher, open_plan(publisher), listing_of(files(1, 2, 3)))
    plan = open_plan(publisher)
    listing = listing_of(files(0, 1, 2, 3, 4), known=plan.image_ids())
    assert listing.images == 2
    commit(publisher, plan, listing)
    plan = open_plan(publisher)
    assert [generation["images"] for generation in plan.generations] == [3, 2]
    assert sorted(unit.unit_id for unit in plan.units()) == ["g00000-u000000", "g00001-u000000"]
    assert len(plan.image_ids()) == 5


def test_the_loser_of_a_race_adopts_the_winner(publisher: Publisher) -> None:
    empty = open_plan(publisher)
    assert commit(publisher, empty, listing_of(files(1, 2)), attempt="winner")
    assert not commit(publisher, empty, listing_of(files(1, 2, 3)), attempt="loser")
    plan = open_plan(publisher)
    assert plan.generations[0]["attempt"] == "winner"
    assert plan.images == 2


def test_repeats_are_planned_once_and_counted() -> None:
    listing = listing_of(files(1, 2, 1, 3, 2, 1))
    assert (listing.images, listing.repeated) == (3, 3)
    table = pa.concat_tables(listing.batches())
    assert table.column("uri").to_pylist() == [f"file:///films/{n}.png" for n in (1, 2, 3)]
    listing.close()


def test_limit_takes_the_first_new_ones() -> None:
    known = np.sort(np.array([one.image_id for one in files(0, 2)], "S16"))
    listing = listing_of(files(*range(8)), known=known, limit=3)
    table = pa.concat_tables(listing.batches())
    assert table.column("uri").to_pylist() == [f"file:///films/{n}.png" for n in (1, 3, 4)]
    listing.close()


def test_a_large_listing_streams_through_several_spool_files() -> None:
    listing = listing_of(files(*range(25_000)))
    assert len(list(Path(listing.folder.name).glob("*.parquet"))) == 3
    assert sum(table.num_rows for table in listing.batches()) == 25_000
    folder = Path(listing.folder.name)
    listing.close()
    assert not folder.exists()


def test_units_grow_and_never_pass_the_largest() -> None:
    sizes = [unit_size(index, 1000) for index in range(60)]
    assert sizes[:5] == [16, 16, 16, 16, 32]
    assert max(sizes) == sizes[-1] == 1000
    assert sizes == sorted(sizes)
    assert unit_size(0, 5) == 5
    assert unit_size(0, 1000, "shard") == 1000


@pytest.mark.parametrize("cut", [1, 7, 100])
def test_units_do_not_depend_on_how_the_listing_was_spooled(cut: int) -> None:
    rows = files(*range(90)) + members("file:///a.tar", 40)
    tables = [plan_table(rows[start : start + cut], Privacy()) for start in range(0, len(rows), cut)]
    assert [unit.num_rows for unit in cut_units(tables, 1000)] == [16, 16, 16, 16, 26, 32, 8]


def test_manifest_identifiers_reach_the_plan_only_as_hashes() -> None:
    source = ArchiveInput(uri="file:///1.png", patient="DOE^JANE", study="S-1", age="93", label="covid")
    assert plan_table([planned(source)], Privacy()).column("patient_key").to_pylist() == [None]
    (row,) = plan_table([planned(source)], Privacy(key=b"k" * 32)).to_pylist()
    assert row["age_years"] == 90
    assert row["label"] == "covid"
    assert len(row["patient_key"]) == 32
    assert "DOE" not in str(row)


def test_id_array_honours_slices() -> None:
    values = [bytes([number]) * 16 for number in range(10)]
    column = pa.chunked_array([pa.array(values, pa.binary(16))]).slice(3, 4)
    assert list(id_array(column)) == values[3:7]


@pytest.mark.parametrize(
    ("text", "years"),
    [("58", 58), ("58.0", 58), ("058Y", 58), ("18M", 1), ("93", 90), (" 7 ", 7), ("unknown", None), ("", None),
     (None, None), ("-5", None), ("99999", None), ("400", None)],
)  # fmt: skip
def test_ages_of_a_manifest_never_stop_planning(text: str | None, years: int | None) -> None:
    assert age_in_years(text) == years


def test_tiny_containers_are_cut_in_linear_time() -> None:
    rows = [one for n in range(3000) for one in members(f"file:///{n}.zip", 1, "zip")]
    table = plan_table(rows, Privacy())
    assert [unit.num_rows for unit in cut_units([table.slice(0, 1999), table.slice(1999)], 1000)] == [
        1
    ] * 3000
