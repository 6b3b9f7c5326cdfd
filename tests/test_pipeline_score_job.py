"""What the scoring job makes of a bundle: one identity per mask style, none for a calibration."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_calibration import MADE

from cxr_ray.archives.storage import open_storage
from cxr_ray.calibration import Calibration
from cxr_ray.errors import OutputError
from cxr_ray.pipeline.calibrations import record_calibration, recorded_calibrations
from cxr_ray.pipeline.identity import Identity, differences
from cxr_ray.pipeline.options import ScoreOptions
from cxr_ray.pipeline.privacy import Privacy
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.pipeline.score_job import score_identity, valid_calibration
from cxr_ray.weights import Bundle, seeded_bundle

JOB: Any = SimpleNamespace(shards=None, settings=SimpleNamespace(privacy=Privacy()))


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """Two mask styles and a calibration."""
    seeded = seeded_bundle(0)
    state = seeded.segmenters["seeded"]
    narrow = {name: tensor * 2 for name, tensor in state.items()}
    meta = dataclasses.replace(seeded.meta, mask_style="v7", mask_styles=("v7", "jms"), **MADE.record())
    return Bundle.build(segmenters={"v7": state, "jms": narrow}, paths=seeded.paths, meta=meta)


def identity(bundle: Bundle, **options: Any) -> Identity:
    settings = ScoreOptions(archive="a", output="b", **options)
    return score_identity(settings, JOB, bundle, {"compute_batch": 1, "threads": 1})


def test_the_mask_style_in_use_is_identity(bundle: Bundle) -> None:
    own, other = identity(bundle), identity(bundle, mask_style="jms")
    assert differences(own.document, other.document) == ['weights.mask_style is "v7" there and "jms" here']
    assert identity(bundle, mask_style="v7").hash == own.hash != other.hash


def test_a_calibration_is_no_identity(bundle: Bundle) -> None:
    meta = dataclasses.replace(bundle.meta, calibration=None, thresholds={})
    assert identity(dataclasses.replace(bundle, meta=meta)).hash == identity(bundle).hash


def test_a_calibration_serves_only_the_masks_it_was_fitted_with(bundle: Bundle) -> None:
    def used(**options: Any) -> Calibration:
        return valid_calibration(ScoreOptions(archive="a", output="b", **options), bundle)

    assert used().id == used(mask_style="v7").id == MADE.id
    assert used(mask_style="jms").id is None
    assert used(variant="threshold").id is None


def test_calibrations_are_recorded_once_and_read_back_in_order(tmp_path: Path) -> None:
    publisher = Publisher(open_storage(str(tmp_path / "out")))
    assert recorded_calibrations(publisher) == []
    assert record_calibration(publisher, Calibration(), weights="old", attempt="20250102T000000Z-b") == 1
    for attempt in ("20250101T000000Z-a", "20250103T000000Z-c"):
        assert record_calibration(publisher, MADE, weights="made", attempt=attempt) == 2
    found = recorded_calibrations(publisher)
    assert [(entry.weights, entry.calibration.id) for entry in found] == [("made", MADE.id), ("old", None)]
    assert found[0].attempt == "20250101T000000Z-a"
    assert found[0].calibration == MADE


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weights": null, "attempt": "a", "thresholds": {"x": 1}}']
)
def test_a_damaged_record_is_refused(tmp_path: Path, content: str) -> None:
    publisher = Publisher(open_storage(str(tmp_path / "out")))
    publisher.publish(f"calibrations/{MADE.id}.json", content.encode())
    with pytest.raises(OutputError, match="is damaged"):
        recorded_calibrations(publisher)
