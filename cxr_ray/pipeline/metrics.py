"""Prometheus metrics of a run, through Ray: counted on the workers per unit or chunk, never per image.

Ray's agent on every node offers them under ``/metrics`` with the prefix ``ray_``. Tags are few on purpose: the
attempt, a stage, a code. No path, id or other word about an image goes into one. Work that is done again is
counted again; what was published, and for which reason quarantined, is counted once.
"""

from __future__ import annotations

from functools import lru_cache

from ray.util.metrics import Counter, Histogram

from cxr_ray.pipeline.failures import PUBLISH, UnitFailure
from cxr_ray.pipeline.parts import PartRecord
from cxr_ray.pipeline.unit_rows import Journey

_SECONDS = [0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1200, 3600]
_BATCHES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


class RunMetrics:
    """The metrics of one attempt in one process."""

    def __init__(self, attempt: str) -> None:
        self._images = Counter(
            "cxr_ray_images", "Images that went through a stage.", tag_keys=("attempt", "stage")
        )
        self._published = Counter("cxr_ray_published_images", "Rows published.", tag_keys=("attempt",))
        self._quarantined = Counter(
            "cxr_ray_quarantined", "Quarantined rows published, by code.", tag_keys=("attempt", "code")
        )
        self._units = Counter("cxr_ray_units_published", "Parts published.", tag_keys=("attempt",))
        self._retries = Counter(
            "cxr_ray_retries", "New tries of units by workers.", tag_keys=("attempt", "stage")
        )
        self._failures = Counter(
            "cxr_ray_units_failed",
            "Units given up in a round, by code.",
            tag_keys=("attempt", "stage", "code"),
        )
        self._seconds = Histogram(
            "cxr_ray_stage_seconds",
            "Seconds per unit and stage.",
            boundaries=_SECONDS,
            tag_keys=("attempt", "stage"),
        )
        self._batch = Histogram(
            "cxr_ray_compute_batch",
            "Images per network call, of each unit.",
            boundaries=_BATCHES,
            tag_keys=("attempt",),
        )
        self._halvings = Counter(
            "cxr_ray_batch_halvings", "Times a scorer ran out of GPU memory.", tag_keys=("attempt",)
        )
        everything = (
            self._images, self._published, self._quarantined, self._units, self._retries, self._failures,
            self._seconds, self._batch, self._halvings,
        )  # fmt: skip
        for metric in everything:
            metric.set_default_tags({"attempt": attempt})

    def images(self, stage: str, count: int) -> None:
        """Images that passed a stage just now."""
        self._images.inc(count, {"stage": stage})

    def stage(self, stage: str, seconds: float) -> None:
        """A unit that passed a stage."""
        self._seconds.observe(seconds, {"stage": stage})

    def retry(self, stage: str) -> None:
        """A unit that a worker tries again."""
        self._retries.inc(1, {"stage": stage})

    def batch(self, micro_batch: int, halvings: int) -> None:
        """What a scorer used for a unit, and how often it halved its batch meanwhile."""
        self._batch.observe(micro_batch)
        if halvings:
            self._halvings.inc(halvings)

    def failed(self, failure: UnitFailure) -> None:
        """A unit that a worker gave up."""
        self._failures.inc(1, {"stage": failure.stage, "code": failure.code})

    def published(self, record: PartRecord, journey: Journey) -> None:
        """A part; one that another worker had published already counts nothing."""
        self.stage(PUBLISH, journey.seconds.get(PUBLISH, 0.0))
        if not record.won:
            return
        self._units.inc(1)
        if record.images:
            self._published.inc(record.images)
        for code, count in record.reasons.items():
            self._quarantined.inc(count, {"code": code})


@lru_cache(maxsize=4)
def run_metrics(attempt: str) -> RunMetrics:
    """The metrics of ``attempt`` in this process, made once."""
    return RunMetrics(attempt)
