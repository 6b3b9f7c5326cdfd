"""An OUTPUT made by the real planning and publishing code, with a scorer that needs no network.

``make_output`` plans an archive, decodes, "scores" and publishes it in one process, so that tests of the
results have real part files. Scores depend on the pixels only, and mean nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from encoded_maps import bits_of, levels_of

from cxr_ray.archives.inputs import image_id_of
from cxr_ray.archives.listing import list_archive
from cxr_ray.archives.storage import open_storage
from cxr_ray.calibration import Calibration
from cxr_ray.pipeline.calibrations import record_calibration
from cxr_ray.pipeline.decode_unit import InputSettings, decode_unit
from cxr_ray.pipeline.identity import KIND_SCORES, KIND_SHARDS, Identity, claim_identity
from cxr_ray.pipeline.parts import PartFooter, publish_part
from cxr_ray.pipeline.plan import SHARD_KIND, open_plan, read_unit
from cxr_ray.pipeline.planner import PlannedSource, commit_generation, select_new, spool_listing
from cxr_ray.pipeline.privacy import Privacy
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.pipeline.score_unit import score_unit
from cxr_ray.pipeline.shard_source import list_shards, read_shard_unit, shards_identity

IDENTITY = Identity(kind=KIND_SCORES, document={"tensors": "made", "decode_policy": "corrected"})


class MadeScorer:
    """Evidence from a blurred image, lungs from an ellipse, probability from the mean grey level.

    Args:
        seconds_per_image: pretends to think for so long, so that a test has time to disturb a run.
    """

    compute_batch = 1

    def __init__(self, seconds_per_image: float = 0.0) -> None:
        self.seconds_per_image = seconds_per_image

    def score(self, pixels_BHW: np.ndarray) -> Any:
        """What ``Scorer.score`` returns, as far as the pipeline asks for it."""
        count = len(pixels_BHW)
        time.sleep(self.seconds_per_image * count)
        rows, columns = np.mgrid[:300, :340]
        lungs_HW = np.hypot((rows - 150) / 110, (np.abs(columns - 170) - 70) / 50) < 1
        small = [cv2.resize(frame, (85, 75), interpolation=cv2.INTER_AREA) for frame in pixels_BHW]
        evidence = np.stack([cv2.GaussianBlur(frame.astype(np.float32), (0, 0), 3) for frame in small])
        logit = evidence[:, ::7, ::7].std(axis=(1, 2)) / 20 - 2
        p_covid = 1 / (1 + np.exp(-logit))
        return SimpleNamespace(
            p_covid=p_covid.astype(np.float32),
            logit=logit.astype(np.float32),
            path_logits=np.repeat(logit[:, None], 6, axis=1).astype(np.float32),
            class_probs=np.stack([p_covid, 1 - p_covid], axis=1).astype(np.float32),
            p_std=np.full(count, 0.01, np.float32),
            lung_fraction=np.full(count, lungs_HW.mean(), np.float32),
            **levels_of(evidence - 128),
            lung_bits=bits_of(np.repeat(lungs_HW[None], count, axis=0)),
            has_lungs=np.ones(count, bool),
        )


def make_output(
    archive: Path | str,
    output: Path | str,
    *,
    output_options: Mapping[str, Any] | None = None,
    unit_size: int = 4,
    identity: Identity = IDENTITY,
    units: int | None = None,
    calibration: Calibration | None = None,
) -> Path | str:
    """Plan ``archive`` as the next generation of ``output`` and publish its units (only the first few, if
    ``units`` says so). Without ``calibration`` none is recorded, as before there were any. Returns ``output``."""
    publisher = Publisher(open_storage(str(output), output_options))
    claim_identity(publisher, identity)
    storage = open_storage(str(archive))
    sources: Iterable[PlannedSource]
    if shards_identity(storage) is not None:
        sources = list_shards(storage)
    else:
        sources = (
            PlannedSource(source=source, image_id=image_id_of(source), uri=source.uri, member=source.member)
            for source in list_archive(storage)
        )
    listing = spool_listing(sources, Privacy())
    plan = open_plan(publisher)
    select_new(listing, plan.image_ids(), None)
    attempt = f"attempt{len(plan.generations)}"
    assert commit_generation(
        publisher, plan, listing, attempt=attempt, identity=identity.hash, largest=unit_size
    )
    listing.close()
    if calibration is not None:
        record_calibration(publisher, calibration, weights="made for tests", attempt=attempt)
    readout = (calibration or Calibration()).readout()
    number = len(plan.generations)
    for unit in open_plan(publisher).units(number)[:units]:
        images = read_unit(publisher, unit)
        shard = unit.kind == SHARD_KIND
        table = read_shard_unit(images, {}) if shard else decode_unit(images, InputSettings())
        if identity.kind != KIND_SHARDS:
            table = score_unit(table, MadeScorer(), min_lung_fraction=0.08, readout=readout)
        footer = PartFooter(
            identity=identity.hash,
            unit_id=unit.unit_id,
            generation=number,
            attempt=attempt,
            code_version="test",
            device="cpu",
            compute_batch=1,
            threads=1,
            dtype="float32",
            weights="made for tests",
            calibration_id=calibration.id if calibration else None,
            fencing="create_only",
            decode_policy="corrected",
        )
        publish_part(publisher, table, identity.kind, footer)
    return output
