"""Predictions: the sample is chosen evenly and always alike, bad images do not stop it, and the sums are right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_output import IDENTITY, MadeScorer

from cxr_ray.archives.inputs import ArchiveInput, image_id_of
from cxr_ray.archives.listing import list_archive
from cxr_ray.archives.storage import open_storage
from cxr_ray.pipeline.decode_unit import InputSettings
from cxr_ray.pipeline.expected_rate import REST_SECONDS, expected_rate
from cxr_ray.pipeline.parts import PartFooter
from cxr_ray.pipeline.planner import PlannedSource
from cxr_ray.pipeline.prediction import (
    IMAGES_PER_UNIT,
    SAMPLED_UNITS,
    Sample,
    choose_sample,
    predict,
    take_sample,
)
from cxr_ray.pipeline.privacy import Privacy
from cxr_ray.pipeline.resources import share
from cxr_ray.pipeline.screening import Work
from cxr_ray.pipeline.spool import plan_table

RESOURCES = share(cpus=4, gpus=0, local=True, scoring=True, actors=3, decode_tasks=5)
FOOTER = PartFooter(
    identity="i", unit_id="", generation=0, attempt="", code_version="test", device="cpu", compute_batch=1, threads=1,
    dtype="float32", weights="made", calibration_id=None, decode_policy="corrected", fencing="create_only",
)  # fmt: skip


def planned(source: ArchiveInput) -> PlannedSource:
    return PlannedSource(source=source, image_id=image_id_of(source), uri=source.uri, member=source.member)


def work(scorer: type | None = MadeScorer) -> Work:
    return Work(
        identity=IDENTITY, settings=InputSettings(), footer=FOOTER, resources=RESOURCES, scorer=scorer
    )


def sample_of(folder: Path) -> Sample:
    sources = [planned(one) for one in list_archive(open_storage(str(folder)))]
    groups, _ = choose_sample([plan_table(sources, Privacy())], 1000)
    return take_sample(groups, work())


def test_the_sample_is_the_same_every_time_and_comes_from_everywhere() -> None:
    sources = [planned(ArchiveInput(uri=f"file:///{number:05d}.png", size=1)) for number in range(20_000)]
    table = plan_table(sources, Privacy())
    groups, units = choose_sample([table], 1000)
    assert units > 20
    assert [len(group) for group in groups] == [IMAGES_PER_UNIT] * SAMPLED_UNITS
    assert choose_sample([table.slice(0, 7), table.slice(7)], 1000) == (groups, units)
    firsts = [choose_sample([table], 1000, seed=seed)[0][0][0].uri for seed in range(60)]
    assert max(firsts) > "file:///15000"
    assert min(firsts) < "file:///05000"


def test_of_a_compressed_tar_only_the_beginning_is_read() -> None:
    sources = [
        planned(
            ArchiveInput(uri=f"file:///{box}.tar.gz", member=f"{n}.png", kind="tar.gz", ordinal=n, size=1)
        )
        for box in range(3)
        for n in range(5000)
    ]
    groups, _ = choose_sample([plan_table(sources, Privacy())], 1000)
    assert sorted(group[0].uri or "" for group in groups) == [f"file:///{box}.tar.gz" for box in range(3)]
    assert {group[0].source.ordinal for group in groups} == {0}


def test_films_are_decoded_scored_and_encoded(tmp_path: Path) -> None:
    for number in range(6):
        film = np.random.default_rng(number).integers(0, 256, (400, 420), np.uint8)
        assert cv2.imwrite(str(tmp_path / f"{number}.png"), film)
    (tmp_path / "bad.png").write_bytes(b"no image")
    sample = sample_of(tmp_path)
    assert (sample.images, sample.ready, sample.quarantined) == (7, 6, 1)
    assert sample.decode_seconds > 0
    assert 0 < sample.decode_cpu_seconds < 10
    assert sample.score_rate is not None
    assert sample.score_rate > 0
    assert sample.part_bytes > 1000


def test_a_sample_of_bad_images_is_a_sample(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    sample = sample_of(tmp_path)
    assert (sample.images, sample.ready, sample.quarantined) == (3, 0, 3)
    prediction = predict(sample, images=10, units=1, bytes_to_read=1, resources=RESOURCES, scoring=True)
    assert sample.score_rate is not None
    assert prediction.rates.score == pytest.approx(3 * sample.score_rate)
    assert prediction.hours > 0


def test_the_slowest_decides() -> None:
    sample = Sample(
        images=10, ready=8, quarantined=2, decode_seconds=2.0, decode_cpu_seconds=1.0, score_rate=2.0, part_bytes=40_000
    )  # fmt: skip
    prediction = predict(sample, images=36_000, units=40, bytes_to_read=9, resources=RESOURCES, scoring=True)
    rates = prediction.rates
    assert rates.decode == pytest.approx(25)  # 5 tasks, 0.2 s an image
    assert rates.score == pytest.approx(7.5)  # 3 scorers, 0.5 s, 8 of 10 images
    assert rates.cores == pytest.approx(4 / (0.1 + 0.4 + REST_SECONDS))  # 4 cores
    assert rates.overall == rates.score
    assert prediction.hours == pytest.approx(36_000 / 7.5 / 3600)
    assert prediction.output_bytes == 36_000 * 4_000
    first, second = prediction.lines(RESOURCES)
    assert "36,000 images in 40 units" in first
    assert "scoring decides" in second
    dear = replace(sample, decode_cpu_seconds=20.0)
    prediction = predict(dear, images=1, units=1, bytes_to_read=9, resources=RESOURCES, scoring=True)
    assert "the number of cores decides" in list(prediction.lines(RESOURCES))[1]
    ingest = predict(sample, images=1, units=1, bytes_to_read=9, resources=RESOURCES, scoring=False)
    assert ingest.record()["score_images_per_second"] is None
    assert ingest.rates.overall == pytest.approx(25)


def test_scorers_on_a_gpu_leave_the_cores_to_others() -> None:
    resources = share(cpus=4, gpus=1, local=True, scoring=True, actors=None, decode_tasks=4)
    rates = expected_rate(resources, decode_wall=0.02, decode_cpu=0.02, score=1000.0)
    assert rates.cores == pytest.approx(4 / (0.02 + REST_SECONDS))
    assert rates.decided_by == "the number of cores"


def test_nothing_to_do_is_no_error() -> None:
    prediction = predict(
        take_sample([], work()), images=0, units=0, bytes_to_read=0, resources=RESOURCES, scoring=True
    )
    assert (prediction.hours, prediction.output_bytes) == (0, 0)
    assert len(list(prediction.lines(RESOURCES))) == 1
