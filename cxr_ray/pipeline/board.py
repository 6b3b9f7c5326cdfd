"""The run's board: one small actor that the driver and all workers of a run can reach.

Nothing that decides about a row is kept here: it may die and start again empty.
"""

from __future__ import annotations

import ray

from cxr_ray.pipeline.turns import Casualties


@ray.remote(num_cpus=0, max_restarts=3, max_task_retries=0)
class RunBoard(Casualties):
    """Counts of images by stage, and the units that scorers died over."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def add(self, stage: str, images: int) -> None:
        self.counts[stage] = self.counts.get(stage, 0) + images

    def read(self) -> dict[str, int]:
        return dict(self.counts)
