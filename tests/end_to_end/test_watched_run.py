"""A run on a pool that grows, watched through Ray's metrics endpoint."""

from __future__ import annotations

import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray
from made_output import IDENTITY, MadeScorer, make_output

from cxr_ray.archives.storage import open_storage
from cxr_ray.pipeline.board import RunBoard
from cxr_ray.pipeline.cluster import ray_session
from cxr_ray.pipeline.decode_unit import InputSettings
from cxr_ray.pipeline.parts import PartFooter, published_units
from cxr_ray.pipeline.plan import open_plan
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.pipeline.resources import share
from cxr_ray.pipeline.rounds import Patience, publish_units
from cxr_ray.pipeline.stages import Stages
from cxr_ray.pipeline.timings import Timings
from end_to_end.commands import job_environment

FOOTER = PartFooter(
    identity=IDENTITY.hash, unit_id="", generation=0, attempt="watched", code_version="test", device="cpu",
    compute_batch=1, threads=1, dtype="float32", weights="made", calibration_id=None, decode_policy="corrected",
    fencing="create_only",
)  # fmt: skip


def scraped() -> dict[str, float]:
    """The run's series at the node's endpoint, summed over everything but stage and code."""
    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = re.match(r"ray_(cxr_ray_\w+)\{(.*)\} (\S+)$", line)
        if match and 'attempt="watched"' in match[2]:
            label = re.search(r'(?:stage|code)="(\w+)"', match[2])
            key = match[1] + (f" {label[1]}" if label else "")
            if "_bucket" not in key:
                found[key] = found.get(key, 0) + float(match[3])
    return found


def test_a_growing_pool_finishes_and_its_metrics_can_be_scraped(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", job_environment()["PYTHONPATH"])  # of Ray's workers
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "500")
    make_output(films, tmp_path / "out", unit_size=3, units=0)
    place = Publisher(open_storage(str(tmp_path / "out")))
    units = open_plan(place).units()
    resources = share(cpus=2, gpus=0, local=True, scoring=True, actors=2, decode_tasks=1, min_actors=1)
    stages = Stages(
        plan=place, output=place, settings=InputSettings(), kind="scores", footer=FOOTER, device="cpu",
        scorer=MadeScorer,
    )  # fmt: skip
    timings = Timings()
    said: list[str] = []
    with ray_session(None, resources.local_cpus):
        board = RunBoard.remote()  # type: ignore[attr-defined]
        assert (
            publish_units(units, stages, resources, Patience(), say=said.append, timings=timings, board=board)
            == []
        )
        wanted = {"cxr_ray_published_images_total": 15.0, "cxr_ray_units_published_total": float(len(units))}
        deadline = time.monotonic() + 60
        while not wanted.items() <= (found := scraped()).items() and time.monotonic() < deadline:
            time.sleep(1)
        assert ray.get(board.read.remote())["done"] == 15
    assert found.items() >= wanted.items(), found
    assert found["cxr_ray_images_total read"] == 15
    assert {name for name in found if name.startswith("cxr_ray_quarantined")} >= {
        "cxr_ray_quarantined_total constant_pixels"
    }
    assert found["cxr_ray_stage_seconds_count publish"] == len(units)
    assert published_units(place, "scores") == {unit.unit_id for unit in units}
    assert timings.summary()["units"] == len(units)
    assert said == []
