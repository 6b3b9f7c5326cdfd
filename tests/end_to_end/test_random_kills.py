"""Kill workers, scorers, nodes, drivers, everything, at random moments: the table comes out as if nothing happened.

All the while a reader reads the whole table every 100 ms. Twelve kills in an ordinary run of the suite, a hundred
and more with ``CXR_RAY_NIGHTLY=1``; ``CXR_RAY_CHAOS_SEED`` repeats the schedule of a run that failed.
"""

from __future__ import annotations

import itertools
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from s3_server import S3Server

from cxr_ray.phantoms import phantom
from end_to_end.chaos import (
    ACTOR,
    ALL,
    DRIVER,
    RAYLET,
    WORKER,
    Campaign,
    Kill,
    chosen_seed,
    nightly,
    schedule,
)
from end_to_end.commands import run_command, score_cheaply
from end_to_end.places import Place
from end_to_end.small_cluster import SmallCluster

pytestmark = pytest.mark.timeout(4 * 3600 if nightly() else 2400)

KILLS = 52 if nightly() else 6
"""On each of the two: local disk and local Ray, S3 and a cluster of three nodes."""
PLAIN, PACKED, BROKEN = 132, 24, 2
UNIT = 6
SECONDS_PER_IMAGE = 0.15
JOB = (f"unit_size={UNIT}", "actors=2", "progress_seconds=1")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small phantoms, two broken files, and a tar.gz whose units one read task yields in a row."""
    folder = tmp_path_factory.mktemp("archive") / "films"
    folder.mkdir()
    drawn = [cv2.resize(phantom(np.random.default_rng(seed)), (340, 400)) >> 4 for seed in range(4)]
    for number in range(PLAIN + PACKED):
        pixels = np.roll(drawn[number % len(drawn)], number, axis=1).astype(np.uint8)
        cv2.imwrite(str(folder / f"film-{number:03d}.png"), pixels)
    for number in range(BROKEN):
        (folder / f"broken-{number}.png").write_bytes((folder / "film-000.png").read_bytes()[: 3000 + number])
    with tarfile.open(folder / "packed.tar.gz", "w:gz") as packed:
        for number in range(PLAIN, PLAIN + PACKED):
            path = folder / f"film-{number:03d}.png"
            packed.add(path, path.name)
            path.unlink()
    return folder


@pytest.fixture(scope="module")
def undisturbed(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The table when nothing happens."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    score_cheaply(archive, output, *JOB)
    table = Place(str(output)).look().table()
    assert table.num_rows == PLAIN + PACKED + BROKEN
    assert table.column("status").to_pylist().count("quarantined") == BROKEN
    return table


def assert_as_if_nothing_happened(place: Place, undisturbed: pa.Table) -> None:
    """Every column of every row as in the undisturbed run, nothing else there, and the proof says so."""
    look = place.look()
    table = look.table()
    ids = table.column("image_id").to_pylist()
    assert len(ids) == len(set(ids)) == undisturbed.num_rows
    different = [
        name for name in undisturbed.column_names if not table.column(name).equals(undisturbed.column(name))
    ]
    assert not different
    assert table.schema.equals(undisturbed.schema)
    # The reader refuses names that are no parts; the plan's units are all there, and no others.
    assert len(look.parts()) == len(set(undisturbed.column("unit_id").to_pylist()))
    proof = run_command("-m", "cxr_ray.cli", "verify", place.url, *place.cli_options())
    assert proof.code == 0, proof.out + proof.err
    assert "\nCOMPLETE" in f"\n{proof.out}"


def kills(kinds: list[str], seed: int) -> list[Kill]:
    units = (PLAIN + PACKED) // UNIT
    every = max(1, units // (KILLS + 3)) if not nightly() else 4
    return schedule(random.Random(seed), kinds, KILLS, every)


def test_local_disk_and_local_ray(archive: Path, undisturbed: pa.Table, tmp_path: Path) -> None:
    seed = chosen_seed()
    print(f"replay with CXR_RAY_CHAOS_SEED={seed}")
    numbers = itertools.count()
    campaign = Campaign(
        archive=archive,
        places=lambda: Place(str(tmp_path / f"out-{next(numbers)}")),
        options=JOB,
        seconds_per_image=SECONDS_PER_IMAGE,
        log=tmp_path / "log.txt",
    )
    outputs = campaign.carry_out(kills([WORKER, ACTOR, DRIVER, WORKER, ACTOR, ALL], seed))
    print(campaign.story())
    assert len(campaign.done) == KILLS
    assert campaign.passes > 10
    for place in outputs:
        assert_as_if_nothing_happened(place, undisturbed)


@pytest.fixture
def cluster() -> Iterator[SmallCluster]:
    with SmallCluster() as running:
        yield running


def test_s3_and_a_cluster_that_loses_nodes(
    archive: Path, undisturbed: pa.Table, cluster: SmallCluster, s3_server: S3Server, tmp_path: Path
) -> None:
    seed = chosen_seed()
    print(f"replay with CXR_RAY_CHAOS_SEED={seed}")
    bucket = s3_server.make_bucket()
    numbers = itertools.count()
    campaign = Campaign(
        archive=archive,
        places=lambda: Place(f"s3://{bucket}/out-{next(numbers)}", s3_server.storage_options),
        options=JOB,
        seconds_per_image=SECONDS_PER_IMAGE,
        log=tmp_path / "log.txt",
        cluster=cluster,
    )
    cluster.lose_a_node(
        0
    )  # Ray lists a dead node as alive for some seconds; a job that starts then is not refused
    outputs = campaign.carry_out(kills([RAYLET, WORKER, DRIVER, RAYLET, ACTOR, ALL], seed))
    print(campaign.story())
    assert len(campaign.done) == KILLS
    assert campaign.passes > 10
    for place in outputs:
        assert_as_if_nothing_happened(place, undisturbed)
