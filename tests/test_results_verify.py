"""verify: proves a whole table, and names every way in which one can be wrong."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from made_output import IDENTITY, make_output
from s3_server import S3Server

from cxr_ray import open_scores
from cxr_ray.errors import OutputError
from cxr_ray.phantoms import write_sample_archive
from cxr_ray.pipeline.identity import KIND_SHARDS, Identity
from cxr_ray.results import verify_output
from cxr_ray.results.verify import proof_json, proof_lines


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_sample_archive(folder, count=7)
    return folder


@pytest.fixture(scope="module")
def whole(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete OUTPUT of two generations: 7 images, then one more; parts of at most 3 rows."""
    growing = tmp_path_factory.mktemp("growing")
    shutil.copytree(archive, growing, dirs_exist_ok=True)
    output = tmp_path_factory.mktemp("runs") / "out"
    make_output(growing, output, unit_size=3)
    shutil.copy(growing / "synthetic-000.png", growing / "later.png")
    make_output(growing, output, unit_size=3)
    return output


@pytest.fixture
def output(whole: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "out"))


def first_part(output: Path) -> Path:
    return sorted((output / "scores").iterdir())[0]


def rewrite(part: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = pq.read_table(part)
    pq.write_table(change(table), part)


def replace(name: str, value: Callable[[Any], Any]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index(name)
        values = [value(old) for old in table.column(name).to_pylist()]
        return table.set_column(
            index, table.schema.field(index), pa.array(values, table.schema.field(index).type)
        )

    return change


def test_a_whole_table_is_proved(whole: Path) -> None:
    found = verify_output(whole)
    assert found.complete
    assert (found.planned, found.kept, found.quarantined) == (8, 7, 1)
    assert (found.generations, found.units, found.parts) == (2, 4, 4)
    assert found.reasons == {"truncated": 1}
    lines = proof_lines(found)
    assert lines[0].startswith("COMPLETE")
    assert "planned 8 = scored 7 + quarantined 1" in lines
    assert json.loads(json.dumps(proof_json(found)))["complete"] is True


def test_s3_and_shards_are_proved_too(archive: Path, tmp_path: Path, s3_server: S3Server) -> None:
    remote = f"s3://{s3_server.make_bucket()}/out"
    make_output(archive, remote, output_options=s3_server.storage_options, unit_size=3)
    found = verify_output(remote, storage_options=s3_server.storage_options)
    assert found.complete, found.problems
    shards = Identity(kind=KIND_SHARDS, document=IDENTITY.document)
    make_output(archive, tmp_path / "shards", identity=shards)
    found = verify_output(tmp_path / "shards")
    assert found.complete, found.problems
    assert "planned 7 = ready 6 + quarantined 1" in proof_lines(found)


def test_an_unfinished_run_is_incomplete_and_says_what_to_do(archive: Path, tmp_path: Path) -> None:
    make_output(archive, tmp_path / "out", unit_size=3, units=1)
    found = verify_output(tmp_path / "out")
    assert not found.complete
    assert found.missing_units == 2
    assert found.problems == [
        "2 of 3 units (4 images) are not published yet; run the job again to finish them"
    ]
    assert proof_lines(found)[0].startswith("NOT COMPLETE")


def lose_a_part(output: Path) -> None:
    first_part(output).unlink()


def truncate_a_part(output: Path) -> None:
    part = first_part(output)
    part.write_bytes(part.read_bytes()[:-100])


def flip_a_bit(output: Path) -> None:
    """In the middle of the pictures, where only a page checksum can tell."""
    part = first_part(output)
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pq.read_table(part), part, write_page_checksum=True, **plain)
    data = bytearray(part.read_bytes())
    group = pq.read_metadata(part).row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    pictures = next(column for column in columns if column.path_in_schema == "heat_map")
    data[pictures.data_page_offset + pictures.total_compressed_size // 2] ^= 1
    part.write_bytes(bytes(data))


def add_a_stray_part(output: Path) -> None:
    shutil.copy(first_part(output), output / "scores" / "part-g00009-u000000.parquet")


def swap_two_parts(output: Path) -> None:
    one, two, *_ = sorted((output / "scores").iterdir())
    kept = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(kept)


def drop_a_row(output: Path) -> None:
    rewrite(first_part(output), lambda table: table.slice(1))


def repeat_a_row(output: Path) -> None:
    rewrite(first_part(output), lambda table: pa.concat_tables([table, table.slice(0, 1)]))


def invent_an_id(output: Path) -> None:
    state = {"first": True}

    def change(old: str) -> str:
        if state.pop("first", False):
            return "0" * 32
        return old

    rewrite(first_part(output), replace("image_id", change))


def garble_an_id(output: Path) -> None:
    rewrite(first_part(output), replace("image_id", lambda old: "no hex" + old[6:]))


def forge_the_footer(output: Path) -> None:
    rewrite(
        first_part(output),
        lambda table: table.replace_schema_metadata({b"cxr_ray": b'{"identity": "other"}'}),
    )


def forge_the_identity_column(output: Path) -> None:
    rewrite(first_part(output), replace("identity", lambda _: "other"))


def score_outside(output: Path) -> None:
    rewrite(first_part(output), replace("p_covid", lambda _: float("nan")))


def lose_a_score(output: Path) -> None:
    rewrite(first_part(output), replace("p_covid", lambda _: None))


def lose_a_reason(output: Path) -> None:
    for part in (output / "scores").iterdir():
        rewrite(part, replace("reason", lambda _: None))


def unknown_status(output: Path) -> None:
    rewrite(first_part(output), replace("status", lambda _: "done"))


def lose_a_column(output: Path) -> None:
    rewrite(first_part(output), lambda table: table.drop_columns(["lung_mask"]))


def disorder(output: Path) -> None:
    rewrite(
        first_part(output), lambda table: table.take(pc.sort_indices(table, [("image_id", "descending")]))
    )


def forge_a_marker(output: Path) -> None:
    marker = output / "plan" / "00001" / "committed.json"
    record = json.loads(marker.read_text())
    marker.write_text(json.dumps({**record, "images": 5}))


def lose_the_plan(output: Path) -> None:
    shutil.rmtree(output / "plan")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lose_a_part, "1 of 4 units (3 images) are not published yet"),
        (truncate_a_part, "cannot be read"),
        (flip_a_bit, "cannot be read"),
        (add_a_stray_part, "1 files that no unit planned, namely scores/part-g00009-u000000.parquet"),
        (swap_two_parts, "the footer names another unit_id"),
        (drop_a_row, "1 planned images are missing from their unit's part"),
        (repeat_a_row, "1 image ids are in the table twice"),
        (invent_an_id, "1 rows were never planned for their unit, namely " + "0" * 32),
        (garble_an_id, "3 image ids are not 32 hex digits"),
        (forge_the_footer, "the footer names another identity"),
        (forge_the_identity_column, "rows carry another identity"),
        (score_outside, "a p_covid lies outside 0 to 1"),
        (lose_a_score, "p_covid is missing"),
        (lose_a_reason, "a reason stands in a kept row, or is missing"),
        (unknown_status, "a status is neither kept nor quarantined"),
        (lose_a_column, "column lung_mask is missing or of another type"),
        (disorder, "rows are not in strict order of image_id"),
        (forge_a_marker, "generation 1: the unit index does not add up"),
        (lose_the_plan, "no committed plan"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_damage_is_found_and_named(output: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(output)
    found = verify_output(output)
    assert not found.complete
    assert any(words in problem for problem in found.problems), found.problems


def test_a_folder_of_something_else_is_refused(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not of a cxr_ray run"):
        verify_output(archive)
    with pytest.raises(OutputError, match="holds no table"):
        verify_output(tmp_path / "nowhere")


def test_originals_that_changed_or_went_are_listed(archive: Path, tmp_path: Path) -> None:
    films = Path(shutil.copytree(archive, tmp_path / "films"))
    packed = films / "packed.tar"
    with tarfile.open(packed, "w") as tar:
        for name in ("synthetic-000.png", "synthetic-002.jpg"):
            tar.add(films / name, arcname=name)
    output = Path(make_output(films, tmp_path / "out"))
    same = verify_output(output, source=True)
    assert same.source is not None
    assert (same.source.changed, same.source.missing) == ([], [])
    (films / "synthetic-001.dcm").unlink()
    (films / "synthetic-003.png").write_bytes(b"another film")
    packed.write_bytes(packed.read_bytes() + bytes(512))
    found = verify_output(output, source=True)
    assert found.complete  # the table is as it was
    assert found.source is not None
    wanted = {"changed": found.source.changed, "missing": found.source.missing}
    table = open_scores(output).to_table(columns=["image_id", "uri", "member"]).to_pylist()
    names = {row["image_id"]: row["uri"].rsplit("/", 1)[-1] for row in table}
    assert {key: sorted(names[image_id] for image_id in ids) for key, ids in wanted.items()} == {
        "changed": ["packed.tar", "packed.tar", "synthetic-003.png"],
        "missing": ["synthetic-001.dcm"],
    }
    lines = proof_lines(found)
    assert "source: 3 originals changed and 1 are gone since planning" in lines
    assert f"missing: {wanted['missing'][0]}" in lines
    assert json.loads(json.dumps(proof_json(found)))["source"] == wanted
